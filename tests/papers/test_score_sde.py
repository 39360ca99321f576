"""Score SDE: its losses against the official code's and plain computations, its conventions, samplers and presets."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.papers.score_sde import PRESETS, Centred, Config, ScoreSDE
from sfumato.recipe import Ask, Training
from sfumato.registry import outline
from sfumato.samplers.ancestral import DDIM, Ancestral, large
from sfumato.samplers.langevin import PredictorCorrector, langevin_of_batch
from sfumato.samplers.sampler import State
from sfumato.samplers.sde import EulerMaruyama, ReverseDiffusion
from tests.papers.tools import SMALL, at, loud

OFFICIAL = json.loads((Path(__file__).parent.parent / "reference" / "score_sde.json").read_text())
SDES = ("vp", "subvp", "ve")


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def drawing(z):
    """Randomness that gives z."""
    return SimpleNamespace(normal=lambda shape, dtype, device: z.to(dtype))


class Stub(nn.Module):
    """The stub of tests/reference/make_score_sde.py. Where the official network of ve divides by sigma and is told
    sigma, ours answers sigma score and is told log sigma."""

    def __init__(self, exploding):
        super().__init__()
        self.a, self.b = nn.Parameter(tensor(0.7)), nn.Parameter(tensor(-0.4))
        self.exploding = exploding

    def forward(self, x, time):
        time = (time.exp() if self.exploding else time).to(x.dtype).reshape(-1, 1, 1, 1)
        out = self.a * torch.sin(x) + self.b * torch.cos(time / 700)
        return out * time if self.exploding else out


def stubbed(name, **config):
    recipe = ScoreSDE(Config((3, 3, 3), network=SMALL, sde=name, sigma_max=50.0, **config))
    recipe.denoiser.network = Stub(name == "ve")
    return recipe


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [name for name in OFFICIAL["losses"] if "chain" not in name])
def test_loss_and_gradient_equal_the_official_code(case):
    name, weight, reduce = case.split()
    recipe, of = stubbed(name, weight=weight, reduce=reduce), OFFICIAL["losses"][case]
    u, z = map(tensor, of["drawn"])
    x0 = recipe.values(tensor(OFFICIAL["x0"]))
    value = recipe.errors(x0, 1e-5 + (1 - 1e-5) * u, None, drawing(z)).mean()
    value.backward()
    net = recipe.denoiser.network
    assert value.item() == pytest.approx(of["value"], rel=1e-6)
    assert [net.a.grad.item(), net.b.grad.item()] == pytest.approx(of["gradient"], rel=1e-6)


def test_the_chain_of_vp_equals_the_official_code():
    recipe, of = stubbed("vp", continuous=False), OFFICIAL["losses"]["vp chain mean"]
    labels, z = torch.tensor(of["drawn"][0]), tensor(of["drawn"][1])
    value = recipe.errors(tensor(OFFICIAL["x0"]), (labels + 1) / 1000.0, None, drawing(z)).mean()
    assert value.item() == pytest.approx(of["value"], rel=2e-5)  # their table of betas is cast to float32


def test_the_chain_of_ve_equals_the_official_code():
    """Label 0 is the most noise. Their network divides by the sigma of its label."""
    recipe, of = stubbed("ve", continuous=False, reduce="sum"), OFFICIAL["losses"]["ve chain sum"]
    labels, z = torch.tensor(of["drawn"][0]), tensor(of["drawn"][1])
    levels, seen = torch.logspace(math.log10(50), -2, 1000, dtype=torch.float64), []

    class Labelled(Stub):
        def forward(self, x, time):
            seen.append(time)
            sigma = levels[time.long()].reshape(-1, 1, 1, 1)
            out = self.a * torch.sin(x) + self.b * torch.cos(time.double() / 700).reshape(-1, 1, 1, 1)
            return sigma * out

    recipe.denoiser.network = Labelled(False)
    value = recipe.errors((tensor(OFFICIAL["x0"]) + 1) / 2, (1000 - labels) / 1000.0, None, drawing(z)).mean()
    assert torch.equal(seen[0].long(), labels) and value.item() == pytest.approx(of["value"], rel=1e-6)


@pytest.mark.parametrize("predict", ["score", "edm"])
@pytest.mark.parametrize("weight", ["plain", "likelihood"])
@pytest.mark.parametrize("name", SDES)
def test_one_step_of_a_real_network_equals_a_plain_computation(name, weight, predict):
    """Equation 7 written out, with the network called as the paper's conventions have it."""
    config = Config((3, 8, 8), network=SMALL, sde=name, weight=weight, predict=predict, sigma_max=50.0)
    recipe = loud(ScoreSDE(config)).double()
    net = recipe.denoiser.network
    x = Seeds(3).normal((3, 3, 8, 8), dtype=torch.float64).clamp(-1, 1)
    found = recipe.loss({"image": x}, at(range(3)))
    z = at(range(3)).rng.normal(x.shape, dtype=torch.float64)
    t = found.t.reshape(-1, 1, 1, 1)
    B = 0.1 * t + 9.95 * t * t
    mean, std, g2 = {
        "vp": (torch.exp(-B / 2), torch.sqrt(1 - torch.exp(-B)), 0.1 + 19.9 * t),
        "subvp": (torch.exp(-B / 2), 1 - torch.exp(-B), (0.1 + 19.9 * t) * (1 - torch.exp(-2 * B))),
        "ve": (1.0 + 0 * t, 0.01 * 5000.0**t, 1e-4 * 5000.0 ** (2 * t) * 2 * math.log(5000.0)),
    }[name]
    x0 = (x + 1) / 2 if name == "ve" else x
    xt = mean * x0 + std * z
    if predict == "edm":
        s = std / mean
        out = net(xt / mean / torch.sqrt(s * s + 0.25), 999 * found.t.float())
        clean = 0.25 / (s * s + 0.25) * xt / mean + 0.5 * s / torch.sqrt(s * s + 0.25) * out
        score = (mean * clean - xt) / std**2
    elif name == "ve":
        score = super(Centred, net).forward(2 * xt - 1, std.flatten().log().float()) / std
    else:
        score = -net(xt, 999 * found.t.float()) / std
    error = (score * std + z).square() if weight == "plain" else g2 * (score + z / std).square()
    expected = error.flatten(1).mean(1).mean()
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-6)
    wrt = net.encoder.stem.weight
    mine, theirs = (torch.autograd.grad(value, wrt)[0] for value in (found.value, expected))
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-8 * float(theirs.abs().max()))


def test_the_sum_is_half_of_the_sum():
    """And nothing else: clipped at norm 1 it is another optimiser."""
    recipe = loud(ScoreSDE(Config((1, 8, 8), network=SMALL, sde="ve")))
    batch = {"image": Seeds(3).normal((4, 1, 8, 8))}
    mean = recipe.loss(batch, at(range(4))).value
    recipe.config = replace(recipe.config, reduce="sum")
    assert recipe.loss(batch, at(range(4))).value.item() == pytest.approx(32 * mean.item(), rel=1e-6)
    assert {PRESETS[name].config.reduce for name in ("cifar10_ve", "cifar10_ve_deep", "celebahq")} == {"sum"}
    assert {PRESETS[name].config.reduce for name in ("cifar10", "cifar10_subvp", "fashion_ve", "tiny")} == {"mean"}


@pytest.mark.parametrize("name", SDES)
def test_times_of_training(name):
    recipe = ScoreSDE(Config((1, 8, 8), network=SMALL, sde=name))
    t = recipe.draw(Seeds.at(0, range(4000), "loss"))
    assert t.dtype == torch.float64 and 1e-5 <= float(t.min()) < 1e-3 and float(t.max()) <= 1
    assert torch.allclose(t.sort().values, torch.linspace(1e-5, 1, 4000, dtype=torch.float64), atol=2e-3)
    assert torch.equal(t[7:11], recipe.draw(Seeds.at(0, range(7, 11), "loss")))


# -- conventions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(OFFICIAL["steps"]))
def test_score_and_steps_equal_the_official_code(case):
    name, t = case.split()
    t, of = float(t), OFFICIAL["steps"][case]
    recipe, x = stubbed(name), tensor(of["x"])
    process = recipe.denoiser.process
    point, before = process.at(t), process.at(t - 1e-3)
    guess = recipe.denoiser(x, point)
    assert torch.allclose(guess.score, tensor(of["score"]), rtol=1e-6)
    z, end, mean = map(tensor, of["euler"])
    with torch.no_grad():
        for noise, expected in ((z, end), (0 * z, mean)):
            found = EulerMaruyama().step(recipe.denoiser, State(x, point), before, drawing(noise)).x
            assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
        if "langevin" in of:
            z, end, _ = map(tensor, of["langevin"])
            pc = PredictorCorrector(snr=0.16, corrector=langevin_of_batch)
            found = pc._corrected(guess, x, point.alpha / before.alpha, drawing(z))
            tolerance = (
                1e-6 if name == "ve" else 3e-3
            )  # the chain's beta at index t (N - 1) against the integral of beta
            assert torch.allclose(found, end, rtol=tolerance, atol=tolerance)


def test_what_networks_are_told():
    """Table 0.5: 999 t; log sigma; the index of a table, and of the levels the one that counts from the most noise."""
    seen = []
    for config in (
        {"sde": "vp"},
        {"sde": "ve"},
        {"sde": "vp", "continuous": False},
        {"sde": "ve", "continuous": False},
    ):
        recipe = ScoreSDE(Config((1, 8, 8), network=SMALL, sigma_max=50.0, **config))
        recipe.denoiser.network.register_forward_pre_hook(lambda net, args: seen.append(args[1].tolist()))
        recipe.denoiser(torch.zeros(2, 1, 8, 8), torch.tensor([0.5, 1.0], dtype=torch.float64))
    sigma = 0.01 * 5000**0.5
    assert [pytest.approx(row) for row in seen] == [
        [499.5, 999.0],
        [math.log(sigma), math.log(50)],
        [499, 999],
        [500, 0],
    ]


def test_ve_lives_between_0_and_1_and_its_network_between_minus_1_and_1():
    recipe = loud(ScoreSDE(Config((1, 8, 8), network=SMALL, sde="ve")))
    seen = []
    recipe.denoiser.network.encoder.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    x = Seeds(0).normal((2, 1, 8, 8)).clamp(-1, 1)
    assert recipe.value_range == (0.0, 1.0) and torch.allclose(recipe.values(x), (x + 1) / 2)
    recipe.denoiser(recipe.values(x), 0.5)
    assert torch.allclose(seen[0], x, atol=1e-6)
    state = State(recipe.values(x), recipe.denoiser.process.at(0.0))
    assert torch.allclose(recipe.picture(state), (x + 1) / 2)
    assert ScoreSDE(Config((1, 8, 8), network=SMALL)).value_range == (-1.0, 1.0)
    assert ScoreSDE.value_range == (-1.0, 1.0), "a model's own, not the class's"


def test_samplers_of_the_paper():
    def sampler(**config):
        return ScoreSDE(Config((1, 8, 8), network=SMALL, **config)).sampler()

    assert sampler() == EulerMaruyama(1000) == sampler(sde="subvp")
    ve = sampler(sde="ve", snr=0.075, steps=2000)
    assert ve == PredictorCorrector(2000, predictor=ReverseDiffusion(), snr=0.075) and ve.calls() == 4000
    assert sampler(continuous=False) == Ancestral(1000, variance=large)
    grids = {name: ScoreSDE(Config((1, 8, 8), network=SMALL, sde=name)) for name in ("vp", "ve")}
    for name, least in (("vp", 1e-3), ("ve", 1e-5)):  # linspace(1, eps, N), and then clean
        recipe = grids[name]
        grid = recipe.sampler().spacing(recipe.denoiser.process, 1000, 1.0, 0.0)
        assert torch.allclose(grid[:-1], torch.linspace(1, least, 1000).double(), atol=2e-5) and grid[-1] == 0


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("sampler", [None, PredictorCorrector(4), DDIM(4)])
def test_every_equation_samples_and_a_seed_is_a_picture(name, sampler):
    """Sub-VP with a corrector too, where the official code fails."""
    recipe = loud(ScoreSDE(Config((1, 8, 8), network=SMALL, sde=name, steps=3)))
    *_, a = recipe.sample(Ask(3, sampler=sampler), rng=Seeds(6))
    *_, b = recipe.sample(Ask(3, sampler=sampler), rng=Seeds.pictures([7, 8, 99]))
    assert torch.equal(a.x[1:3], b.x[:2]) and bool(a.x.isfinite().all())
    assert float(recipe.picture(a).min()) >= 0 and float(recipe.picture(a).max()) <= 1


def test_the_first_correction_acts_on_the_prior():
    recipe = loud(ScoreSDE(Config((1, 8, 8), network=SMALL, sde="ve", steps=2)))
    seen = []
    recipe.denoiser.network.register_forward_pre_hook(lambda net, args: seen.append((args[0], float(args[1]))))
    list(recipe.sample(Ask(2), rng=Seeds(0)))
    prior = recipe.denoiser.process.prior((2, 1, 8, 8), Seeds(0))
    assert torch.equal(seen[0][0], prior) and not torch.equal(seen[1][0], prior)
    assert [time for _, time in seen[:2]] == [pytest.approx(math.log(recipe.config.noisiest))] * 2 and len(seen) == 4


@pytest.mark.parametrize("name", SDES)
def test_it_learns_and_samples(name):
    """Two constant pictures, told apart by their label: a few steps suffice to draw the one that is asked for."""
    network = UNetConfig(widths=(16,), blocks=1, attention=(), attend_middle=False, groups=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Config((1, 8, 8), ("dark", "light"), network, sde=name, predict="edm", clip=True)
        recipe = ScoreSDE(config)
    optimiser = torch.optim.Adam(recipe.parameters(), lr=3e-3)
    labels = torch.arange(16) % 2
    batch = {"image": (labels * 1.2 - 0.6).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8), "label": labels}
    seen = []
    for step in range(60):
        loss = recipe.loss(batch, at(range(16 * step, 16 * step + 16))).value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])
    *_, state = recipe.sample(Ask(4, labels=(0, 1, 1, 0), sampler=DDIM(20)), rng=Seeds(0))
    tone = recipe.picture(state).flatten(1).mean(1)
    assert torch.allclose(tone, torch.tensor([0.2, 0.8, 0.8, 0.2]), atol=0.2), tone


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("cifar10", 61.804),
        ("cifar10_deep", 106.633),
        ("cifar10_subvp", 61.804),
        ("cifar10_ve", 62.759),
        ("cifar10_ve_deep", 107.587),
        ("celebahq", 65.574),
        ("ffhq_1024", 105.786),
    ],
)
def test_the_papers_presets(name, millions):
    preset = PRESETS[name]
    recipe = outline(lambda: ScoreSDE(preset.config))
    assert round(sum(p.numel() for p in recipe.parameters()) / 1e6, 3) == pytest.approx(millions, abs=1.1e-3)
    c, t = preset.config, preset.training
    assert (t.lr, t.warmup, t.ema_rule, t.clip, t.eps, t.betas) == (2e-4, 5000, "warmup", 1.0, 1e-8, (0.9, 0.999))
    assert c.predict == "score" and c.weight == "plain" and not c.clip and c.eps == 1e-5


def test_numbers_of_the_papers_presets():
    ve, large_ve, vp = PRESETS["cifar10_ve"], PRESETS["celebahq"], PRESETS["cifar10"]
    assert (ve.config.sigma_max, ve.config.sigma_min, ve.config.snr, ve.config.N) == (50.0, 0.01, 0.16, 1000)
    assert (ve.training.ema, vp.training.ema, ve.training.batch) == (0.999, 0.9999, 128)
    assert (large_ve.config.sigma_max, large_ve.config.snr, large_ve.config.steps) == (348.0, 0.075, 2000)
    assert large_ve.training.batch == 64 and PRESETS["ffhq_1024"].training.batch == 8
    assert vp.training == Training(steps=1_300_000, batch=128, lr=2e-4, warmup=5_000, ema=0.9999, ema_rule="warmup")
    assert PRESETS["cifar10_deep"].training.steps == 950_000


def test_the_noisiest_level_follows_the_size_of_the_data():
    """0.9 sqrt(dimensions) is the authors' 50 for CIFAR-10, and near their numbers for larger pictures."""
    assert Config((3, 32, 32)).noisiest == pytest.approx(50, rel=0.01)
    assert Config((3, 64, 64)).noisiest == pytest.approx(90, rel=0.15)
    assert Config((3, 256, 256)).noisiest == pytest.approx(348, rel=0.15)
    assert Config(sigma_max=7.0).noisiest == 7.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sde": "subvp", "continuous": False}, "continuous"),
        ({"weight": "likelihood", "continuous": False}, "continuous"),
        ({"N": 1}, "N and steps"),
        ({"snr": -1.0}, "snr"),
        ({"eps": 0.0}, "eps"),
        ({"beta_min": 30.0}, "beta_min"),
        ({"sigma_min": 100.0, "sigma_max": 50.0}, "sigma_min"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        replace(Config(), **settings)
