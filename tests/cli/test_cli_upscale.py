"""`sfumato upscale`: a run of adm's stage upsampler at work, on a picture and on folders, and what is refused."""

import shutil

import numpy as np
import pytest
import torch

import sfumato
from sfumato.cli import upscale
from sfumato.cli.pictures import read
from sfumato.cli.smalls import Notes, Task, batches, listed, named
from sfumato.core.random import Seeds
from sfumato.data.pictures import read_settings
from sfumato.errors import UserError
from sfumato.papers.adm import Enlarge
from tests.cli.conftest import SMALL, quietly


@pytest.fixture(scope="session")
def enlarges(place, photos):
    """A run that enlarges 4 x 4 to 16 x 16, told kinds of flowers."""
    out = place / "runs" / "enlarges"
    quietly("train", "adm", photos, "--labels", "folder", "--stage", "upsampler", "--out", out, "--steps", 30, *SMALL)
    return out


@pytest.fixture
def small_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.array([[20, 60, 90, 30], [40, 220, 250, 60], [10, 200, 255, 80], [0, 30, 70, 20]], np.uint8)
    image.fromarray(pixels).save(tmp_path / "small.png")
    return tmp_path / "small.png"


def opened(path):
    return np.asarray(pytest.importorskip("PIL.Image").open(path))


def test_it_enlarges_as_the_recipe_does(enlarges, small_picture, command, tmp_path):
    words = ("--n", 2, "--seed", 5, "--label", "rose", "--steps", 3, "--threads", 1, "--out", tmp_path / "out")
    said = command("upscale", enlarges, small_picture, *words)
    assert said.code == 0 and "from 4 x 4 to 16 x 16, told rose" in said.out, said
    recipe = sfumato.load(enlarges)
    own = recipe.sampler()
    low = torch.from_numpy(opened(small_picture).copy())[None, None] / 255
    rose = recipe.config.classes.index("rose")
    ask = Enlarge(2, (rose, rose), low=low, sampler=type(own)(3, own.spacing, own.variance))
    *_, state = recipe.sample(ask, rng=Seeds(5))
    expected = (recipe.picture(state)[:, 0] * 255).round()
    for i in range(2):
        path = tmp_path / "out" / f"seed_{5 + i:08d}.png"
        assert float((torch.from_numpy(opened(path).copy()).float() - expected[i]).abs().max()) <= 1
    settings = read_settings(path)["request"]
    assert settings["edit"] == "upscale" and settings["label"] == "rose"
    assert (tmp_path / "out" / "grid.png").exists() and "canary" not in str(settings)


def test_a_larger_picture_is_brought_down_and_said(enlarges, photos, command, tmp_path):
    large = next((photos / "rose").iterdir())
    said = command("upscale", enlarges, large, "--steps", 2, "--out", tmp_path / "out")
    assert said.code == 0 and "16 x 16, the run takes 4 x 4: resized and cropped" in said.err, said
    assert opened(tmp_path / "out" / "seed_00000000.png").shape == (16, 16)


def test_without_classes_too(place, photos, small_picture, command, mistake, tmp_path):
    out = place / "runs" / "enlarges-plain"
    quietly("train", "adm", photos, "--labels", "none", "--stage", "upsampler", "--out", out, "--steps", 2, *SMALL)
    assert command("upscale", out, small_picture, "--steps", 2, "--out", tmp_path / "a").code == 0
    assert "knows no classes" in mistake("upscale", out, small_picture, "--label", "rose")


def test_mistakes_are_sentences(enlarges, run, photos, small_picture, mistake, tmp_path):
    assert "a run and a picture" in mistake("upscale", enlarges)
    assert "is no run to upscale with" in mistake("upscale", run, small_picture)
    assert "no picture" in mistake("upscale", enlarges, tmp_path / "nothing.png")
    assert "no class 'oak'" in mistake("upscale", enlarges, small_picture, "--label", "oak")
    assert "--guidance makes a class stronger" in mistake("upscale", enlarges, small_picture, "--guidance", 2)
    for words in (("sample", enlarges), ("likelihood", enlarges, photos), ("bench", "samplers", enlarges)):
        assert "makes pictures by itself: this run enlarges pictures" in mistake(*words)
    words = ("evaluate", enlarges, photos, "--n", 10)
    assert "makes pictures by itself: this run enlarges pictures" in mistake(*words)
    assert "makes pictures by itself" in mistake("edit", enlarges, small_picture, "--strength", "0.5")
    assert not (enlarges / "upscaled").exists()


# -- folders: two stages, a small picture of a class and then its details ----------------------------------------------


@pytest.fixture(scope="module")
def smalls(place, run):
    """Four pictures that another run made, of two classes, and their grid."""
    out = place / "smalls"
    quietly("sample", run, "--label", "rose,tulip", "--n", 4, "--seed", 30, "--steps", 3, "--out", out)
    return out


def in_python(run, path, seed, label):
    """The same by the recipe, alone: 8-bit levels (16, 16)."""
    recipe = sfumato.load(run)
    own = recipe.sampler()
    low = read(path, recipe, size=recipe.small_size).pixels[None]
    told = None if label is None else (recipe.config.classes.index(label),)
    ask = Enlarge(1, told, low=low, sampler=type(own)(3, own.spacing, own.variance))
    *_, state = recipe.sample(ask, rng=Seeds(seed))
    return (recipe.picture(state)[0, 0] * 255).round().numpy()


def test_two_stages_told_the_classes_of_the_first(enlarges, smalls, command, tmp_path):
    """Each as if it were enlarged alone, with the seed of its place, also in batches of two."""
    words = ("--seed", 7, "--steps", 3, "--batch", 2, "--threads", 1, "--out", tmp_path / "large")
    said = command("upscale", enlarges, smalls, *words)
    assert said.code == 0 and "4 pictures" in said.out and "told rose, tulip, from seed 7 on" in said.out, said
    assert "'grid.png' shows other pictures of 'smalls' and is left out" in said.err
    paths = sorted(smalls.glob("seed_*.png"))
    made = sorted(path.name for path in (tmp_path / "large").iterdir())
    assert made == ["grid.png", *(path.name for path in paths)]
    tiles = []
    for i, path in enumerate(paths):
        large = opened(tmp_path / "large" / path.name).astype(float)
        label = ("rose", "tulip")[i % 2]
        assert abs(large - in_python(enlarges, path, 7 + i, label)).max() <= 1
        assert abs(large - in_python(enlarges, path, 7 + i, "aster")).max() > 1
        told = read_settings(tmp_path / "large" / path.name)["request"]
        assert (told["label"], told["edit"], told["seed"], told["only"]) == (label, "upscale", 7, i)
        tiles.append(large)
    sheet = opened(tmp_path / "large" / "grid.png").astype(float)
    assert sheet.shape == (16, 8 * 18 - 2)
    for i, tile in enumerate(tiles):  # beside its small one, enlarged bilinearly
        assert np.array_equal(sheet[:, (2 * i + 1) * 18 : (2 * i + 1) * 18 + 16], tile)
        low = read(paths[i], sfumato.load(enlarges), size=(4, 4)).pixels[None]
        up = torch.nn.functional.interpolate(low, (16, 16), mode="bilinear")[0, 0].numpy() * 255
        assert abs(sheet[:, 2 * i * 18 : 2 * i * 18 + 16] - up).max() <= 1


def test_a_label_that_is_typed_comes_first_and_those_unknown_are_noted(enlarges, smalls, photos, place, command):
    out = place / "typed"
    words = ("--steps", 3, "--threads", 1, "--no-metadata", "--out", out)
    assert command("upscale", enlarges, smalls, "--label", "aster", *words).code == 0
    path = smalls / "seed_00000031.png"
    assert abs(opened(out / path.name).astype(float) - in_python(enlarges, path, 1, "aster")).max() <= 1
    with pytest.raises(UserError, match="carries no settings"):
        read_settings(out / path.name)
    shutil.copytree(photos, place / "two")
    shutil.rmtree(place / "two" / "rose")
    other = place / "runs" / "enlarges-two"
    words = ("--labels", "folder", "--stage", "upsampler", "--out", other, "--steps", 2, *SMALL)
    quietly("train", "adm", place / "two", *words)
    said = command("upscale", other, smalls, "--steps", 3, "--batch", 3, "--threads", 1, "--out", place / "others")
    assert said.code == 0 and "of the class 'rose', which this run does not know: not told" in said.err, said
    for i, label in enumerate((None, "tulip", None, "tulip")):  # told and not told are not one batch
        path = smalls / f"seed_{30 + i:08d}.png"
        assert abs(opened(place / "others" / path.name).astype(float) - in_python(other, path, i, label)).max() <= 1


def test_names_follow_and_a_broken_picture_is_skipped(enlarges, small_picture, command, tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("a.png", "a.bmp", "B.png", "b.gif", "grid.png"):
        image.open(small_picture).save(folder / name)
    (folder / "c.png").write_bytes(small_picture.read_bytes()[:60])
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    said = command("upscale", enlarges, folder, small_picture, "--steps", 3, "--threads", 1, "--out", tmp_path / "out")
    assert said.code == 0 and "6 pictures" in said.out, said
    assert [line for line in said.err.splitlines() if "c.png" in line and line.startswith("skipped: ")]
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["B.png", "a-2.png", "a.png", "b-2.png", "grid-2.png", "grid.png", "small.png"]
    order = ("B.png", "a.png", "a-2.png", "b-2.png", None, "grid-2.png", "small.png")  # c.png has its seed, too
    for i, name in enumerate(order):
        if name is not None:
            found = opened(tmp_path / "out" / name).astype(float)
            assert abs(found - in_python(enlarges, small_picture, i, None)).max() <= 1, name


def test_folders_that_cannot_be_enlarged(enlarges, smalls, photos, mistake, tmp_path):
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    assert "no pictures in the folder" in mistake("upscale", enlarges, tmp_path / "empty")
    assert "sub-folders are not entered" in mistake("upscale", enlarges, photos)
    for i in range(2):
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"no picture")
    said = mistake("upscale", enlarges, tmp_path / "broken", "--steps", 2, "--out", tmp_path / "out")
    assert "none of 2 pictures could be used: '0.png' cannot be used" in said and not (tmp_path / "out").exists()
    assert "give one picture" in mistake("upscale", enlarges, smalls, "--n", 2)
    assert "no class 'oak'" in mistake("upscale", enlarges, smalls, "--label", "oak")
    before = {path: path.read_bytes() for path in smalls.iterdir()}
    assert "give another folder with --out" in mistake("upscale", enlarges, smalls, "--out", smalls)
    assert before == {path: path.read_bytes() for path in smalls.iterdir()}


def test_a_run_that_was_always_told_a_class_is_told_the_pictures(
    place, photos, smalls, small_picture, command, mistake
):
    out = place / "runs" / "always-told"
    words = ("--labels", "folder", "--stage", "upsampler", "--out", out, "--steps", 2, "--config.drop", 0, *SMALL)
    quietly("train", "adm", photos, *words)
    assert "always told a class, and 'small.png' names none" in mistake("upscale", out, small_picture)
    assert command("upscale", out, smalls, "--steps", 2, "--guidance", 2, "--out", place / "told").code == 0
    torch.set_num_threads(2)  # then threads are timed, on a step that is told the same
    try:
        assert command("upscale", out, smalls, "--steps", 2, "--out", place / "timed").code == 0
    finally:
        torch.set_num_threads(1)


def test_an_interruption_leaves_whole_pictures(enlarges, smalls, command, tmp_path, monkeypatch):
    save, written = upscale.save_png, []

    def interrupted(path, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        save(path, *rest)
        written.append(path)

    monkeypatch.setattr(upscale, "save_png", interrupted)
    words = ("--steps", 2, "--batch", 1, "--threads", 1, "--out", tmp_path / "out")
    assert command("upscale", enlarges, smalls, *words).code == 130
    assert sorted((tmp_path / "out").iterdir()) == written and len(written) == 2
    assert all(opened(path).shape == (16, 16) for path in written)


def test_no_more_is_read_than_a_batch_needs(enlarges, smalls):
    recipe, seen, notes = sfumato.load(enlarges), [], Notes()
    paths = listed([smalls], notes)
    tasks = [Task(i, path, name, "") for i, (path, name) in enumerate(zip(paths, named(paths), strict=True))]

    def reading(path):
        seen.append(path)
        return read(path, recipe, size=recipe.small_size)

    work = batches(tasks, 3, reading, notes)
    assert [task.i for task, _ in next(work)] == [0, 1, 2] and seen == paths[:3]
    assert [task.i for task, _ in next(work)] == [3] and next(work, None) is None
