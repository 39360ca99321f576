"""Classifier-free guidance's own model: its noise levels, its steps, its labels."""

import math

import pytest
import torch

from sfumato.cli.samplers import chosen, walk_of
from sfumato.core.posterior import between, large, small
from sfumato.core.random import Seeds
from sfumato.papers import classifier_free
from sfumato.papers.classifier_free import ClassifierFree, Config
from sfumato.samplers.ancestral import Ancestral
from tests.papers.tools import NAMES, SMALL, at, loud

CONFIG = Config((3, 8, 8), NAMES, SMALL)


def test_noise_levels_are_the_papers():
    """lambda = -2 log tan(a u + b), b = atan(e^-10), a = atan(e^10) - b (section 2), to the ends."""
    recipe = ClassifierFree(CONFIG)
    process, b = recipe.denoiser.process, math.atan(math.exp(-10))
    a = math.atan(math.exp(10)) - b
    assert (a, b) == (pytest.approx(1.570705527, abs=1e-9), pytest.approx(4.539993e-5, abs=1e-11))
    u = torch.tensor([0.0, 1e-3, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    t = recipe.least + (1 - recipe.least) * u
    assert torch.allclose(process.log_snr(t), -2 * torch.log(torch.tan(a * u + b)), atol=1e-7)
    assert process.log_snr(t[[0, -1]]).tolist() == pytest.approx([20.0, -20.0], abs=1e-7)


def test_the_loss_is_that_of_its_draw():
    recipe = loud(ClassifierFree(CONFIG))
    batch = {"image": Seeds(3).normal((4, 3, 8, 8)).clamp(-1, 1), "label": torch.tensor([0, 1, 2, 0])}
    loss = recipe.loss(batch, at(range(4)))
    rng = at(range(4)).rng
    u = 1 - rng.uniform()
    angle = math.atan(math.exp(-10)) * (1 - u) + math.atan(math.exp(10)) * u
    keep = rng.uniform() >= 0.1
    eps = rng.normal(batch["image"].shape)
    alpha, sigma = (f(angle).float().reshape(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
    told = torch.where(keep[:, None], recipe.label.embedding(batch["label"]), recipe.label.embedding.weight[-1])
    time = (1000 * (recipe.least + (1 - recipe.least) * u)).float()
    guess = recipe.denoiser.network(alpha * batch["image"] + sigma * eps, time, vector=told)
    assert loss.value.item() == pytest.approx((guess - eps).square().mean().item(), rel=1e-5)


def test_labels_are_withheld_one_by_one():
    recipe = ClassifierFree(CONFIG)
    n = 100_000
    null = recipe.label.embedding.weight[-1]
    batch = {"label": torch.zeros(n, dtype=torch.long)}
    told = recipe.told(batch, Seeds.at(0, range(n))).vector
    dropped = (told == null).all(1)
    assert abs(float(dropped.float().mean()) - 0.1) < 3 * math.sqrt(0.09 / n)
    assert 0 < int(dropped[:64].sum()) < 64


def test_steps_have_the_blended_variance():
    recipe = ClassifierFree(CONFIG)
    sampler = recipe.sampler()
    assert sampler == Ancestral(256, variance=between(0.3))
    t, s = (recipe.denoiser.process.at(x) for x in (0.6, 0.55))
    blended = small(t, s) ** 0.7 * large(t, s) ** 0.3
    assert between(0.3)(t, s) == pytest.approx(blended) and small(t, s) < blended < large(t, s)
    assert between(0.0)(t, s) == pytest.approx(small(t, s)) and between(1.0)(t, s) == pytest.approx(large(t, s))
    assert chosen(Ancestral(), **{k: v for k, v in walk_of(sampler).items() if k != "sampler"}) == sampler


def test_the_papers_presets():
    with torch.device("meta"):
        for name in ("imagenet64", "imagenet128"):
            recipe = ClassifierFree(classifier_free.PRESETS[name].config)
            assert recipe.denoiser.network.config.out == 3
    assert classifier_free.PRESETS["imagenet128"].config.blend == 0.2
