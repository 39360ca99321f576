"""A batch depends on its examples and their generators, and on nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.core.random import Seeds
from sfumato.data import DataError, Dataset

RNG = np.random.default_rng(0)


def make(n: int = 40, dtype: type = np.uint8, flip: bool = True, **known) -> Dataset:
    top = np.iinfo(dtype).max
    pixels = RNG.integers(0, top, (n, 4, 6, 1), dtype, endpoint=True)
    return Dataset(pixels, tuple(f"p{i}" for i in range(n)), flip=flip, **known)


def test_scaling_is_exact():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    image = Dataset(levels, ("a",)).batch([0])["image"]
    assert torch.equal(image[0, 0].flatten(), torch.arange(256.0) / 127.5 - 1)
    assert image.dtype == torch.float32 and image.min() == -1 and image.max() == 1
    deep = np.array([0, 1, 32768, 65535], np.uint16).reshape(1, 2, 2, 1)
    assert torch.equal(
        Dataset(deep, ("a",)).batch([0])["image"].flatten(), torch.tensor([0.0, 1.0, 32768.0, 65535.0]) / 32767.5 - 1
    )


def test_layout_labels_and_text():
    pixels = RNG.integers(0, 255, (3, 4, 6, 3), np.uint8)
    data = Dataset(
        pixels, ("a", "b", "c"), labels=np.array([2, 0, 1]), classes=("x", "y", "z"), captions=["A", "", "C"]
    )
    assert data.shape == (3, 4, 6) and len(data) == 3
    batch = data.batch(np.array([2, 0, 2]))
    assert batch["image"].shape == (3, 3, 4, 6) and batch["image"].is_contiguous()
    assert torch.equal(
        ((batch["image"] + 1) * 127.5).round().byte(), torch.from_numpy(pixels[[2, 0, 2]].transpose(0, 3, 1, 2).copy())
    )
    assert batch["label"].tolist() == [1, 2, 1] and batch["index"].tolist() == [2, 0, 2]
    assert batch["text"] == ["C", "A", "C"]
    bare = make(2).batch([0, 1])
    assert bare["label"].tolist() == [0, 0] and bare["text"] == ["", ""]


def test_a_batch_never_changes_the_data():
    data = make()
    before = data.images.copy()
    data.batch(range(40), Seeds.at(0, range(40)))
    assert (data.images == before).all()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 39), min_size=1, max_size=30), st.integers(0, 29), st.sampled_from([np.uint8, np.uint16])
)
def test_grouping_changes_no_bit(indices, cut, dtype):
    data = make(dtype=dtype)

    def rng(start: int, stop: int) -> Seeds:
        return Seeds.at(3, range(start, stop), "data")

    whole = data.batch(indices, rng(0, len(indices)))["image"]
    cut = min(cut, len(indices))
    head = data.batch(indices[:cut], rng(0, cut))["image"]
    tail = data.batch(indices[cut:], rng(cut, len(indices)))["image"]
    assert torch.equal(whole, torch.cat([head, tail]))


def test_half_of_the_examples_are_mirrored():
    data = make(4000)
    images = torch.from_numpy(data.images[..., 0])
    got = ((data.batch(range(4000), Seeds.at(1, range(4000)))["image"][:, 0] + 1) * 127.5).round().byte()
    same, mirrored = (got == images).flatten(1).all(1), (got == images.flip(2)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert abs(mirrored.double().mean() - 0.5) < 4 * 0.5 / 4000**0.5  # four standard errors
    off = Dataset(data.images, data.names, flip=False)
    assert torch.equal(off.batch(range(9), Seeds.at(1, range(9)))["image"], data.batch(range(9))["image"])


def test_masks_are_mirrored_with_their_pictures():
    pixels = RNG.integers(0, 2, (64, 4, 6), np.uint8)
    data = Dataset(pixels[..., None] * 255, tuple(map(str, range(64))), masks=pixels, flip=True)
    batch = data.batch(range(64), Seeds.at(0, range(64)))
    assert torch.equal(batch["mask"], (batch["image"] + 1) / 2) and batch["mask"].shape == (64, 1, 4, 6)


def test_split_is_stable_when_files_are_added():
    small, large = make(300), make(600)
    _, held = small.split(0.1, 5)
    _, more = large.split(0.1, 5)
    assert set(held.names) == set(more.names) & set(small.names)
    train, held = large.split(0.1, 5)
    assert sorted((*train.names, *held.names)) == sorted(large.names)
    assert 35 < len(held) < 90 and set(large.split(0.1, 6)[1].names) != set(held.names)
    position = large.names.index(held.names[3])
    assert (held.pixels(3) == large.pixels(position)).all()
    assert torch.equal(held.batch([3])["image"], large.batch([position])["image"])


def test_split_and_take_keep_everything_in_step():
    data = make(50, labels=np.arange(50), captions=[f"c{i}" for i in range(50)], families=[f"f{i}" for i in range(50)])
    for part in data.split(0.3, 0):
        for i in range(len(part)):
            k = int(part.names[i][1:])
            assert part.labels[i] == k and part.captions[i] == f"c{k}" and part.families[i] == f"f{k}"
            assert (part.pixels(i) == data.pixels(k)).all()
    again = data.take([7, 3]).take([1])
    assert again.names == ("p3",) and (again.pixels(0) == data.pixels(3)).all()


def test_small_splits():
    for n in range(2, 6):
        train, held = make(n).split(0.02, 0)
        assert len(train) >= 1 and len(held) >= 1 and len(train) + len(held) == n
    with pytest.raises(DataError, match="holdout 0"):
        make(1).split(0.5, 0)
    with pytest.raises(DataError, match="between 0 and 1"):
        make(9).split(1.5, 0)
    with pytest.raises(DataError, match="no example"):
        make(9).take([])
