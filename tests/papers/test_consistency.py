"""Consistency models: both losses, their targets and teachers, and distillation of an exact flow (spec 12)."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sfumato.core import times
from sfumato.core.oracle import Mixture
from sfumato.core.random import Seeds
from sfumato.engine import load
from sfumato.engine.state import begin
from sfumato.engine.train import fresh, steps
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.papers.consistency import PRESETS, Config, Consistency
from sfumato.papers.edm import EDM
from sfumato.papers.edm import Config as Teacher
from sfumato.recipe import Ask, Loss
from sfumato.registry import build, config_dict
from sfumato.samplers.consistency import Consistency as Few
from sfumato.samplers.ode import Heun
from tests.engine.compare import same
from tests.engine.toy import Pictures, options, train
from tests.papers.tools import LEAST, NAMES, SMALL, Oracle, at, loud

TINY = replace(SMALL, groups=0)


def recipe_of(classes=(), **config):
    recipe = loud(Consistency(Config((1, 8, 8), classes, TINY, **config)))
    with torch.no_grad():  # a target and a teacher that are not the student
        for i, p in enumerate([*recipe.target.parameters(), *(recipe.teacher.parameters() if recipe.teacher else ())]):
            p.copy_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 + i)))
    return recipe


def f(network, x, s, low=0.002, sd=0.5):
    c = s.reshape(-1, 1, 1, 1)
    out = network(x / torch.sqrt(c**2 + sd**2), (s.log() / 4).float())
    return sd**2 / ((c - low) ** 2 + sd**2) * x + (c - low) * sd / torch.sqrt(c**2 + sd**2) * out


def teacher_of(network, sd=0.5):
    def denoise(x, s):
        c = s.reshape(-1, 1, 1, 1)
        out = network(x / torch.sqrt(c**2 + sd**2), (s.log() / 4).float())
        return sd**2 / (c**2 + sd**2) * x + c * sd / torch.sqrt(c**2 + sd**2) * out

    return denoise


def neighbours(rng, n, N):
    """Levels t > s of the rho-7 grid, drawn as the recipe draws them."""
    i = rng.integers(N - 1, n).double()
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    return tuple((ends[0] + k / (N - 1) * (ends[1] - ends[0])) ** 7 for k in (i, i + 1))


def test_distillation_is_algorithm_2():
    """Written out in float64: x_t, one Heun step of the teacher to s, the target's f there, the mean square."""
    recipe = recipe_of(levels=18).double()
    x, rng = Seeds(5).normal((4, 1, 8, 8), dtype=torch.float64).clamp(-1, 1), at(range(4)).rng
    t, s = neighbours(rng, 4, 18)
    a, b = t.reshape(-1, 1, 1, 1), s.reshape(-1, 1, 1, 1)
    xt, teacher = x + a * rng.normal(x.shape, dtype=torch.float64), teacher_of(recipe.teacher.denoiser.network)
    with torch.no_grad():
        slope = (xt - teacher(xt, t)) / a
        euler = xt + (b - a) * slope
        xs = xt + (b - a) * (slope + (euler - teacher(euler, s)) / b) / 2
        goal = f(recipe.target.denoiser.network, xs, s)
    expected = (f(recipe.denoiser.network, xt, t) - goal).square().mean()
    found = recipe.loss({"image": x}, at(range(4)))
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-6)
    weights = [p for p in recipe.parameters() if p.requires_grad]
    theirs, ours = torch.autograd.grad(expected, weights), torch.autograd.grad(found.value, weights)
    assert all(torch.allclose(p, q, rtol=1e-5, atol=1e-9) for p, q in zip(ours, theirs, strict=True))
    assert len(weights) == len(list(recipe.denoiser.parameters()))


@pytest.mark.parametrize("improved", [False, True])
def test_training_is_algorithm_3(improved):
    """The same noise at both levels; with iCT's metric and weight."""
    options = {"metric": "huber", "weight": "gap"} if improved else {}
    recipe = recipe_of(mode="training", growth="root", levels=150, **options).double()
    x, place = Seeds(5).normal((4, 1, 8, 8), dtype=torch.float64).clamp(-1, 1), at(range(4), step=5)
    N = math.ceil(math.sqrt(0.5 * (151**2 - 4) + 4) - 1) + 1
    t, s = neighbours(place.rng, 4, N)
    noise = place.rng.normal(x.shape, dtype=torch.float64)
    a, b = t.reshape(-1, 1, 1, 1), s.reshape(-1, 1, 1, 1)
    guess = f(recipe.denoiser.network, x + a * noise, t)
    square = (guess - f(recipe.target.denoiser.network, x + b * noise, s)).square().sum((1, 2, 3))
    c = 0.00054 * 8
    expected = (((square + c**2).sqrt() - c) / (t - s)) if improved else square / 64
    found = recipe.loss({"image": x}, at(range(4), step=5))
    assert recipe.teacher is None and recipe.count(at(range(4), step=5)) == N
    assert torch.allclose(found.per_sample, expected.detach(), rtol=1e-6)


def test_an_example_costs_the_same_in_every_batch_and_labels_are_withheld_from_all_alike():
    recipe = recipe_of(NAMES, drop=0.5)
    told = []
    for module in (recipe.label, recipe.target.label, recipe.teacher.label):
        module.register_forward_pre_hook(lambda label, args: told.append(args[0]))
    batch = {"image": Seeds(3).normal((6, 1, 8, 8)), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    whole = recipe.loss(batch, at(range(10, 16))).per_sample
    assert len(told) == 3 and all(torch.equal(told[0], other) for other in told) and (told[0] == 3).any()
    part = recipe.loss({name: value[2:5] for name, value in batch.items()}, at(range(12, 15))).per_sample
    assert torch.allclose(whole[2:5], part, rtol=1e-4)


def test_student_and_target_drop_the_same():
    """Equal weights at levels that are nearly one: their networks agree only under the same masks."""
    network = replace(TINY, dropout=0.5)
    recipe = loud(Consistency(Config((1, 8, 8), network=network, mode="training", low=79.99, levels=2))).train()
    recipe.target.load_state_dict(nn.ModuleDict({"denoiser": recipe.denoiser}).state_dict())
    seen = []
    for model in (recipe, recipe.target):
        model.denoiser.network.register_forward_hook(lambda net, args, out: seen.append(out.detach()))
    recipe.loss({"image": Seeds(0).normal((4, 1, 8, 8))}, at(range(4)))
    recipe.loss({"image": Seeds(0).normal((4, 1, 8, 8))}, at(range(4)))
    assert torch.allclose(seen[0], seen[1], atol=1e-3) and not torch.allclose(seen[1], seen[3], atol=1e-3)


def test_the_teacher_never_drops_and_only_the_student_trains():
    recipe = recipe_of().train()
    assert recipe.training and not recipe.teacher.training
    trained = {id(p) for phase in recipe.phases().values() for p in phase.parameters}
    assert trained == {id(p) for p in recipe.denoiser.parameters()}


def test_the_target_follows():
    recipe = recipe_of(NAMES, mu=0.9)
    before, model = copy.deepcopy(recipe.target), nn.ModuleDict({"denoiser": recipe.denoiser, "label": recipe.label})
    recipe.after(at(range(4)), Loss(torch.zeros(())))
    for name, p in recipe.target.named_parameters():
        expected = 0.9 * before.get_parameter(name) + 0.1 * model.get_parameter(name)
        assert torch.allclose(p, expected, atol=1e-6), name
    recipe = recipe_of(mode="training", growth="exponential", fewest=10, levels=80, mu=0.0)
    recipe.after(at(range(4)), Loss(torch.zeros(())))  # iCT: the target is the student
    assert all(torch.equal(p, q) for p, q in zip(recipe.target.parameters(), recipe.denoiser.parameters(), strict=True))


# -- its teacher -------------------------------------------------------------------------------------------------------


def test_it_takes_teacher_student_and_target_from_an_edm_run():
    base = loud(EDM(Teacher((1, 8, 8), NAMES, TINY, data_std=0.7, low=0.01, high=60.0, augment=0.1)))
    config = Consistency.upon(Config(clock="authors"), base.config)
    assert (config.data_std, config.low, config.high, config.clock) == (0.7, 0.01, 60.0, "edm")
    recipe = Consistency(config)
    recipe.adopt(base)
    for model in (recipe, recipe.teacher, recipe.target):
        for name, tensor in base.denoiser.state_dict().items():
            assert torch.equal(model.denoiser.state_dict()[name], tensor)
        assert torch.equal(model.label.embedding.weight, base.label.embedding.weight)
    x = Seeds(0).normal((2, 1, 8, 8))
    assert torch.equal(recipe.teacher.denoiser(x, 0.01).x0, base.denoiser(x, 0.01).x0)


def test_distillation_needs_a_teacher_and_training_none():
    with pytest.raises(UserError, match="edm"):
        begin(recipe_of(), None)
    assert begin(recipe_of(mode="training"), None) == "" and Consistency.base(Config(mode="training")) == ()


def test_runs_resume_exactly_and_end_without_scaffold(tmp_path):
    data = Pictures(shape=(1, 8, 8))
    train(fresh("edm", Teacher((1, 8, 8), network=LEAST), 0), options(tmp_path / "edm", steps=4), data=data)
    config = Consistency.upon(Config(levels=8), Teacher((1, 8, 8), network=LEAST))
    chosen = {"steps": 8, "save_every": 4, "init_from": tmp_path / "edm"}
    train(fresh("consistency", config, 0), options(tmp_path / "whole", **chosen), data=data)
    run = steps(fresh("consistency", config, 0), data, options(tmp_path / "broken", **chosen))
    for _ in range(5):
        next(run)
    run.close()
    train(fresh("consistency", config, 0), options(tmp_path / "broken", **chosen), data=data, resume=True)
    assert same(tmp_path / "whole", tmp_path / "broken")
    final = load(tmp_path / "whole")
    assert not [name for name in final.state_dict() if name.split(".")[0] in ("teacher", "target")]
    *_, state = final.sample(Ask(2), rng=Seeds(0))
    assert state.t == 0.0 and float(state.x.abs().max()) <= 1.0
    with pytest.raises(UserError, match="left out"):
        final.loss({"image": torch.zeros(1, 1, 8, 8)}, at(range(1)))


def test_a_model_that_was_not_made_upon_its_teacher_is_refused(tmp_path):
    teacher = Teacher((1, 8, 8), network=LEAST, data_std=0.3)
    train(fresh("edm", teacher, 0), options(tmp_path / "edm", steps=1), data=Pictures(shape=(1, 8, 8)))
    config = Consistency.upon(Config(), teacher)
    assert config.data_std == 0.3 and Consistency.apart(config, teacher) == ""
    with pytest.raises(UserError, match=r"its data_std must be 0\.3, and not 0\.5"):
        begin(fresh("consistency", replace(config, data_std=0.5), 0), tmp_path / "edm")


def test_fine_tuning_begins_with_a_target_that_is_the_model(tmp_path):
    data = Pictures(shape=(1, 8, 8))
    config = Config(shape=(1, 8, 8), network=LEAST, mode="training")
    train(fresh("consistency", config, 0), options(tmp_path / "first", steps=2), data=data)
    recipe = fresh("consistency", config, 1)
    assert "Starting from" in begin(recipe, tmp_path / "first")
    final = load(tmp_path / "first").denoiser.state_dict()
    for model in (recipe, recipe.target):
        assert all(torch.equal(tensor, final[name]) for name, tensor in model.denoiser.state_dict().items())


# -- what it learns ----------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, x, time):
        time = time.expand(len(x))[:, None]
        return self.layers(torch.cat([x, time, (3 * time).sin(), (3 * time).cos(), (9 * time).sin()], 1))


class Flat(Consistency):
    """The recipe with a small network for points of the plane."""

    def make_network(self, **sizes):
        return MLP()


@pytest.mark.parametrize("mode", ["distillation", "training"])
def test_one_call_learns_where_the_flow_ends(mode):
    """Points around three centres; an exact teacher, or none. The error of one call against the exact ends falls far
    below that of the mean of the data, which is what a denoiser says there."""
    improved = {"growth": "exponential", "fewest": 10, "levels": 20, "mu": 0.0, "weight": "gap"}
    growth = improved if mode == "training" else {"levels": 18, "mu": 0.9}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = Flat(Config((2, 1), mode=mode, data_std=0.6, metric="huber", draw_levels="log_normal", **growth))
    means = torch.tensor([[0.8, 0.0], [-0.5, 0.6], [-0.5, -0.6]])
    oracle = Mixture(recipe.process, means, torch.full((3,), 0.15))
    if mode == "distillation":
        recipe.teacher = Oracle(oracle)
    optimiser, total = torch.optim.Adam([p for p in recipe.parameters() if p.requires_grad], lr=3e-3), 400
    data = means[torch.arange(4096) % 3] + 0.15 * Seeds(7).normal((4096, 2))
    for step in range(total):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / total)
        place = at(range(128 * step, 128 * step + 128), step, total)
        loss = recipe.loss({"image": data[(torch.arange(128) + 128 * step) % 4096]}, place)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
        recipe.after(place, loss)
    x1 = recipe.process.prior((512, 2), Seeds(0))
    ends = Heun(60, times.power)(oracle, x1)
    off = float((Few(1)(recipe.denoiser, x1) - ends).square().mean().sqrt())
    blurred = float((oracle(x1, 1.0).x0 - ends).square().mean().sqrt())
    assert off < 0.65 * blurred, (off, blurred)


# -- presets -----------------------------------------------------------------------------------------------------------


def test_the_authors_presets():
    with torch.device("meta"):
        recipe = Consistency(replace(PRESETS["imagenet64"].config, classes=tuple(map(str, range(1000)))))
    assert round(sum(p.numel() for p in recipe.denoiser.parameters()) / 1e6, 2) == 295.13
    config, training = PRESETS["imagenet64"].config, PRESETS["imagenet64"].training
    assert (config.levels, config.mu, config.clock, training.batch, training.lr) == (40, 0.95, "authors", 2048, 8e-6)
    config, training = PRESETS["imagenet64_training"].config, PRESETS["imagenet64_training"].training
    assert (config.fewest, config.levels, config.mu, training.steps) == (2, 200, 0.95, 800_000)
    assert recipe.sampler() == Few(2)


@pytest.mark.parametrize(
    ("field", "value"), [("mu", 1.5), ("levels", 1), ("low", 90.0), ("steps", 0), ("data_std", 0.0)]
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        replace(Config(), **{field: value})


def test_a_config_of_plain_values_builds_the_same():
    config = Config((1, 8, 8), network=UNetConfig(widths=(16, 16), blocks=1, attention=(), groups=0))
    assert build("consistency", config_dict(config)).config == config
