"""Discriminator guidance: its loss, its times, its pool of pictures, and the log ratio of two normal models."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sfumato.core import guidance, times
from sfumato.core.oracle import Gaussian
from sfumato.core.random import Seeds
from sfumato.core.schedules import VP
from sfumato.engine import load
from sfumato.engine.state import begin
from sfumato.engine.train import fresh, steps
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.papers import cld, ddpm, edm, score_sde
from sfumato.papers.discriminator_guidance import SURE, Config, DiscriminatorGuidance
from sfumato.recipe import Ask
from sfumato.samplers.ode import Heun
from tests.engine.compare import same
from tests.engine.toy import Pictures, options, train
from tests.papers.tools import LEAST, NAMES, at, loud

READER = UNetConfig(widths=(16, 16), blocks=1, attention=(1,), head_width=8, groups=0)
TABLE = ddpm.Config((1, 8, 8), network=LEAST, schedule="linear", steps=3)


def recipe_of(base=TABLE, **more):
    config = DiscriminatorGuidance.upon(Config(reader=READER, fakes=8, each=4, **more), base)
    return loud(DiscriminatorGuidance(config))


def test_the_loss_is_binary_cross_entropy_of_real_and_made_pictures():
    """Written out for a table with classes: both halves noised apart, told their labels; with the gradient."""
    recipe = recipe_of(replace(TABLE, classes=NAMES))
    recipe.pool.grow(8)
    x, label, place = Seeds(5).normal((4, 1, 8, 8)).clamp(-1, 1), torch.tensor([0, 2, 1, 0]), at(range(4))
    i = place.rng.integers(8)
    made = recipe.pool.pictures[i].float() / 127.5 - 1
    bar = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)
    logits, process = [], recipe.process
    for images, told in ((x, label), (made, i % 3)):
        t = recipe.draw(place.rng)
        eps = place.rng.normal(x.shape)
        point = process.at(t)
        assert torch.allclose(process.at((t * 1000).ceil() / 1000).alpha ** 2, bar[(t * 1000).ceil().long() - 1])
        xt = point.alpha.float().reshape(-1, 1, 1, 1) * images + point.sigma.float().reshape(-1, 1, 1, 1) * eps
        vector = recipe.label(told).vector
        logits.append(recipe.network(xt, (1000 * t - 1).clamp(min=0).float(), vector)[:, 0])
    expected = (F.softplus(-logits[0]).mean() + F.softplus(logits[1]).mean()) / 2
    found = recipe.loss({"image": x, "label": label}, at(range(4)))
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = [p for phase in recipe.phases().values() for p in phase.parameters]
    assert not {id(p) for p in recipe.pool.run.parameters()} & {id(p) for p in weights}
    theirs, ours = torch.autograd.grad(expected, weights), torch.autograd.grad(found.value, weights)
    assert all(torch.allclose(p, q, rtol=1e-3, atol=1e-6) for p, q in zip(ours, theirs, strict=True))


def test_times_have_the_density_of_g_squared_over_sigma_squared():
    """Of the VP process, whose antiderivative is ln(e^B - 1): 20,000 draws against the exact distribution."""
    recipe = recipe_of(score_sde.Config((1, 8, 8), network=LEAST, sde="vp"))
    assert isinstance(recipe.process, VP)
    t = recipe.draw(Seeds.at(0, range(20_000))).sort().values

    def antiderivative(t):
        return torch.expm1(0.1 * t + 0.5 * 19.9 * t * t).log()

    ends = antiderivative(torch.tensor([recipe.process.first, 1.0], dtype=torch.float64))
    exact = (antiderivative(t) - ends[0]) / (ends[1] - ends[0])
    far = float((exact - (torch.arange(20_000) + 0.5) / 20_000).abs().max())
    assert far < 1.63 / math.sqrt(20_000)  # Kolmogorov, 1 %


def test_pictures_are_a_function_of_their_number():
    one, two = recipe_of(), recipe_of()
    one.pool.grow(4)
    one.pool.grow(100)
    two.pool.grow(8)
    assert int(one.pool.count) == int(two.pool.count) == 8
    assert int((one.pool.pictures.int() - two.pool.pictures.int()).abs().max()) <= 1
    *_, state = one.pool.run.sample(Ask(1), rng=Seeds(6))
    expected = (one.pool.run.picture(state)[0] * 255).round()
    assert float((one.pool.pictures[6].float() - expected).abs().max()) <= 1


def test_a_run_resumes_exactly_while_it_makes_pictures_and_leaves_them_out_at_the_end(tmp_path):
    data = Pictures(shape=(1, 8, 8))
    train(fresh("ddpm", TABLE, 0), options(tmp_path / "base", steps=2), data=data)
    config = DiscriminatorGuidance.upon(Config(reader=READER, fakes=40, each=4), TABLE)
    chosen = {"steps": 8, "save_every": 4, "init_from": tmp_path / "base"}
    train(fresh("discriminator_guidance", config, 0), options(tmp_path / "whole", **chosen), data=data)
    run = steps(fresh("discriminator_guidance", config, 0), data, options(tmp_path / "broken", **chosen))
    for _ in range(5):
        next(run)
    run.close()
    again = fresh("discriminator_guidance", config, 0)
    train(again, options(tmp_path / "broken", **chosen), data=data, resume=True)
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert int(again.pool.count) == 36  # four to begin with and after every step
    final = load(tmp_path / "whole")
    assert not [name for name in final.state_dict() if name.startswith("pool")]
    x = Seeds(0).normal((2, 1, 8, 8))
    assert torch.isfinite(guidance.tilt(load(tmp_path / "base").denoiser, final.log_ratio())(x, 0.5).pull).all()
    with pytest.raises(UserError, match="left out"):
        final.loss({"image": x}, at(range(2)))
    with pytest.raises(UserError, match="makes no pictures"):
        next(iter(final.sample(Ask(1), rng=Seeds(0))))


def test_certainty_pulls_no_further_and_noise_below_the_window_is_left_alone():
    recipe = recipe_of(edm.Config((1, 8, 8), network=LEAST))
    x = Seeds(1).normal((3, 1, 8, 8)).requires_grad_()
    point = recipe.process.at(0.5)
    ratio = recipe.log_ratio()
    assert ratio(x, point).abs().max() < SURE == pytest.approx(11.5129, abs=1e-4)
    (slope,) = torch.autograd.grad(ratio(x, point).sum(), x)
    with torch.no_grad():
        recipe.network.pool.project.bias += 100
    (none,) = torch.autograd.grad(ratio(x, point).sum(), x)
    assert slope.abs().max() > 0 and none.abs().max() == 0
    low, high = recipe.window
    assert recipe.process.at(low).ratio == pytest.approx(0.044688, rel=1e-6)
    assert recipe.process.at(high).ratio == pytest.approx(8.0, rel=1e-6)  # the root of 1 x 8 x 8


def test_what_it_is_trained_upon():
    with pytest.raises(UserError, match="--from RUN"):
        DiscriminatorGuidance(Config())
    assert "cld" not in DiscriminatorGuidance.base(Config()) and "edm" in DiscriminatorGuidance.base(Config())
    with pytest.raises(UserError, match="cld"):
        recipe_of(cld.Config((1, 8, 8), network=LEAST))
    with pytest.raises(UserError, match="trained upon"):
        begin(recipe_of(), None)
    with pytest.raises(UserError, match="each is at most"):
        Config(fakes=3, each=4)


class MLP(torch.nn.Module):
    """A logit of points of the line."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(6, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1)
        )

    def forward(self, x, time, vector=None):
        x, u = x.flatten(1), time.expand(len(x))[:, None]  # unit variance, and log(sigma) / 4
        return self.layers(torch.cat([x, x**2, u, u**2, x * u, x**2 * u], 1))


class Exact(torch.nn.Module):
    """Pictures of a model that is normal, in the place of a pool."""

    def drawn(self, rng):
        return 0.5 * rng.normal((len(rng), 1, 1)), torch.zeros(len(rng), dtype=torch.long)


def test_between_two_normal_models_it_learns_the_log_ratio_and_mends_the_one():
    """The model N(0, 0.5^2), the data N(0.2, 0.25^2): the learnt pull against the exact one where data are, and Heun's
    samples guided by it, whose deviation and mean come to the data's."""
    base = edm.Config((1, 1), network=LEAST)
    recipe = DiscriminatorGuidance(DiscriminatorGuidance.upon(Config(reader=LEAST, pool="average"), base))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe.network, recipe.pool = MLP(), Exact()
    optimiser, total, n = torch.optim.AdamW(recipe.network.parameters(), lr=1e-2, weight_decay=1e-7), 500, 128
    for step in range(total):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / total)
        image = 0.2 + 0.25 * Seeds(step).normal((1, n)).reshape(n, 1, 1)
        loss = recipe.loss({"image": image}, at(range(n * step, n * step + n), step, total))
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
    model, data = (Gaussian(recipe.process, m, s) for m, s in ((0.0, 0.5), (0.2, 0.25)))
    for sigma in (0.1, 0.5, 2.0):
        point = recipe.process.at(float(recipe.process.time(torch.tensor(-2 * math.log(sigma)))))
        x = 0.2 + math.hypot(0.25, sigma) * torch.linspace(-1.5, 1.5, 13)[:, None, None]
        truth = data.log_prob(x, point) - model.log_prob(x, point)
        assert float((recipe.log_ratio()(x, point).detach() - truth).abs().max()) < 0.35, sigma
    x = recipe.process.prior((2000, 1, 1), Seeds(0))
    guided = guidance.tilt(model, recipe.log_ratio(), interval=recipe.window)
    plain, made = (Heun(18, times.power)(denoiser, x) for denoiser in (model, guided))
    assert float(plain.std()) == pytest.approx(0.5, abs=0.04)
    assert float(made.std()) == pytest.approx(0.25, abs=0.06) and float(made.mean()) == pytest.approx(0.2, abs=0.06)
