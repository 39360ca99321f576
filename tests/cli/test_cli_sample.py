"""`sfumato sample`: seeds mean pictures, pictures carry their settings and can be repeated, nothing leaks."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import numpy as np
import pytest

from sfumato.cli.request import Request, from_settings
from sfumato.data.pictures import read_settings
from sfumato.errors import UserError

STEPS = ("--steps", "12")


def pixels(path: Path) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    with image.open(path) as picture:
        return np.asarray(picture).astype(int)


def picture(folder: Path, seed: int) -> np.ndarray:
    return pixels(folder / f"seed_{seed:08d}.png")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """At most one grey level apart on 99.9 % of the pixels."""
    return a.shape == b.shape and float((abs(a - b) <= 1).mean()) >= 0.999


def test_without_options_there_are_64_pictures_and_a_grid(run, command, tmp_path):
    said = command("sample", run, *STEPS)
    folder = run / "pictures"
    assert said.code == 0 and str(folder / "grid.png") in said.out and "seeds 0 to 63" in said.out
    assert len(list(folder.glob("seed_*.png"))) == 64
    grid = pixels(folder / "grid.png")
    assert grid.shape == (8 * 18 - 2, 8 * 18 - 2)
    assert np.array_equal(grid[18:34, 36:52], picture(folder, 10))  # row 1, column 2
    assert command("sample", run, "--n", "1", *STEPS).code == 0
    assert (run / "pictures-2").is_dir()  # the first ones are kept


def test_a_seed_means_a_picture(run, command, tmp_path):
    """Seed 8 alone is picture 3 of seeds 5 to 12, class and all, with noise on the way."""
    for name, words in {
        "alone": ["--seed", 8, "--n", 1],
        "among": ["--seed", 5, "--n", 8],
        "parts": ["--seed", 5, "--n", 8, "--batch", 3],
    }.items():
        assert command("sample", run, "--out", tmp_path / name, *words, "--sampler", "ddpm", *STEPS).code == 0
    assert same(picture(tmp_path / "alone", 8), picture(tmp_path / "among", 8))
    for seed in range(5, 13):
        assert same(picture(tmp_path / "parts", seed), picture(tmp_path / "among", seed))
    assert not same(picture(tmp_path / "among", 8), picture(tmp_path / "among", 9))


@pytest.mark.parametrize(
    "words",
    [
        ["--sampler", "ddim", "--eta", "0.5"],
        ["--guidance", "2.5", "--label", "rose,tulip"],
        ["--size", "24x16"],
        ["--precision", "bf16"],
        [],
    ],
)
def test_like_repeats_a_picture_bit_by_bit(words, run, command, tmp_path):
    made, again, grid = tmp_path / "made", tmp_path / "again", tmp_path / "grid"
    assert command("sample", run, "--n", 5, "--batch", 3, "--seed", 40, "--out", made, *STEPS, *words).code == 0
    assert command("sample", run, "--like", made / "seed_00000042.png", "--out", again).code == 0
    assert [path.name for path in again.iterdir()] == ["seed_00000042.png"]
    assert np.array_equal(picture(again, 42), picture(made, 42))
    assert command("sample", run, "--like", made / "grid.png", "--out", grid).code == 0
    assert sorted(path.name for path in grid.iterdir()) == sorted(path.name for path in made.iterdir())
    assert all(np.array_equal(pixels(grid / path.name), pixels(path)) for path in made.iterdir())
    assert read_settings(grid / "seed_00000044.png") == read_settings(made / "seed_00000044.png")


def test_options_override_like(run, command, tmp_path):
    made = tmp_path / "made"
    assert command("sample", run, "--n", 3, "--label", "rose,tulip", "--guidance", 2, "--out", made, *STEPS).code == 0
    liked = made / "seed_00000001.png"
    for name, words in {
        "more": ["--n", 3],
        "seed": ["--seed", 2],
        "scale": ["--guidance", 1],
        "sampler": ["--sampler", "ddim"],
    }.items():
        assert command("sample", run, "--like", liked, "--out", tmp_path / name, *words).code == 0
    assert sorted(path.name for path in (tmp_path / "more").glob("seed*")) == [
        f"seed_0000000{i}.png" for i in (1, 2, 3)
    ]
    assert same(picture(tmp_path / "more", 1), picture(made, 1))
    told = read_settings(tmp_path / "more" / "seed_00000003.png")
    assert (told["guidance"], told["request"]["label"], told["seed"], told["steps"]) == (2, "tulip", 3, 12)
    assert read_settings(tmp_path / "seed" / "seed_00000002.png")["request"]["label"] == "tulip"
    assert not same(picture(tmp_path / "scale", 1), picture(made, 1))
    assert read_settings(tmp_path / "sampler" / "seed_00000001.png")["sampler"] == "ddim"


def test_like_says_when_the_weights_are_others(run, plain, command, tmp_path):
    assert command("sample", plain, "--n", 1, "--out", tmp_path, *STEPS).code == 0
    said = command("sample", run, "--like", tmp_path / "seed_00000000.png", "--out", tmp_path / "b")
    assert said.code == 0 and "other weights" in said.err


def test_labels_and_guidance(run, command, tmp_path):
    """Classes in turn; guidance 1 is off; the class changes the picture of a seed."""
    for name, words in {
        "turn": ["--n", 4],
        "rose": ["--n", 1, "--seed", 1, "--label", "rose"],
        "tulip": ["--n", 1, "--seed", 1, "--label", "tulip"],
        "off": ["--n", 1, "--seed", 1, "--guidance", 1.0],
        "on": ["--n", 1, "--seed", 1, "--guidance", 4],
    }.items():
        assert command("sample", run, "--out", tmp_path / name, *words, *STEPS).code == 0
    turn = [read_settings(tmp_path / "turn" / f"seed_{i:08d}.png")["request"]["label"] for i in range(4)]
    assert turn == ["aster", "rose", "tulip", "aster"]
    rose = picture(tmp_path / "rose", 1)
    assert same(rose, picture(tmp_path / "turn", 1)) and same(rose, picture(tmp_path / "off", 1))
    assert not same(rose, picture(tmp_path / "tulip", 1)) and not same(rose, picture(tmp_path / "on", 1))


def test_the_strip_ends_in_the_pictures(run, command, tmp_path):
    assert command("sample", run, "--n", 2, "--strip", "--out", tmp_path, *STEPS).code == 0
    strip = pixels(tmp_path / "strip.png")
    assert strip.shape == (2 * 18 - 2, 9 * 18 - 2)
    assert np.array_equal(strip[:16, -16:], picture(tmp_path, 0)) and np.array_equal(
        strip[18:, -16:], picture(tmp_path, 1)
    )


def test_pictures_tell_settings_but_nothing_of_the_machine(run, command, tmp_path):
    assert command("sample", run, "--n", 2, "--out", tmp_path / "told", "--strip", *STEPS).code == 0
    assert command("sample", run, "--n", 2, "--out", tmp_path / "bare", "--no-metadata", *STEPS).code == 0
    told = (tmp_path / "told" / "seed_00000001.png").read_bytes()
    assert b"Steps: 12, Sampler: ddpm" in told and b"Seed: 1" in told and b"Size: 16x16" in told
    secrets = [
        str(run),
        run.name,
        "canary",
        socket.gethostname(),
        f"/{getpass.getuser()}/",
        str(Path.home()),
        str(tmp_path),
    ]
    for path in (tmp_path / "told").iterdir():
        content = path.read_bytes()
        assert not [secret for secret in secrets if len(secret) > 2 and secret.encode() in content], path.name
    for path in (tmp_path / "bare").iterdir():
        chunks = path.read_bytes()
        assert not any(kind in chunks for kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"))
        assert np.array_equal(pixels(path), pixels(tmp_path / "told" / path.name))


def test_a_shared_final_folder_is_enough(run, command, tmp_path):
    for name, home in {"a": run, "b": run / "final"}.items():
        assert command("sample", home, "--n", 2, "--out", tmp_path / name, *STEPS).code == 0
    assert all(np.array_equal(pixels(path), pixels(tmp_path / "b" / path.name)) for path in (tmp_path / "a").iterdir())


def test_spacings(plain, command, tmp_path):
    for spacing in ("uniform", "leading", "quadratic"):
        out = tmp_path / spacing
        assert (
            command(
                "sample", plain, "--n", 1, "--sampler", "ddim", "--steps", 10, "--spacing", spacing, "--out", out
            ).code
            == 0
        )
        assert read_settings(out / "seed_00000000.png")["request"]["spacing"] == spacing
    assert not same(picture(tmp_path / "uniform", 0), picture(tmp_path / "quadratic", 0))


# -- requests ----------------------------------------------------------------------------------------------------------


def test_requests_survive_their_settings():
    request = Request(
        seed=5,
        n=9,
        batch=4,
        labels=("a", "b, c"),
        guidance=2.0,
        sampler="ddim",
        steps=10,
        eta=0.3,
        size=(24, 16),
        threads=2,
    )
    told = request.settings(6, model="m", digest="abc", label="a", size=(24, 16))
    found, digest = from_settings({"request": json.loads(json.dumps(told.request))}, "x.png")
    assert digest == "abc" and found.only == 6 and found == Request(**{**vars(request), "only": 6})
    assert [chunk.first for chunk in found.chunks()] == [4] and [chunk.size for chunk in request.chunks()] == [4, 4, 1]
    assert found.alone(("a", "b, c")) == Request(**{**vars(request), "seed": 11, "n": 1, "batch": 1, "labels": ("a",)})


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"seed": 1},
        {"seed": -1, "n": 1, "batch": 1, "sampler": "ddpm"},
        {"seed": 1, "n": 10, "batch": 0, "sampler": "ddpm"},
        {"seed": "x", "n": 1, "batch": 1, "sampler": ""},
        {"seed": 1, "n": 2, "batch": 1, "sampler": "ddpm", "only": 2},
    ],
)
def test_settings_that_make_no_sense(request_):
    with pytest.raises(UserError, match="options"):
        from_settings({"request": request_}, "x.png")
