"""Flow matching and reflow: the loss, its times, the solvers, pairs of a frozen base, straighter paths (spec 12)."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sfumato.core import times
from sfumato.core.oracle import Gaussian, Mixture
from sfumato.core.pairs import Pairs
from sfumato.core.random import Seeds
from sfumato.core.schedules import Flow
from sfumato.engine import load
from sfumato.engine.state import begin
from sfumato.engine.train import fresh, steps
from sfumato.errors import UserError
from sfumato.papers.flow_matching import PRESETS, Config, FlowMatching
from sfumato.recipe import Ask, Loss
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.ode import Euler, Heun, share
from tests.engine.compare import same
from tests.engine.toy import Pictures, options, train
from tests.papers.tools import LEAST, NAMES, SMALL, Oracle, at, loud

TINY = replace(SMALL, groups=0)


def recipe_of(classes=(), **config):
    return loud(FlowMatching(Config((1, 8, 8), classes, TINY, **config)))


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
def test_loss_and_gradient_are_the_papers(kind):
    """|v(x_t, 1000 t) - (eps - x0)|^2 with x_t = (1 - t) x0 + t eps, in float64."""
    recipe = recipe_of(t=kind, t_mean=0.3, t_std=0.9).double()
    x, rng = Seeds(5).normal((4, 1, 8, 8), dtype=torch.float64).clamp(-1, 1), at(range(4)).rng
    if kind == "uniform":
        t = times.low_discrepancy(rng)
    else:
        t = torch.sigmoid(0.3 + 0.9 * rng.normal((4,), dtype=torch.float64))
    noise, c = rng.normal(x.shape, dtype=torch.float64), t.reshape(-1, 1, 1, 1)
    out = recipe.denoiser.network((1 - c) * x + c * noise, (1000 * t).float())
    expected = (out - (noise - x)).square().mean()
    found = recipe.loss({"image": x}, at(range(4)))
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-6) and torch.equal(found.t, t)
    theirs = torch.autograd.grad(expected, list(recipe.parameters()))
    ours = torch.autograd.grad(found.value, list(recipe.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-9) for a, b in zip(ours, theirs, strict=True))


def test_times_of_training():
    uniform = recipe_of().draw(Seeds.at(0, range(1000))).sort().values
    assert float((uniform - torch.linspace(0, 1, 1000, dtype=torch.float64)).abs().max()) < 0.01
    logit = recipe_of(t="logit_normal", t_mean=-0.5, t_std=0.8).draw(Seeds.at(0, range(4000))).logit()
    assert abs(float(logit.mean()) + 0.5) < 0.05 and abs(float(logit.std()) - 0.8) < 0.04


@pytest.mark.parametrize(("steps", "end"), [(10, 0.430896973), (100, 0.492795218), (1000, 0.499413060)])
def test_euler_on_a_gaussian(steps, end):
    """Spec 12.5: data N(0, 0.25), x = 1 at the start. There the code starts at 1e-3 and goes the whole length."""
    oracle, h = Gaussian(Flow(), 0.0, 0.5), 1 / steps
    x = torch.ones(1, 1, dtype=torch.float64)
    for i in range(steps):
        t = i / steps * (1 - 1e-3) + 1e-3
        x = x - h * oracle(x, 1 - t).velocity
    assert float(x) == pytest.approx(end, abs=2e-9)
    ours = float(Euler(steps)(oracle, torch.ones(1, 1, dtype=torch.float64)))
    assert ours == pytest.approx(0.5, abs=0.9 / steps)


def test_its_solvers():
    assert recipe_of().sampler() == Heun(25, times.uniform, clock=share) and recipe_of().sampler().calls() == 49
    assert recipe_of(solver="euler", steps=7).sampler() == Euler(7) and recipe_of(solver="ode45").sampler() == ODE45()


# -- reflow ------------------------------------------------------------------------------------------------------------


def reflow_of(base, **config):
    recipe = FlowMatching(replace(base.config, stage="reflow", **config))
    recipe.adopt(base)
    return recipe


def test_it_starts_as_its_base_and_only_the_student_trains():
    base = recipe_of(NAMES)
    recipe = reflow_of(base).train()
    x, t = Seeds(0).normal((2, 1, 8, 8)), torch.tensor([0.3, 0.7], dtype=torch.float64)
    for model in (recipe, recipe.teacher):
        assert torch.equal(model.denoiser(x, t).velocity, base.denoiser(x, t).velocity)
        assert torch.equal(model.label.embedding.weight, base.label.embedding.weight)
    trained = {id(p) for phase in recipe.phases().values() for p in phase.parameters}
    own = {id(p) for part in (recipe.denoiser, recipe.label) for p in part.parameters()}
    assert trained == own and not recipe.teacher.training


def test_pairs_are_the_bases_and_keyed_by_position():
    """Noise of the number, data where the base's flow ends, told the class of the number."""
    base = recipe_of(NAMES)
    recipe = reflow_of(base, pairs=64, pair_steps=6)
    recipe.after(at(range(40, 48)), Loss(torch.zeros(())))
    assert len(recipe.pool) == 8 and recipe.pool.numbers[:8].tolist() == list(range(40, 48))
    numbers = torch.tensor([44, 41])
    noise, told = Pairs.noise(0, numbers.tolist(), (1, 8, 8)), base.label(numbers % 3)
    expected = Heun(6, times.uniform, clock=share)(base.denoiser.given(told), noise)
    assert torch.allclose(recipe.pool.ends[[4, 1]].float(), expected, atol=2e-3 * float(expected.abs().max()))
    assert torch.allclose(recipe.joined(0, numbers), expected, atol=1e-5)


def test_reflow_is_the_loss_on_pairs():
    recipe = reflow_of(recipe_of(), pairs=64)
    recipe.after(at(range(16)), Loss(torch.zeros(())))
    found, rng = recipe.loss({"image": torch.zeros(4, 1, 8, 8)}, at(range(4))), at(range(4)).rng
    t, pair = times.low_discrepancy(rng), recipe.pool.draw(rng)
    c = t.reshape(-1, 1, 1, 1).float()
    out = recipe.denoiser.network((1 - c) * pair.data + c * pair.noise, (1000 * t).float())
    assert found.value.item() == pytest.approx((out - (pair.noise - pair.data)).square().mean().item(), rel=1e-5)


def test_pairs_come_at_first_in_every_step_and_then_now_and_then():
    recipe = reflow_of(recipe_of(), pairs=512, reuse=4, pair_steps=1)
    made = []
    for step in range(28):
        recipe.after(at(range(2 * step, 2 * step + 2), step), Loss(torch.zeros(())))
        made.append(int(recipe.pool.made) // 2)
    assert made == [*range(1, 9), *sorted([9, 10, 11, 12, 13] * 4)]


def test_reflow_needs_a_base():
    with pytest.raises(UserError, match="flow_matching"):
        begin(FlowMatching(Config((1, 8, 8), network=TINY, stage="reflow")), None)
    assert FlowMatching.base(Config()) == ()


def test_runs_resume_exactly_and_end_without_scaffold(tmp_path):
    data, config = Pictures(shape=(1, 8, 8)), Config((1, 8, 8), network=LEAST, times=500.0)
    train(fresh("flow_matching", config, 0), options(tmp_path / "first", steps=4), data=data)
    straight = FlowMatching.upon(Config(stage="reflow", reuse=3, pairs=40, pair_steps=2), config)
    assert straight.times == 500.0
    chosen = {"steps": 24, "save_every": 5, "init_from": tmp_path / "first"}
    train(fresh("flow_matching", straight, 0), options(tmp_path / "whole", **chosen), data=data)
    run = steps(fresh("flow_matching", straight, 0), data, options(tmp_path / "broken", **chosen))
    for _ in range(18):
        next(run)
    run.close()
    train(fresh("flow_matching", straight, 0), options(tmp_path / "broken", **chosen), data=data, resume=True)
    assert same(tmp_path / "whole", tmp_path / "broken")
    final = load(tmp_path / "whole")
    assert {name.split(".")[0] for name in final.state_dict()} == {"denoiser"}
    *_, state = final.sample(Ask(2), rng=Seeds(0))
    assert state.t == 0.0
    again = reflow_of(final)  # and a straightened run can be straightened again
    assert torch.equal(again.denoiser.network.decoder.head.weight, final.denoiser.network.decoder.head.weight)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, time):
        time = time.expand(len(x))[:, None] / 1000
        return self.layers(torch.cat([x.flatten(1), time, (3 * time).sin(), (3 * time).cos()], 1)).reshape(x.shape)


class Flat(FlowMatching):
    """The recipe with a small network for points of the plane."""

    def make_network(self, **sizes):
        return MLP()


def test_reflow_straightens():
    """A mixture in the plane, an exact base: one step of Euler is far off on its curved flow, and near on the flow that
    reflow learnt, whose paths end where the base's do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = Flat(Config((2, 1), network=TINY, stage="reflow", pairs=2048, reuse=4))
    means = torch.tensor([[[0.8], [0.0]], [[-0.5], [0.6]], [[-0.5], [-0.6]]])
    oracle = Mixture(Flow(), means, torch.full((3,), 0.15))
    recipe.teacher = Oracle(oracle)
    optimiser, total = torch.optim.Adam([p for p in recipe.parameters() if p.requires_grad], lr=4e-3), 600
    for step in range(total):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - step / total)
        place = at(range(64 * step, 64 * step + 64), step, total)
        loss = recipe.loss({"image": means[torch.arange(64) % 3]}, place)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
        recipe.after(place, loss)
    x1 = Seeds(10_000).normal((512, 2, 1))
    ends = Heun(100, times.uniform, clock=share)(oracle, x1)

    def off(denoiser):
        return float((Euler(1)(denoiser, x1) - ends).square().flatten(1).sum(1).mean().sqrt())

    def bend(denoiser):
        """Liu et al. eq. 6: how far the velocity on the way is from that of the straight line."""
        *_, last = (states := list(Euler(40).trajectory(denoiser, x1)))
        line = x1 - last.x
        return float(sum((s.estimate.velocity - line).square().flatten(1).sum(1).mean() for s in states) / 40)

    assert off(recipe.denoiser) < 0.45 * off(oracle), (off(recipe.denoiser), off(oracle))
    assert bend(recipe.denoiser) < 0.3 * bend(oracle), (bend(recipe.denoiser), bend(oracle))


# -- presets -----------------------------------------------------------------------------------------------------------


def test_the_authors_network():
    with torch.device("meta"):
        recipe = FlowMatching(PRESETS["cifar10"].config)
    assert round(sum(p.numel() for p in recipe.parameters()) / 1e6, 3) == 61.804  # DDPM++
    training = PRESETS["cifar10"].training
    assert (training.batch, training.lr, training.ema, training.ema_rule) == (128, 2e-4, 0.999999, "warmup")


@pytest.mark.parametrize(("field", "value"), [("times", 0.0), ("t_std", 0.0), ("pairs", 0), ("reuse", 0), ("steps", 0)])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        replace(Config(), **{field: value})
