"""EDM: preconditioning, loss and noise levels of table 1, the sampler's grid, augmentation that is told (spec 11)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.core import parametrisation
from sfumato.core.oracle import Gaussian
from sfumato.core.random import Seeds
from sfumato.engine import ema
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.papers.edm import EDM, PRESETS, Config
from sfumato.recipe import Ask
from tests.papers.tools import NAMES, SMALL, at, loud

TINY = replace(SMALL, groups=0)


def recipe_of(**config):
    return loud(EDM(Config((1, 8, 8), network=TINY, **config)))


@pytest.mark.parametrize("sd", [0.5, 0.7])
def test_loss_and_gradient_are_the_papers(sd):
    """lambda(s) |c_skip y + c_out F(c_in y, ln(s) / 4) - x|^2, every coefficient written out, in float64."""
    recipe = recipe_of(data_std=sd).double()
    x = Seeds(5).normal((4, 1, 8, 8), dtype=torch.float64).clamp(-1, 1)
    rng = at(range(4)).rng
    s = torch.exp(-1.2 + 1.2 * rng.normal((4,), dtype=torch.float64))
    noise, c = rng.normal(x.shape, dtype=torch.float64), s.reshape(-1, 1, 1, 1)
    y = x + c * noise
    root = torch.sqrt(c**2 + sd**2)
    out = recipe.denoiser.network(y / root, (s.log() / 4).float())
    denoised = sd**2 / (c**2 + sd**2) * y + c * sd / root * out
    expected = ((c**2 + sd**2) / (c * sd) ** 2 * (denoised - x) ** 2).mean()
    found = recipe.loss({"image": x}, at(range(4)))
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(found.t, (s / 0.002).log() / math.log(40_000), rtol=1e-12)
    theirs = torch.autograd.grad(expected, list(recipe.parameters()))
    ours = torch.autograd.grad(found.value, list(recipe.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-9) for a, b in zip(ours, theirs, strict=True))


def test_noise_levels_are_log_normal_and_in_range():
    recipe = recipe_of(P_mean=-0.4, P_std=1.0)
    t = recipe.draw(Seeds.at(0, range(4000)))
    log = (80 * t).log()
    assert abs(float(log.mean()) + 0.4) < 0.06 and abs(float(log.std()) - 1.0) < 0.04 and float(t.max()) <= 1.0
    assert float(recipe_of(P_mean=10.0).draw(Seeds.at(0, range(9))).max()) == 1.0


@pytest.mark.parametrize("sd", [0.5, 0.7])
def test_an_untrained_network_costs_one_per_pixel(sd):
    """F = 0: D = c_skip y, whose weighted error is 1 where the data's deviation is data_std."""
    recipe = EDM(Config((1, 8, 8), network=TINY, data_std=sd))  # the last layer of a new network gives zeros, nearly
    with torch.no_grad():
        recipe.denoiser.network.decoder.head.weight.zero_()
    x = sd * Seeds(1).normal((512, 1, 8, 8))
    value = recipe.loss({"image": x}, at(range(512))).value
    assert float(value.detach()) == pytest.approx(1.0, rel=0.03)
    y = Seeds(2).normal((3, 1, 8, 8))
    assert torch.allclose(recipe.denoiser(y, 2.0 / 80).x0, sd**2 / (4.0 + sd**2) * y, rtol=1e-6)


def test_the_grid_is_the_papers():
    sampler, process = EDM(Config((1, 8, 8), network=TINY)).sampler(), recipe_of().denoiser.process
    sigma = 80 * sampler.spacing(process, sampler.steps, 1.0, 0.0)
    table = [80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.4009, 5.3152, 3.2568, 1.9233, 1.0882]
    table += [0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.002, 0]
    assert np.allclose(sigma.numpy(), table, rtol=2e-4, atol=6e-5) and sampler.calls() == 35


def test_the_sampler_on_a_gaussian():
    """Spec 11.6: from x = 80 at sigma 80, data of deviation 0.5; the exact end is 0.499990234661."""
    recipe = recipe_of()
    oracle, x1 = Gaussian(recipe.denoiser.process, 0.0, 0.5), torch.full((1, 1), 80.0, dtype=torch.float64)
    for steps, error in ((10, 0.2196), (18, 0.0553), (36, 0.0122), (72, 0.00287)):
        end = float(replace(recipe.sampler(), steps=steps)(oracle, x1))
        assert abs(end / 0.499990234661 - 1) == pytest.approx(error, rel=0.005)


def test_churn_of_the_imagenet_preset_keeps_the_variance():
    config = PRESETS["imagenet64"].config
    sampler = EDM(replace(config, shape=(1, 8, 8), network=TINY)).sampler()
    assert (sampler.calls(), sampler.churn, sampler.churn_min, sampler.churn_max, sampler.noise) == (
        511,
        40.0,
        0.05,
        50.0,
        1.003,
    )
    oracle = Gaussian(recipe_of().denoiser.process, 0.0, 0.5)
    x1 = oracle.process.prior((1, 4000), Seeds(0), dtype=torch.float64)
    end = replace(sampler, steps=64, noise=1.0)(oracle, x1, rng=Seeds(1))
    assert float(end.std()) == pytest.approx(0.5, rel=0.04)


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("cifar10", 0, 55.734),
        ("cifar10", 10, 55.735),
        ("ffhq64", 0, 61.806),
        ("afhqv2", 0, 61.806),
        ("imagenet64", 1000, 295.900),  # 768 more than theirs: the embedding of "not told"
    ],
)
def test_the_papers_networks(name, classes, millions):
    with torch.device("meta"):
        recipe = EDM(replace(PRESETS[name].config, classes=tuple(map(str, range(classes)))))
    assert round(sum(p.numel() for p in recipe.parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("name", "images", "batch", "lr", "half_life"),
    [("cifar10", 200e6, 512, 1e-3, 5e5), ("ffhq64", 200e6, 256, 2e-4, 5e5), ("imagenet64", 2500e6, 4096, 1e-4, 5e7)],
)
def test_the_papers_training(name, images, batch, lr, half_life):
    t = PRESETS[name].training
    assert abs(t.steps * batch - images) <= batch and abs(t.warmup * batch - 10e6) <= batch
    assert (t.batch, t.lr, t.ema, t.ema_rule, t.clip) == (batch, lr, half_life, "images", 0.0)
    assert (t.betas, t.eps, t.weight_decay) == ((0.9, 0.999), 1e-8, 0.0)


def test_the_average_forgets_as_in_the_paper():
    """Half-life min(500,000, 5 % of the images seen before the step)."""
    assert ema.RULES["images"](5e5, 1, 0, 512) == 0.0
    for seen, half_life in ((512, 25.6), (1_000_000, 5e4), (10_000_000, 5e5), (100_000_000, 5e5)):
        assert ema.RULES["images"](5e5, 7, seen, 512) == pytest.approx(0.5 ** (512 / half_life), rel=1e-12)


# -- augmentation ------------------------------------------------------------------------------------------------------


def vectors(recipe):
    """What the network is told, call by call."""
    seen = []
    recipe.denoiser.network.register_forward_pre_hook(
        lambda net, args, kwargs: seen.append(kwargs.get("vector")), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("classes", [(), NAMES])
def test_the_network_is_told_of_augmentation_in_training_only(classes):
    recipe = loud(EDM(Config((1, 8, 8), classes, TINY, augment=0.3, drop=0.0))).train()
    seen, batch = vectors(recipe), {"image": Seeds(1).normal((6, 1, 8, 8)), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    recipe.loss(batch, at(range(6)))
    _, done = recipe.augment.pictures(batch["image"], at(range(6)).rng)
    label = recipe.label.embedding(batch["label"]) if classes else 0.0
    assert done.any() and torch.allclose(seen[0], done @ recipe.augment.linear.weight.T + label, atol=1e-6)
    recipe.eval()
    recipe.loss(batch, at(range(6)))
    list(recipe.sample(Ask(2, labels=(1,) if classes else None), rng=Seeds(0)))
    for vector in seen[1:]:
        assert vector is None or all(any(torch.equal(row, e) for e in recipe.label.embedding.weight) for row in vector)


def test_an_augmented_example_costs_the_same_in_every_batch():
    recipe = recipe_of(augment=0.5).train()
    x = Seeds(3).normal((6, 1, 8, 8))
    whole = recipe.loss({"image": x}, at(range(10, 16))).per_sample
    part = recipe.loss({"image": x[2:5]}, at(range(12, 15))).per_sample
    assert torch.allclose(whole[2:5], part, rtol=1e-4)


def test_one_deviation_for_network_and_loss():
    recipe = recipe_of(data_std=0.7)
    point = recipe.denoiser.process.at(torch.tensor([0.01, 0.3], dtype=torch.float64))
    c = parametrisation.edm(0.7)(recipe.denoiser.process, point)
    assert torch.allclose(recipe.weight(recipe.denoiser.process, point) * c.out**2, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("field", "value"),
    [("data_std", 0.0), ("low", 100.0), ("P_std", 0.0), ("augment", 2.0), ("churn", -1.0), ("steps", 0)],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        replace(Config(), **{field: value})


def test_augmentation_is_for_pictures():
    with pytest.raises(UserError, match="two sides"):
        Config((1, 64), augment=0.1)


def test_it_learns():
    """Two tones: a few steps, and samples are of one or the other."""
    network = UNetConfig(widths=(16, 16), blocks=1, attention=(), attend_middle=False, groups=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = EDM(Config((1, 8, 8), ("dark", "light"), network, data_std=0.6))
    optimiser, labels = torch.optim.Adam(recipe.parameters(), lr=3e-3), torch.arange(16) % 2
    x0 = (labels * 1.2 - 0.6).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    for step in range(100):
        loss = recipe.loss({"image": x0, "label": labels}, at(range(16 * step, 16 * step + 16))).value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    *_, state = recipe.sample(Ask(4, labels=(0, 1, 1, 0)), rng=Seeds(0))
    tone = recipe.picture(state).flatten(1).mean(1)
    assert torch.allclose(tone, torch.tensor([0.2, 0.8, 0.8, 0.2]), atol=0.12), tone
