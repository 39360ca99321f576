"""A run says what is wrong with it, and only then."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.engine import health
from sfumato.engine.evaluate import captioned, write_grid
from sfumato.recipe import Training
from tests.engine.toy import Pictures, options, toy, train


def smooth(n: int, side: int, period: float) -> torch.Tensor:
    """Waves of one period, of which E (x_i - x_j)^2 / (2 Var x) = 1 - cos(2 pi / period) along x and 0 along y."""
    phase = torch.linspace(0, 2 * math.pi, n)[:, None, None, None]
    x = torch.arange(side).float()
    return torch.sin(2 * math.pi * x / period + phase).expand(n, 1, side, side)


def test_roughness_is_one_for_noise_and_known_for_waves() -> None:
    noise = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert health.roughness(noise) == pytest.approx(1.0, abs=0.02)
    assert health.roughness(0.1 * noise.clamp(-1, 1) + 5) == pytest.approx(1.0, abs=0.02)
    for period in (4, 8, 16):
        whole = smooth(40, 320, period)
        assert health.roughness(whole) == pytest.approx(0.5 * (1 - math.cos(2 * math.pi / period)), rel=0.02)
    assert math.isnan(health.roughness(torch.full((3, 1, 8, 8), 0.4)))
    assert health.roughness(torch.randn(2, 1, 8, 8, 8)) == pytest.approx(1.0, abs=0.2)


def test_noise_is_told_from_pictures(glyphs: torch.Tensor) -> None:
    own = health.roughness(glyphs)
    draw = torch.Generator().manual_seed(1)
    assert not health.noisy(glyphs[:16] / 2 + 0.5, own)
    blurred = glyphs[:16] + 0.2 * torch.randn(glyphs[:16].shape, generator=draw)
    assert not health.noisy((blurred / 2 + 0.5).clamp(0, 1), own)
    drowned = glyphs[:16] + 2.0 * torch.randn(glyphs[:16].shape, generator=draw)
    assert health.noisy((drowned / 2 + 0.5).clamp(0, 1), own)
    assert not health.noisy(torch.rand(16, 1, 32, 32), 0.9), "the data look like noise themselves"


@pytest.fixture(scope="module")
def glyphs() -> torch.Tensor:
    from sfumato.data import open_data

    return open_data("glyphs").batch(np.arange(0, 780, 12))["image"]


def facts(**changes: object) -> health.Facts:
    base = {"training": Training(), "step": 1000, "examples": 500, "first": 1.0, "last": 0.05, "untrained": 0.0}
    return health.Facts(**(base | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"untrained": 0.6}, "still 60% untrained weights"),
        (
            {"last": 0.9, "step": 10},
            "little is learnt yet: the loss is 0.9, an untrained model's 1, after 10 steps (1.28",
        ),
        ({"last": 40.0}, "the loss, 40, is above an untrained model's, 1: lower --lr"),
        ({"skipped": 100}, "100 of 1,000 steps were skipped"),
        ({}, "the loss has fallen all the same"),
    ],
)
def test_the_reason_follows_from_the_numbers(changes: dict, words: str) -> None:
    (reason,) = health.reasons(facts(**changes))
    assert words in reason


def test_the_share_of_untrained_weights_is_the_true_one(tmp_path: Path) -> None:
    """Train with a rate of next to nothing: the average is exactly that share of the start plus the rest of it."""
    recipe = toy()
    run_options = options(tmp_path, steps=30, ema=0.97, ema_rule="constant", lr=1e-2, warmup=0)
    start = recipe.net[0].weight.detach().clone()
    from sfumato.engine import steps

    run = steps(recipe, Pictures(), run_options)
    past = []
    for _ in run:
        past.append(recipe.net[0].weight.detach().clone())
        ema = run.gi_frame.f_locals["trainer"].session.ema
    share = 0.97 ** len(past)
    assert ema.untrained == pytest.approx(share)
    rest = sum(0.03 * 0.97 ** (len(past) - 1 - k) * w for k, w in enumerate(past))
    assert torch.allclose(ema.tensors()["net.0.weight"], share * start + rest, atol=1e-5)


def test_a_run_that_makes_noise_is_told_why(tmp_path: Path) -> None:
    """The toy's sampler starts from noise and the untrained network hardly changes it."""
    from sfumato.data import open_data

    data = open_data("digits")
    shape = {"shape": (1, 8, 8)}
    train(toy(**shape), options(tmp_path / "new", steps=2, sample_every=1, log_every=1, ema=0.99), data=data)
    log = (tmp_path / "new" / "log.txt").read_text()
    assert (
        "The pictures of step 2 look like noise" in log and "untrained weights" in log and "little is learnt yet" in log
    )
    train(toy(width=64, **shape), options(tmp_path / "old", steps=600, sample_every=600, warmup=5), data=data)
    assert not (tmp_path / "old" / "log.txt").exists()


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (Pictures(1), "one example to train on"),
        (Pictures(3), "A batch of 8 is larger than the data (3)"),
    ],
)
def test_odd_data_are_remarked_on(tmp_path: Path, pictures: Pictures, words: str) -> None:
    last = train(toy(), options(tmp_path), data=pictures)[-1]
    assert words in (tmp_path / "log.txt").read_text() and math.isfinite(last.loss)


@pytest.mark.parametrize("level", [-1.0, 0.3])
def test_constant_data_are_remarked_on_and_learnt(tmp_path: Path, level: float) -> None:
    data = Pictures(20)
    data.images[:] = level
    last = train(toy(), options(tmp_path, steps=200, sample_every=200), data=data)[-1]
    log = (tmp_path / "log.txt").read_text()
    assert "are all the same" in log and "of one colour" in log and "look like noise" not in log
    assert last.loss < 0.02


def test_ordinary_data_are_not_remarked_on(tmp_path: Path) -> None:
    train(toy(), options(tmp_path))
    assert not (tmp_path / "log.txt").exists()


def test_the_grid_says_how_the_run_is(tmp_path: Path) -> None:
    last = train(toy(), options(tmp_path, sample_every=40, evaluate_every=40), held=Pictures(9))[-1]
    line = last.line
    said = health.caption(line, last.held, False)
    for part in (
        f"loss {line['loss']:.4g}",
        f"norm {line['norm']:.4g}",
        f"EMA lag {line['ema_lag']:.2%}",
        line["order"],
    ):
        assert part in said
    assert said.count(" ") > 12 and f"held-out {last.held['model']:.4g}" in said
    with Image.open(last.grid) as image:
        below = np.asarray(image.convert("L"))[-30:]
    assert image.width >= 320 and below.min() < 80 and np.median(below) == 255


def test_every_pixel_of_a_grid_is_a_pixel_of_the_pictures(tmp_path: Path) -> None:
    pictures = torch.rand(4, 3, 10, 10)
    whole = np.asarray(captioned(pictures, "words"))
    factor = 320 // 22
    small = whole[: 22 * factor : factor, : 22 * factor : factor]
    assert (small[:10, :10] == (pictures[0].permute(1, 2, 0) * 255).round().numpy()).all()
    assert (small[12:, 12:] == (pictures[3].permute(1, 2, 0) * 255).round().numpy()).all()
    with pytest.raises(OSError):
        write_grid(pictures, tmp_path / "no" / "folder" / "x.png")


def test_files_that_change_during_training_are_named_once(tmp_path: Path) -> None:
    from sfumato.data import DataOptions, open_data
    from sfumato.engine import steps

    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(draw.integers(0, 255, (8, 8), np.uint8)).save(folder / f"{i:02}.png")
    data = open_data(folder, DataOptions(size=8))
    run = steps(toy(shape=(1, 8, 8)), data, options(tmp_path / "run"))
    for step in run:
        if step.step == 12:
            (folder / "03.png").unlink()
        if step.step == 25:
            Image.fromarray(draw.integers(0, 255, (8, 8), np.uint8)).save(folder / "05.png")
            (folder / "07.png").write_bytes(b"")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("03.png is gone") == 1 and log.count("05.png was changed, 07.png was changed") == 1
    assert log.count(".png") == 3 and step.step == 40
    again = open_data(folder, DataOptions(size=8))
    assert "07.png" not in again.names and len(again) == 10
    train(toy(shape=(1, 8, 8)), options(tmp_path / "run", steps=50), data=again, resume=True)
    assert "Changed since then: data [12," in (tmp_path / "run" / "log.txt").read_text()
