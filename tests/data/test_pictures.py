"""PNG out and settings back, and nothing about the machine in between."""

import getpass
import json
import os
import socket
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.data import DataError
from sfumato.data.pictures import Settings, grid, read_settings, save_png, to_uint8

RNG = np.random.default_rng(0)
FULL = Settings(
    model="cats",
    sampler="DDIM",
    steps=50,
    guidance=3.0,
    seed=8,
    size=(32, 32),
    prompt="a red, round fox: é",
    negative="blur\nnoise",
    request={"label": ["fox"], "spacing": "cosine", "eta": 0.0, "n": 4, "clip": True},
)


def test_rounding():
    levels = torch.arange(256) / 255
    assert to_uint8(levels.reshape(1, 16, 16)).flatten().tolist() == list(range(256))
    odd = torch.tensor([-1, 0.4999 / 255, 0.5001 / 255, 2, float("nan")]).reshape(1, 1, 5)
    assert to_uint8(odd).flatten().tolist() == [0, 0, 1, 255, 0]
    images = torch.rand(2, 3, 4, 5)
    assert to_uint8(images).shape == (2, 4, 5, 3)
    assert to_uint8(images)[1, 2, 3, 0] == round(float(images[1, 0, 2, 3]) * 255)


def test_grid():
    images = torch.from_numpy(RNG.integers(0, 255, (7, 3, 8, 8), np.uint8))
    sheet = np.asarray(grid(images / 255))
    assert sheet.shape == (28, 28, 3)
    for i in range(7):
        y, x = divmod(i, 3)
        assert (sheet[10 * y : 10 * y + 8, 10 * x : 10 * x + 8] == images[i].permute(1, 2, 0).numpy()).all()
    assert (sheet[8:10] == 255).all() and (sheet[20:, 10:] == 255).all()
    assert grid(images / 255, columns=7, pad=0).size == (56, 8) and grid(images[:1] / 255).size == (8, 8)
    deep = RNG.integers(0, 65535, (2, 4, 4, 1), np.uint16)
    assert (np.asarray(grid(deep, columns=2, pad=0)) == np.concatenate(list(deep), 1)[..., 0]).all()


@pytest.mark.parametrize(
    "shape, dtype", [((9, 7, 1), np.uint8), ((9, 7, 3), np.uint8), ((9, 7, 4), np.uint8), ((9, 7, 1), np.uint16)]
)
def test_pixels_survive(tmp_path, shape, dtype):
    pixels = RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    save_png(tmp_path / "a.png", pixels, FULL)
    assert (np.asarray(Image.open(tmp_path / "a.png")).reshape(shape) == pixels).all()
    assert os.listdir(tmp_path) == ["a.png"]


def test_settings_come_back(tmp_path):
    save_png(tmp_path / "a.png", np.zeros((4, 4, 1), np.uint8), FULL)
    found = read_settings(tmp_path / "a.png")
    assert Settings(**found) == FULL
    text = Image.open(tmp_path / "a.png").text["parameters"]
    assert text == (
        "a red, round fox: é\nNegative prompt: blur\nnoise\n"
        "Steps: 50, Sampler: DDIM, CFG scale: 3, Seed: 8, Size: 32x32, Model: cats"
    )


def strip_own_chunk(path):
    image = Image.open(path)
    info = PngInfo()
    info.add_text("parameters", image.text["parameters"])
    image.save(path, pnginfo=info)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30).map(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    prompt=WORDS,
    model=WORDS.filter(lambda text: "/" not in text and "\\" not in text),
    sampler=st.sampled_from(["DDIM", "DPM++ 2M, Karras", 'odd "one": x']),
    steps=st.integers(1, 9999),
    guidance=st.sampled_from([1.0, 3.0, 7.5]),
    seed=st.integers(0, 2**63 - 1),
)
def test_both_ways_agree(tmp_path_factory, prompt, model, sampler, steps, guidance, seed):
    made = Settings(model=model, sampler=sampler, steps=steps, guidance=guidance, seed=seed, size=(8, 4), prompt=prompt)
    path = tmp_path_factory.mktemp("png") / "a.png"
    save_png(path, np.zeros((4, 8, 1), np.uint8), made)
    assert Settings(**read_settings(path)) == made
    strip_own_chunk(path)
    if "Negative prompt:" not in prompt:
        assert Settings(**read_settings(path)) == made


def test_a1111_text_is_read(tmp_path):
    info = PngInfo()
    info.add_text(
        "parameters",
        "a cat, (best:1.2)\nin a hat\nNegative prompt: bad, worse\nSteps: 20, "
        "Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, Model hash: abc, Model: v1-5, "
        'Lora hashes: "a: 1, b: 2"',
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    assert read_settings(tmp_path / "a.png") == {
        "prompt": "a cat, (best:1.2)\nin a hat",
        "negative": "bad, worse",
        "steps": 20,
        "sampler": "Euler a",
        "guidance": 7.0,
        "seed": 1,
        "size": (512, 768),
        "model": "v1-5",
        "request": {"Model hash": "abc", "Lora hashes": "a: 1, b: 2"},
    }


def test_no_settings_no_text(tmp_path):
    picture = Image.new("RGB", (4, 4))
    picture.info["comment"] = "secret"
    picture.getexif()[0x013B] = "secret"
    save_png(tmp_path / "a.png", picture)
    raw = (tmp_path / "a.png").read_bytes()
    assert b"secret" not in raw and not any(chunk in raw for chunk in (b"tEXt", b"iTXt", b"zTXt", b"eXIf"))
    with pytest.raises(DataError, match="carries no settings"):
        read_settings(tmp_path / "a.png")


def test_nothing_about_the_machine(tmp_path):
    secret = tmp_path / "CANARY" / "runs" / "cats"
    made = Settings(
        model=str(secret),
        sampler="DDIM",
        steps=1,
        seed=1,
        prompt="this and/or that",
        request={
            "from": str(secret),
            "nested": {"list": [str(secret / "x.png"), "C:\\Users\\CANARY\\cats"]},
            "path": secret,
            "home": "~/CANARY/cats",
            "relative": "../CANARY/cats/",
            "label": "and/or",
        },
    )
    save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), made)
    raw, found = (tmp_path / "a.png").read_bytes(), read_settings(tmp_path / "a.png")
    assert b"CANARY" not in raw and str(tmp_path).encode() not in raw and socket.gethostname().encode() not in raw
    assert f"/{getpass.getuser()}/".encode() not in raw
    assert found["model"] == "cats" and found["request"]["nested"]["list"] == ["x.png", "cats"]
    assert found["prompt"] == "this and/or that" and found["request"]["label"] == "and/or"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", np.full((4, 4, 1), 7, np.uint8))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_png(tmp_path / "a.png", np.zeros((4, 4, 1), np.uint8))
    assert os.listdir(tmp_path) == ["a.png"] and (np.asarray(Image.open(tmp_path / "a.png")) == 7).all()
    with pytest.raises(DataError, match="choose a folder that exists"):
        save_png(tmp_path / "none" / "a.png", np.zeros((4, 4, 1), np.uint8))


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | JSON.map(json.dumps), st.booleans())
def test_foreign_chunks_never_crash(tmp_path_factory, text, ours):
    path = tmp_path_factory.mktemp("png") / "a.png"
    info = PngInfo()
    info.add_itxt("sfumato" if ours else "parameters", text.encode("utf-8", "replace").decode())
    Image.new("L", (2, 2)).save(path, pnginfo=info)
    try:
        assert isinstance(read_settings(path), dict)
    except DataError as error:
        assert str(error).isprintable()


def test_deep_and_bombed_chunks(tmp_path):
    for name, text in (("deep", '{"version":' * 50_000), ("bomb", "x" * (2 << 20))):
        info = PngInfo()
        info.add_text("sfumato", text, zip=True)
        Image.new("L", (2, 2)).save(tmp_path / f"{name}.png", pnginfo=info)
        with pytest.raises(DataError):
            read_settings(tmp_path / f"{name}.png")
    for data in (b"", b"no", zlib.compress(b"x")):
        (tmp_path / "c.png").write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            read_settings(tmp_path / "c.png")
    with pytest.raises(DataError, match="No such file"):
        read_settings(tmp_path / "none.png")
