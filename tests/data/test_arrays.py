"""npz files of any usual layout, and those that lie."""

import io
import json
import zipfile

import numpy as np
import pytest

from sfumato.core.random import Seeds
from sfumato.data import DataError, DataOptions, arrays, open_data

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 255, (5, 12, 10, 3), np.uint8)


def save(path, **columns):
    np.savez_compressed(path, **columns)
    return path


def test_own_size_and_values_are_kept(tmp_path):
    path = save(tmp_path / "a.npz", image=COLOUR)
    data = open_data(path)
    assert (data.images == COLOUR).all() and data.shape == (3, 12, 10) and data.names[4] == "a-4" and data.flip
    for image, same in (
        (COLOUR[..., 0], COLOUR[..., :1]),
        (COLOUR[..., :1], COLOUR[..., :1]),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (COLOUR / np.float32(255), COLOUR),
        (COLOUR[..., 0] > 9, (COLOUR[..., :1] > 9) * np.uint8(255)),
        (COLOUR[..., :1].repeat(3, 3), COLOUR[..., :1]),  # gray that was saved as colour
        (COLOUR[..., 0].astype(np.uint16) * 200, COLOUR[..., :1].astype(np.uint16) * 200),
    ):
        data = open_data(save(tmp_path / "b.npz", image=image))
        assert data.images.dtype == same.dtype and (data.images == same).all()


def test_columns(tmp_path):
    path = save(
        tmp_path / "a.npz",
        image=COLOUR,
        label=np.array([3, 0, 3, 0, 0]),
        text=list("abcde"),
        mask=COLOUR[..., 0] > 99,
        split=["train", "test", "train", "train", "test"],
    )
    data = open_data(path, DataOptions(flip="on"))
    assert len(data) == 3 and data.classes == ("0", "3") and data.labels.tolist() == [1, 1, 0]
    assert data.captions == ["a", "c", "d"] and data.names == ("a-0", "a-2", "a-3")
    assert (data.images == COLOUR[[0, 2, 3]]).all()
    batch = data.batch([0, 1, 2], Seeds.at(0, [0, 1, 2]))
    pixels = ((batch["image"][:, 0] + 1) * 127.5).round()
    assert ((pixels > 99) == (batch["mask"][:, 0] == 1)).all(), "mask and picture agree, mirrored or not"
    assert open_data(path, DataOptions(split="test")).captions == ["b", "e"]
    assert open_data(path, DataOptions(split="all", labels="none")).labels is None
    named = save(tmp_path / "n.npz", image=COLOUR, label=np.array([1, 0, 1, 0, 0]), classes=["cat", "dog"])
    assert open_data(named).classes == ("cat", "dog") and open_data(named).labels.tolist() == [1, 0, 1, 0, 0]
    words = save(tmp_path / "w.npz", image=COLOUR, label=np.array(["fox", "bear", "fox", "fox", "bear"]))
    assert open_data(words).classes == ("bear", "fox") and open_data(words).labels.tolist() == [1, 0, 1, 1, 0]


def test_captions_beside(tmp_path):
    path = save(tmp_path / "a.npz", image=COLOUR)
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps({"text": f"picture {i}"}) for i in range(5)))
    assert open_data(path).captions == [f"picture {i}" for i in range(5)]
    (tmp_path / "captions.jsonl").write_text('{"text": "one"}')
    with pytest.raises(DataError, match="1 lines for 5 images"):
        open_data(path)


def test_other_size_and_alpha(tmp_path):
    image = np.full((2, 40, 60, 4), 255, np.uint8)
    image[:, :, :30, :3], image[..., 30:, 3] = (9, 99, 199), 0
    mask = np.zeros((2, 40, 60), np.uint8)
    mask[:, :, :30] = 1
    path = save(tmp_path / "a.npz", image=image, mask=mask)
    data = open_data(path, DataOptions(size=20))
    assert data.shape == (3, 20, 20)  # an antialiased edge is six pixels wide
    assert (data.images[:, :, :7] == (9, 99, 199)).all() and (data.images[:, :, 13:] == 255).all()
    assert (data.masks[:, :, :10] == 1).all() and (data.masks[:, :, 10:] == 0).all()
    assert (open_data(path, DataOptions(alpha="keep")).images == image).all()


@pytest.mark.parametrize(
    "columns, match",
    [
        ({"picture": COLOUR}, 'no array "image".*it has picture'),
        ({"image": COLOUR[0, 0]}, "has the shape"),
        ({"image": COLOUR.astype(np.int64)}, "is int64"),
        ({"image": COLOUR[..., :2]}, "C = 1, 3 or 4"),
        ({"image": COLOUR * 3.0}, "floats from 0 to 1"),
        ({"image": COLOUR[:0]}, "has the shape"),
        ({"image": COLOUR, "label": [1]}, "one value for each"),
        ({"image": COLOUR, "mask": COLOUR}, "must agree"),
        ({"image": np.array([{}], object)}, "holds objects|Object arrays"),
        ({"video": np.zeros((2, 3, 8, 8, 3), np.uint8)}, "video cannot be trained on"),
    ],
)
def test_wrong_arrays_are_explained(tmp_path, columns, match):
    with pytest.raises(DataError, match=match):
        open_data(save(tmp_path / "a.npz", **columns))


def _member(header_shape: str, body: int) -> bytes:
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {header_shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"\0" * body


@pytest.mark.parametrize("shape", ["(1000000, 1000, 1000)", "(9999999999999,)", "(-1, 5, 5)", "(4, 5)"])
def test_headers_that_lie_are_refused_before_memory_is_taken(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("image.npy", _member(shape, 25))
    with pytest.raises(DataError, match="less or more than it declares"):
        open_data(tmp_path / "a.npz")


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BYTE_CAP", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image.npy", _member("(4000000, 1, 1)", 4_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    with pytest.raises(DataError, match="unpacks to 4 MB, more than the cap of 1 MB"):
        open_data(tmp_path / "a.npz")


def test_damage_is_a_sentence(tmp_path):
    out = io.BytesIO()
    np.savez_compressed(out, image=COLOUR, label=np.arange(5))
    raw = out.getvalue()
    for i in range(0, len(raw), 7):
        for data in (raw[:i], raw[:i] + bytes([raw[i] ^ 0x55]) + raw[i + 1 :]):
            (tmp_path / "a.npz").write_bytes(data)
            try:
                assert open_data(tmp_path / "a.npz").images.dtype == np.uint8
            except DataError as error:
                assert "\n" not in str(error)


def test_digits():
    data = open_data("digits")
    from sklearn.datasets import load_digits

    truth = load_digits()
    assert len(data) == 1797 and data.shape == (1, 8, 8) and data.classes == tuple("0123456789") and not data.flip
    assert (data.labels == truth.target).all() and data.images.min() == 0 and data.images.max() == 255
    assert (np.rint(data.images[..., 0] * (16 / 255)) == truth.images).all()
    assert data.captions[0] == "the digit zero"
    larger = open_data("digits", DataOptions(size=16))
    assert larger.shape == (1, 16, 16)
    assert abs(larger.images.reshape(1797, 8, 2, 8, 2).mean((2, 4)) - data.images[..., 0]).mean() < 16


def test_fashion_mnist(data_pack):
    path = data_pack / "fashion_mnist" / "test.npz"
    data, truth = open_data(path), np.load(path)
    assert data.shape == (1, 28, 28) and len(data) == 10_000 and len(data.classes) == 10
    assert (data.images[..., 0] == truth["image"]).all() and (data.labels == truth["label"]).all()
    assert open_data(path, DataOptions(size=32)).shape == (1, 32, 32)


def test_masks_of_the_pack(data_pack):
    path = data_pack / "masks" / "masks.npz"
    data, truth = open_data(path), np.load(path)
    train = truth["split"] == "train"
    assert len(data) == 450 and (data.images == truth["image"][train]).all()
    assert (data.masks == truth["mask"][train]).all()


def test_clips_are_refused_in_a_sentence(data_pack):
    with pytest.raises(DataError, match="video"):
        open_data(data_pack / "emoji_clips" / "clips.npz")
