"""CLD: its losses against the official code's and a plain computation, its conventions, samplers, bound and presets."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sfumato.cli.job import preview_of
from sfumato.cli.main import main
from sfumato.core.likelihood import phase_density, rademacher
from sfumato.core.oracle import PhaseGaussian
from sfumato.core.phase import halves
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.papers.cld import CLD, PRESETS, Config, Process
from sfumato.recipe import Ask, Training
from sfumato.registry import outline
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.sde import SSCS, EulerMaruyama, quadratic_striding, striding
from tests.papers.tools import at, loud

OFFICIAL = json.loads((Path(__file__).parent.parent / "reference" / "cld.json").read_text())
SMALL = UNetConfig(widths=(16, 32), blocks=1, attention=(1,), groups=8)
NAMES = ("a", "b")


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class Stub(nn.Module):
    """The stub of tests/reference/make_score_sde.py: of the momentum, and of t."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(tensor(0.7)), nn.Parameter(tensor(-0.4))

    def forward(self, x, time):
        return self.a * torch.sin(x[:, -3:]) + self.b * torch.cos(time.to(x.dtype) / 700).reshape(-1, 1, 1, 1)


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(OFFICIAL["losses"]))
def test_loss_and_gradient_equal_the_official_code(case):
    """Summed over the dimensions, in float32 there."""
    objective, weighting, slope = case.split()
    objective = {"hsm": "hybrid", "dsm": "denoising"}[objective]
    weight, slope = "likelihood" if weighting == "likelihood" else "plain", float(slope)
    recipe = CLD(
        Config(
            (3, 3, 3),
            network=SMALL,
            objective=objective,
            weight=weight,
            clock="raw",
            slope=slope,
            beta=0.1 if slope else 4.0,
        )
    )
    net = recipe.denoiser.network = Stub()
    of = OFFICIAL["losses"][case]
    *v0, u, z = map(tensor, of["drawn"])
    noise = torch.cat([z, *v0], dim=1)
    rng = SimpleNamespace(normal=lambda shape, dtype, device: noise)
    value = recipe.errors(tensor(OFFICIAL["x0"]), 1e-5 + (1 - 1e-5) * u, None, rng).mean()
    value.backward()
    assert value.item() == pytest.approx(of["value"], rel=2e-6)
    assert [net.a.grad.item(), net.b.grad.item()] == pytest.approx(of["gradient"], rel=2e-5)


@pytest.mark.parametrize("weight", ["plain", "likelihood"])
def test_one_step_of_a_real_network_equals_a_plain_computation(weight):
    """The kernel, the mixed score and the two weights written out, in float64."""
    recipe = loud(CLD(Config((1, 8, 8), network=SMALL, weight=weight, reduce="mean", eps=0.01))).double()
    x0 = Seeds(3).normal((3, 1, 8, 8), dtype=torch.float64).clamp(-1, 1)
    found = recipe.loss({"image": x0}, at(range(3)))
    ex, ev = at(range(3)).rng.normal((3, 2, 8, 8), dtype=torch.float64).chunk(2, 1)
    t = found.t.reshape(-1, 1, 1, 1)
    B, c, e = 4 * t, 0.01, 1e-9
    k = torch.exp(-4 * B)
    sxx = 1 - k * (1 + 4 * B + 8 * B * B) + k * (4 * B) ** 2 * c + e
    sxv = k * 4 * B * B + k * 4 * B * (1 - 2 * B) * c
    svv = (1 - k) / 4 + k * (B - 2 * B * B) + k * (1 - 2 * B) ** 2 * c + e
    l11, l22 = sxx.sqrt(), (svv - sxv**2 / sxx).sqrt()
    x = torch.exp(-2 * B) * (1 + 2 * B) * x0 + l11 * ex
    v = -torch.exp(-2 * B) * B * x0 + sxv / l11 * ex + l22 * ev
    score = -v / svv - recipe.denoiser.network(torch.cat([x, v], 1), found.t.log().float()) / l22
    error = (ev + l22 * score).square() if weight == "plain" else 4.0 * (score + ev / l22).square()
    expected = error.mean()
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-6)
    wrt = recipe.denoiser.network.encoder.stem.weight
    mine, theirs = (torch.autograd.grad(value, wrt)[0] for value in (found.value, expected))
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-8 * float(theirs.abs().max()))


def test_the_sum_is_the_sum():
    recipe = loud(CLD(Config((1, 8, 8), network=SMALL)))
    batch = {"image": Seeds(3).normal((4, 1, 8, 8))}
    whole = recipe.loss(batch, at(range(4))).value
    recipe.config = replace(recipe.config, reduce="mean")
    assert whole.item() == pytest.approx(64 * recipe.loss(batch, at(range(4))).value.item(), rel=1e-6)


def test_times_of_training_are_float64():
    recipe = CLD(Config((1, 8, 8), network=SMALL))
    t = recipe.draw(Seeds.at(0, range(4000), "loss"))
    assert t.dtype == torch.float64 and 1e-5 <= float(t.min()) < 1e-3 and float(t.max()) <= 1


# -- conventions -------------------------------------------------------------------------------------------------------


def test_the_network_sees_position_and_momentum_and_answers_for_the_momentum():
    recipe = loud(CLD(Config((3, 8, 8), network=SMALL)))
    network = recipe.denoiser.network
    assert (network.config.channels, network.config.out) == (6, 3)
    u, seen = Seeds(0).normal((2, 6, 8, 8)), []
    network.register_forward_pre_hook(lambda net, args: seen.append(args))
    guess = recipe.denoiser(u, torch.tensor([0.1, 1.0], dtype=torch.float64))
    assert torch.equal(seen[0][0], u) and seen[0][1].tolist() == pytest.approx([math.log(0.1), 0.0], abs=1e-6)
    assert guess.score.shape == guess.x0.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(("clock", "time"), [("log", math.log(0.25)), ("raw", 0.25), ("index", 249.75)])
def test_what_the_network_is_told(clock, time):
    assert CLD(Config((1, 8, 8), network=SMALL, clock=clock)).denoiser.process.at(0.25).time == pytest.approx(time)


@pytest.mark.parametrize(
    ("t", "svv", "slope"), [(0.01, 0.0755355, 6.9138), (0.1, 0.2157584, 2.6752), (1.0, 0.249997, 2.0)]
)
def test_the_mixed_score(t, svv, slope):
    """score = -v / Svv - l F, with the numbers of the kernel's fixture."""
    recipe = loud(CLD(Config((1, 8, 8), network=SMALL, numerical_eps=0.0)))
    u = Seeds(1).normal((2, 2, 8, 8), dtype=torch.float64)
    recipe.double()
    with torch.no_grad():
        F = recipe.denoiser.network(u, torch.tensor([math.log(t)]))
        score = recipe.denoiser(u, t).score
    assert torch.allclose(score, -halves(u)[1] / svv - slope * F, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("eps", "early", "later"), [(0.0, 193.717, 19.937), (1e-9, 11.1634, 19.918), (1e-6, 9.9626, 12.8)]
)
def test_numerical_eps_is_a_hyper_parameter(eps, early, later):
    """1 / sigma at t = 1e-5 and 1e-3: it changes what is learned there, by a factor of 20."""
    process = CLD(Config((1, 8, 8), network=SMALL, numerical_eps=eps)).denoiser.process
    assert 1 / process.at(1e-5).sigma == pytest.approx(early, rel=1e-4)
    assert 1 / process.at(1e-3).sigma == pytest.approx(later, rel=1e-3)


def test_samplers_of_the_paper():
    def sampler(**config):
        return CLD(Config((1, 8, 8), network=SMALL, **config)).sampler()

    assert sampler() == ODE45(rtol=1e-5, atol=1e-5)
    assert sampler(method="em", steps=2000) == EulerMaruyama(2000, striding)
    assert sampler(method="sscs", striding="quadratic", steps=150) == SSCS(150, quadratic_striding)
    assert preview_of(CLD(Config((1, 8, 8), network=SMALL))).sampler == SSCS(50, quadratic_striding)
    assert preview_of(CLD(Config((1, 8, 8), network=SMALL, method="em", steps=40))).sampler is None


@pytest.mark.parametrize("sampler", [SSCS(5), EulerMaruyama(5), ODE45(rtol=0.05, atol=0.05)])
@pytest.mark.parametrize("clip", [False, True])
def test_every_sampler_makes_pictures_of_a_seed(sampler, clip):
    """Labels, guidance and clipping hold in phase space as everywhere; pictures are positions."""
    recipe = loud(CLD(Config((1, 8, 8), NAMES, SMALL, clip=clip)))
    *_, a = recipe.sample(Ask(3, labels=(0, 1, 1), guidance=1.5, sampler=sampler), rng=Seeds(6))
    *_, b = recipe.sample(Ask(3, labels=(1, 1, 0), guidance=1.5, sampler=sampler), rng=Seeds.pictures([7, 8, 99]))
    assert a.x.shape == (3, 2, 8, 8) and torch.equal(a.x[1:3], b.x[:2]) and bool(a.x.isfinite().all())
    for quick in (False, True):
        picture = recipe.picture(a, quick=quick)
        assert picture.shape == (3, 1, 8, 8) and float(picture.min()) >= 0 and float(picture.max()) <= 1
    if clip and not isinstance(sampler, ODE45):
        assert float(recipe.denoiser.process.project(a.x).abs().max()) <= 1  # the last step returns the guessed x0


def test_it_learns_and_samples():
    """Two constant pictures, told apart by their label: a few steps suffice to draw the one that is asked for."""
    network = UNetConfig(widths=(16,), blocks=1, attention=(), attend_middle=False, groups=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = CLD(Config((1, 8, 8), ("dark", "light"), network, clock="index", reduce="mean", clip=True))
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
    assert sum(seen[-10:]) < 0.7 * sum(seen[:10])
    *_, state = recipe.sample(Ask(4, labels=(0, 1, 1, 0), sampler=SSCS(20, quadratic_striding)), rng=Seeds(0))
    tone = recipe.picture(state).flatten(1).mean(1)
    assert torch.allclose(tone, torch.tensor([0.2, 0.8, 0.8, 0.2]), atol=0.2), tone


# -- likelihood --------------------------------------------------------------------------------------------------------


def test_the_bound_of_known_data():
    """At t = 0 position and momentum are independent: for the exact score, log p(x, v) + H(v) is log p(x) plus what v's
    own density is off its mean, which is known."""
    process, std = Process(numerical_eps=0.0), 0.5
    x = std * Seeds(1).normal((6, 1, 2, 2), dtype=torch.float64)
    found = phase_density(PhaseGaussian(process, 0.0, std), x, Seeds(2), eps=1e-6, rtol=1e-7, atol=1e-7)
    exact = (-0.5 * (x / std).square() - math.log(std * math.sqrt(2 * math.pi))).flatten(1).sum(1)
    z = Seeds(2).normal(x.shape, dtype=torch.float64).flatten(1)  # v_0 / 0.1
    luck = 0.5 * (1 - z.square()).sum(1)
    assert torch.allclose(found.log_prob[:, 0], exact + luck, atol=2e-3)
    assert torch.allclose(found.bits()[:, 0] * 4 * math.log(2), -found.log_prob[:, 0])


def test_the_bound_lies_below_log_p_on_average():
    process, std = Process(), 0.5
    x = (std * Seeds(1).normal((1, 1, 4, 4), dtype=torch.float64)).expand(200, -1, -1, -1)
    found = phase_density(
        PhaseGaussian(process, 0.0, std), x, Seeds(2), eps=1e-5, probes=rademacher(x, Seeds(3)), rtol=1e-4, atol=1e-4
    )
    exact = float((-0.5 * (x[0] / std).square() - math.log(std * math.sqrt(2 * math.pi))).sum())
    values = found.log_prob[:, 0]
    assert float(values.mean()) < exact + 3 * float(values.std()) / math.sqrt(200)
    assert float(values.mean()) > exact - 0.3


def test_only_data_that_move_have_this_bound():
    from sfumato.core.guidance import clip
    from sfumato.core.oracle import Gaussian
    from sfumato.core.schedules import VP

    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="data that move"):
        phase_density(Gaussian(VP(), 0.0, 0.5), x, Seeds(0))
    with pytest.raises(ValueError, match="guidance makes no density"):
        phase_density(clip(PhaseGaussian(Process(), 0.0, 0.5)), x, Seeds(0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        phase_density(PhaseGaussian(Process(), 0.0, 0.5), x, Seeds(0), eps=1.5)


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits, hardly trained, with a preview."""
    pytest.importorskip("sklearn.datasets")
    root = tmp_path_factory.mktemp("cld")
    words = ("--config.network.widths", 16, "--config.steps", 4, "--batch", 8, "--steps", 2, "--sample-every", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(root / "cache"))
        quiet = ("--quiet", "--precision", "fp32", "--threads", 1, "--size", 8, "--labels", "none")
        call = ("train", "cld", "digits", "--preset", "fashion", *words, *quiet, "--out", root / "run")
        assert main([str(word) for word in call]) == 0
        assert list((root / "run" / "samples").iterdir())
        yield root / "run"


def test_sampling_a_run(run, tmp_path, capsys):
    for i, words in enumerate(((), ("--sampler", "em", "--steps", "3"), ("--sampler", "ode45"))):
        assert main(["sample", str(run), "--n", "2", "--threads", "1", *words, "--out", str(tmp_path / str(i))]) == 0
    said = capsys.readouterr()
    assert "sscs in 4 steps" in said.out + said.err


def test_a_sampler_of_other_processes_is_a_sentence(run, tmp_path, capsys):
    assert main(["sample", str(run), "--sampler", "ddim", "--out", str(tmp_path / "no")]) == 2
    assert "use sscs, em or ode45" in capsys.readouterr().err


def test_samplers_are_compared(run, tmp_path, capsys):
    words = ("--calls", "4", "--n", "2", "--threads", "1", "--out", str(tmp_path / "bench"))
    assert main(["bench", "samplers", str(run), *words]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench" / "samplers.json").read_text())}
    assert set(rows) == {"sscs", "em", "ode45"} and rows["ode45"]["median"] < 0.05 and rows["ode45"]["calls"] > 10
    assert main(["bench", "samplers", str(run), "--samplers", "auto", *words]) == 2
    assert "sscs" in capsys.readouterr().err


def test_likelihood_of_a_run(run, tmp_path, capsys):
    words = ("--n", 2, "--rtol", 0.05, "--threads", 1, "--out", tmp_path)
    assert main([str(word) for word in ("likelihood", run, "digits", *words)]) == 0
    said = capsys.readouterr().out
    assert "an upper bound" in said and "-log2 p(x, v) - entropy of v + 7 of x = 2 (k + u) / 256 - 1" in said
    assert main([str(word) for word in ("likelihood", run, "digits", "--method", "bound", *words)]) == 2
    assert "momentum" in capsys.readouterr().err


# -- configs -----------------------------------------------------------------------------------------------------------


def test_the_papers_presets():
    sizes = {name: outline(lambda p=preset: CLD(p.config)) for name, preset in PRESETS.items()}
    assert round(sum(p.numel() for p in sizes["cifar10"].parameters()) / 1e6, 3) == 107.594
    cifar, celeba, stable = (PRESETS[name] for name in ("cifar10", "celebahq", "celebahq_stable"))
    assert cifar.config == Config(network=cifar.config.network) and cifar.config.reduce == "sum"
    assert cifar.training == Training(steps=800_000, batch=128, lr=2e-4, warmup=100_000, ema=0.9999, ema_rule="warmup")
    assert (celeba.config.clock, celeba.config.numerical_eps, celeba.training.lr) == ("raw", 1e-6, 1e-4)
    assert (stable.config.beta, stable.config.slope, stable.config.eps) == (0.1, 6.9, 1e-3)
    assert (stable.training.batch, stable.training.steps, stable.training.weight_decay) == (96, 600_000, 0.01)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"steps": 0}, "steps"), ({"eps": 0.0}, "eps"), ({"beta": -1.0}, "beta"), ({"mass": 0.0}, "mass")],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        replace(Config(), **settings)
