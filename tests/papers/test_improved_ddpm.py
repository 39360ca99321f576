"""Improved DDPM: its losses by hand and as the official code computes them, resampled t, steps of any length."""

import itertools
import json
import math
import multiprocessing as mp
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.cli import likelihood
from sfumato.cli.samplers import chosen, facts, length
from sfumato.core import guidance, losses, times
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.parametrisation import eps
from sfumato.core.posterior import large, learned, small
from sfumato.core.random import Seeds
from sfumato.core.schedules import Discrete
from sfumato.engine import Options, fresh, load, steps
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.papers import ddpm
from sfumato.papers.improved_ddpm import PRESETS, TABLES, Config, ImprovedDDPM
from sfumato.recipe import Ask, Training
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.sampler import State
from tests.engine.test_distributed import ranks
from tests.papers.tools import at, loud

OFFICIAL = json.loads((Path(__file__).parent.parent / "reference" / "improved_diffusion.json").read_text())
SMALL = UNetConfig(widths=(16, 32), blocks=1, attention=(1,), groups=8, scale_shift=True)
SHAPE = (4, 2, 3, 3)


# -- by hand -----------------------------------------------------------------------------------------------------------


def by_hand(recipe, x0, k, noise):
    """The loss of each example, from betas, in the words of the two DDPM papers."""
    c, beta = recipe.config, TABLES[recipe.config.schedule](recipe.config.T)
    kept = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1).double(), kept[:-1]])
    tilde = beta * (1 - before) / (1 - kept)
    tilde[0] = tilde[1]

    def of(row):
        return row[k].reshape(-1, 1, 1, 1)

    xt = of(kept.sqrt()) * x0 + of((1 - kept).sqrt()) * noise
    out = recipe.denoiser.network(xt, (k * (1000 / c.T if c.rescale_time else 1)).float())
    guess, o = out.chunk(2, 1) if c.loss != "simple" else (out, None)
    mse = (guess - noise).square().mean((1, 2, 3))
    if o is None:
        return mse
    guess = guess.detach() if c.loss == "hybrid" else guess
    first, second = beta * before.sqrt() / (1 - kept), (1 - beta).sqrt() * (1 - before) / (1 - kept)
    clean = (xt - of((1 - kept).sqrt()) * guess) / of(kept.sqrt())
    true, mean = of(first) * x0 + of(second) * xt, of(first) * clean + of(second) * xt
    share = (o + 1) / 2
    log = share * of(beta.log()) + (1 - share) * of(tilde.log())
    kl = 0.5 * (log - of(tilde.log()) + ((of(tilde.log()) - log).exp() + (true - mean) ** 2 * (-log).exp()) - 1)
    normal = torch.distributions.Normal(mean, (0.5 * log).exp())
    up = torch.where(x0 > 0.999, 1.0, normal.cdf(x0 + 1 / 255))
    mass = up - torch.where(x0 < -0.999, 0.0, normal.cdf(x0 - 1 / 255))
    bits = torch.where((k == 0).reshape(-1, 1, 1, 1), -mass.clamp(min=1e-12).log(), kl).mean((1, 2, 3)) / math.log(2)
    if c.loss == "vlb":
        return c.T * bits
    return mse + (c.T / 1000 if c.rescale_bound else 1.0) * bits


@pytest.mark.parametrize("loss", ["hybrid", "vlb", "simple"])
@pytest.mark.parametrize(
    ("schedule", "T", "rescale"), [("cosine", 4000, True), ("linear", 50, False), ("cosine", 4, True)]
)
def test_loss_and_gradient_by_hand(loss, schedule, T, rescale):
    config = Config((3, 8, 8), network=SMALL, loss=loss, schedule=schedule, T=T, steps=2, rescale_time=rescale)
    recipe = loud(ImprovedDDPM(replace(config, rescale_bound=rescale))).double()
    x0 = (Seeds(5).uniform(8 * 192).reshape(8, 3, 8, 8) * 255).round() / 127.5 - 1
    rng = at(range(8)).rng
    t = recipe.draw(rng)
    noise, k = rng.normal(x0.shape, dtype=torch.float64), (t * T).round().long() - 1
    if T == 4:
        assert (k == 0).any()
    found, expected = recipe.loss({"image": x0}, at(range(8))), by_hand(recipe, x0, k, noise)
    assert torch.equal(found.t, t)
    assert torch.allclose(found.per_sample, expected, rtol=1e-6)
    assert found.value.item() == pytest.approx(expected.mean().item(), rel=1e-7)
    wanted = torch.autograd.grad(expected.mean(), list(recipe.denoiser.network.parameters()))
    given = torch.autograd.grad(found.value, list(recipe.denoiser.network.parameters()))
    for a, b in zip(given, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-6 * float(b.norm()) + 1e-12


# -- as the official code has it ---------------------------------------------------------------------------------------


def wave(rate, shift):
    n = int(np.prod(SHAPE))
    return torch.from_numpy(np.cos(rate * np.arange(n) + shift)).float().reshape(SHAPE)


class Stub(torch.nn.Module):
    """The one of tests/reference/make_improved_diffusion.py."""

    def __init__(self, variance):
        super().__init__()
        self.variance = variance
        self.w = torch.nn.Parameter(torch.tensor([0.8, 0.3, 0.6, -0.2]))

    def forward(self, x, t):
        t = t.reshape(-1, 1, 1, 1)
        found = self.w[0] * x + self.w[1] * torch.sin(t / 300)
        o = self.w[2] * torch.sin(3 * x) + self.w[3] * torch.cos(t / 300)
        return torch.cat([found, o], 1) if self.variance else found


class Fixed:
    """Noise that is the same every time."""

    def normal(self, shape, **kwargs):
        return wave(2.1, 0.7)


PICTURES = ((wave(1.3, 0.2) + 1) * 127.5).round() / 127.5 - 1
KINDS = {"mse": "simple", "hybrid": "hybrid", "hybrid_unscaled": "hybrid", "kl": "vlb"}


@pytest.fixture
def tanh(monkeypatch):
    """The official approximation of the normal distribution function."""
    monkeypatch.setattr(
        torch.special, "ndtr", lambda z: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    )


@pytest.mark.parametrize("row", OFFICIAL["losses"], ids=lambda r: f"{r['kind']}-{r['schedule']}-{r['rescale']}")
def test_losses_and_gradients_of_the_official_code(row, tanh):
    config = Config(
        SHAPE[1:],
        network=SMALL,
        schedule=row["schedule"],
        T=row["T"],
        loss=KINDS[row["kind"]],
        rescale_bound=row["kind"] == "hybrid",
        rescale_time=row["rescale"],
        steps=10,
    )
    recipe = ImprovedDDPM(config)
    recipe.denoiser.network = stub = Stub(row["kind"] != "mse")
    t = (torch.tensor(row["t"]) + 1).double() / row["T"]
    found = recipe.errors(PICTURES, t, None, Fixed())
    assert found.tolist() == pytest.approx(row["loss"], rel=2e-4)
    found.mean().backward()
    assert stub.w.grad.tolist() == pytest.approx(row["gradient"], rel=1e-3, abs=1e-4)


def test_the_mean_sees_nothing_of_the_bound_in_the_hybrid_loss():
    by = {(row["kind"], row["schedule"], row["rescale"]): row["gradient"] for row in OFFICIAL["losses"]}
    for (kind, *rest), gradient in by.items():
        if kind != "kl":
            assert gradient[:2] == pytest.approx(by["mse", *rest][:2], rel=1e-6)
    recipe = loud(ImprovedDDPM(Config((1, 8, 8), network=SMALL, T=100, steps=10)))
    x0, t, head = (
        torch.zeros(4, 1, 8, 8),
        torch.tensor([1, 30, 60, 100]).double() / 100,
        recipe.denoiser.network.decoder.head,
    )
    (gradient,) = torch.autograd.grad(recipe.terms(x0, t, None, Seeds(0))["vb"].sum(), head.weight)
    assert gradient[0].abs().sum() == 0 < gradient[1].abs().sum()


@pytest.mark.parametrize("name", OFFICIAL["betas"])
def test_tables_of_the_official_code(name):
    schedule, T = name.split()
    table, official = TABLES[schedule](int(T)), OFFICIAL["betas"][name]
    assert table[:: int(T) // 10].tolist() == pytest.approx(official["some"], rel=1e-13)
    assert float(table[-1]) == pytest.approx(official["last"], rel=1e-15)
    assert float(Discrete(table).alpha_bar[-1]) == pytest.approx(official["kept"], rel=1e-9)


def test_tables():
    cosine = TABLES["cosine"](4000)
    assert int((cosine == 0.999).sum()) == 1 and cosine[-1] == 0.999
    assert float(Discrete(cosine).alpha_bar[-1]) == pytest.approx(1.52e-10, rel=5e-3)
    assert torch.allclose(TABLES["linear"](1000), ddpm.TABLES["linear"](1000), rtol=1e-14)


@pytest.mark.parametrize("text", ["10", "ddim10"])
def test_respaced_steps_of_the_official_code(text, tanh):
    """The new betas, the network told the old entry; x0 clipped; DDIM with eps from the clipped x0."""
    official, table = OFFICIAL["walks"][text], Discrete(TABLES["cosine"](1000))
    raw = NeuralDenoiser(Stub(True), table, eps, learn_variance=True).requires_grad_(False)
    denoiser, x = guidance.clip(raw), wave(2.1, 0.7)
    spacing = times.Respacing(text)
    assert spacing.entries(1000) == official["map"]
    points = table.points(spacing(table, 10, 1.0, 0.0))
    added = [float(large(t, s)) for t, s in itertools.pairwise(points)]
    assert added[::-1] == pytest.approx(official["betas"], rel=1e-9)
    t, s = points[5], points[6]
    guess = denoiser(x, t)
    variance = learned(t, s, guess.nu)
    assert variance.flatten().tolist() == pytest.approx(official["variance"], rel=1e-5)
    moved = Ancestral(10, spacing, variance=learned).step(denoiser, State(x, t), s, Fixed())
    mean = moved.x - variance.sqrt() * wave(2.1, 0.7)
    assert mean.flatten().tolist() == pytest.approx(official["mean"], abs=2e-6)
    assert DDIM(10, spacing)(denoiser, x).flatten().tolist() == pytest.approx(official["ddim"], abs=1e-5)
    if text == "10":
        grid = spacing(table, 10, 1.0, 0.0)
        bound = losses.variational_bound(denoiser, PICTURES, grid, rng=Fixed(), variance=learned)
        assert torch.allclose(bound.steps, torch.tensor(official["vb"]), rtol=1e-4)
        assert bound.total.tolist() == pytest.approx(official["total"], rel=1e-4)


def test_the_ends_of_the_learned_range_are_the_fixed_variances():
    points = Discrete(TABLES["cosine"](100)).points([0.7, 0.5])
    assert torch.equal(learned(*points, torch.zeros(1)), torch.tensor([float(small(*points))]))
    assert float(learned(*points, torch.ones(1).double())) == pytest.approx(float(large(*points)), rel=1e-14)


# -- resampled t -------------------------------------------------------------------------------------------------------

RESAMPLED = Config((1, 4, 4), network=replace(SMALL, attention=()), T=6, steps=3, loss="vlb", resample=True)


class Pictures:
    classes = ()

    def __init__(self):
        self.names = [str(i) for i in range(40)]
        self.images = (Seeds(2).uniform(40 * 16).reshape(40, 1, 4, 4) * 255).round().float() / 127.5 - 1

    def __len__(self):
        return 40

    def batch(self, indices, rng=None):
        return {"image": self.images[torch.as_tensor(indices)]}


def train(out, *, total=24, resume=False, seen=None, **more):
    recipe = fresh("improved_ddpm", RESAMPLED, 0)
    training = Training(steps=total, batch=9, lr=1e-3, warmup=0, ema=0.9)
    every = {"sample_every": 0, "evaluate_every": 0, "save_every": 8}
    options = Options(out, training, device="cpu", precision="fp32", threads=1, workers=0, quiet=True, **every, **more)
    for step in steps(recipe, Pictures(), options, resume=resume):
        if seen is not None:
            seen.append((step.step, recipe.resampler.history.clone()))
    return recipe


def test_a_run_goes_on_with_its_history(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "cut", total=16)
    again = train(tmp_path / "cut", resume=True)
    assert (whole.resampler.count >= 10).all(), "t was drawn by its losses"
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    final = load(tmp_path / "cut", verify=True)
    assert final.resampler is None and not any("resampler" in name for name in final.state_dict())
    assert torch.isfinite(final.loss(Pictures().batch([0, 1]), at(range(2))).value)


def test_likelihood_takes_the_learned_variance(tmp_path, capsys):
    train(tmp_path / "run", total=2)
    np.savez(tmp_path / "data.npz", image=np.random.default_rng(0).integers(0, 255, (6, 4, 4), dtype=np.uint8))
    words = [str(tmp_path / "run"), str(tmp_path / "data.npz"), "--method", "bound", "--n", "3", "--threads", "1"]
    assert likelihood.run(words) == 0
    said = capsys.readouterr().out
    assert "3 steps, learned variance, x0 clipped" in said and "nan" not in said
    likelihood.run([*words, "--variance", "small", "--steps", "6"])
    assert "6 steps, small variance" in capsys.readouterr().out


def child(out, world):
    os.environ |= world
    torch.set_num_threads(1)
    recipe = train(Path(out))
    torch.save(recipe.resampler.state_dict(), f"{out}.{world['RANK']}.pt")


def test_two_processes_keep_one_history(tmp_path):
    """The very one that one process keeps, to the rounding of their weights; shares of 4 and 5 examples."""
    context = mp.get_context("forkserver")
    jobs = [context.Process(target=child, args=(str(tmp_path / "two"), world)) for world in ranks(2)]
    for job in jobs:
        job.start()
    alone = train(tmp_path / "one").resampler
    for job in jobs:
        job.join(120)
    a, b = (torch.load(tmp_path / f"two.{rank}.pt") for rank in range(2))
    assert torch.equal(a["history"], b["history"]) and torch.equal(a["count"], b["count"])
    assert torch.equal(a["count"], alone.count)
    assert torch.allclose(a["history"], alone.history, rtol=1e-3)


def test_the_weight_of_a_drawn_t_is_in_the_loss_and_not_in_the_history():
    recipe = loud(ImprovedDDPM(RESAMPLED)).train()
    for _ in range(10):
        recipe.resampler.remember(torch.arange(1, 7).double() / 6, torch.tensor([8.0, 1, 1, 1, 1, 4]))
    seen = recipe.loss({"image": Pictures().images[:9]}, at(range(9)))
    shares = recipe.resampler.shares()
    weight = 1 / (6 * shares[(seen.t * 6).round().long() - 1])
    assert seen.value.item() == pytest.approx(float((seen.per_sample * weight).mean()), rel=1e-6)
    before = recipe.resampler.count.clone()
    recipe.after(at(range(9)), seen)
    assert int((recipe.resampler.count - before).sum()) == 9
    assert set(seen.per_sample.tolist()) <= set(recipe.resampler.history.flatten().tolist())
    held = recipe.eval().loss({"image": Pictures().images[:9]}, at(range(9)))
    assert held.value.item() == pytest.approx(float(held.per_sample.mean()), rel=1e-6)


# -- the recipe --------------------------------------------------------------------------------------------------------


def test_every_t_is_as_likely_as_any():
    recipe = ImprovedDDPM(Config((1, 8, 8), network=SMALL, T=50, steps=10))
    k = (recipe.draw(Seeds.at(0, range(5000))) * 50).round().long() - 1
    assert torch.bincount(k, minlength=50).tolist() == pytest.approx([100] * 50, abs=5)


def test_networks_are_told_thousandths_of_the_table_or_its_entries():
    for rescale, told in ((True, [0.0, 999.75]), (False, [0.0, 3999.0])):
        table = ImprovedDDPM(Config((1, 8, 8), network=SMALL, rescale_time=rescale)).table
        assert [point.time for point in table.points([1 / 4000, 1.0])] == told


def test_sampling_takes_the_learned_variance_and_seeds_hold():
    recipe = loud(ImprovedDDPM(Config((1, 8, 8), ("a", "b"), SMALL, T=100, steps=7)))
    own = recipe.sampler()
    assert own == Ancestral(7, times.strided, variance=learned)
    assert chosen(own, "ddpm") == own
    *_, a = recipe.sample(Ask(3, labels=(0, 1, 1), guidance=2.0), rng=Seeds(6))
    *_, b = recipe.sample(Ask(3, labels=(1, 1, 0), guidance=2.0), rng=Seeds.pictures([7, 8, 99]))
    assert torch.equal(a.x[1:], b.x[:2])
    fixed = replace(own, variance=small)
    *_, c = recipe.sample(Ask(3, labels=(0, 1, 1), guidance=2.0, sampler=fixed), rng=Seeds(6))
    assert not torch.equal(a.x, c.x)
    *_, d = recipe.sample(Ask(3, sampler=DDIM(5)), rng=Seeds(6))
    assert bool(torch.isfinite(d.x).all())


def test_what_a_picture_remembers_of_its_sampler_makes_it_again():
    recipe = ImprovedDDPM(Config((1, 8, 8), network=SMALL, T=100, steps=7))
    own, told = recipe.sampler(), facts(recipe.sampler())
    assert told["variance"] == "learned"
    assert chosen(own, told["sampler"], steps=7, spacing=told["spacing"], variance=told["variance"]) == own
    respaced = chosen(own, "ddim", spacing="ddim25")
    assert respaced.steps == 25 == length(respaced, recipe)
    other = ddpm.DDPM(ddpm.Config((1, 8, 8), network=SMALL))
    with pytest.raises(UserError, match="does not learn its variance"):
        length(own, other)


def test_the_simple_loss_learns_no_variance():
    recipe = ImprovedDDPM(Config((1, 8, 8), network=SMALL, loss="simple", T=100, steps=7))
    assert not recipe.denoiser.learn_variance and recipe.denoiser.network.config.out == 1
    assert recipe.sampler() == Ancestral(7, times.strided, variance=large)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("cifar10", 52.546),
        ("cifar10_vlb", 52.546),
        ("imagenet64", 121.064),
        ("imagenet64_cond", 273.049),
        ("lsun", 113.677),
    ],
)
def test_the_papers_presets(name, millions):
    preset = PRESETS[name]
    names = tuple(f"class {i}" for i in range(1000)) if name == "imagenet64_cond" else ()
    with torch.device("meta"):
        recipe = ImprovedDDPM(replace(preset.config, classes=names))
    null = recipe.label.embedding.weight.shape[1] if names else 0  # a row that the official embedding has not
    assert round((sum(p.numel() for p in recipe.parameters()) - null) / 1e6, 3) == millions
    assert (preset.training.clip, preset.training.warmup, preset.training.weight_decay) == (0.0, 0, 0.0)
    assert (preset.training.ema, preset.training.ema_rule) == (0.9999, "constant")
    rescaled = name not in ("imagenet64_cond", "lsun")
    assert preset.config.rescale_bound == preset.config.rescale_time == rescaled
    assert recipe.scale == {"cifar10_vlb": 4000.0}.get(name, 4.0 if rescaled else 1.0)


@pytest.mark.parametrize(("field", "value"), [("T", 1), ("T", 10**6), ("steps", 0), ("steps", 5000)])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        replace(Config(), **{field: value})
    with pytest.raises(UserError, match="T is 20"):
        Config(schedule="linear", T=20, steps=5)


def test_it_learns_and_samples():
    """Two constant pictures, told apart by their label."""
    network = UNetConfig(widths=(16, 16), blocks=1, attention=(), attend_middle=False, groups=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = ImprovedDDPM(Config((1, 8, 8), ("dark", "light"), network, T=100, steps=20, predict="v"))
    optimiser, labels = torch.optim.Adam(recipe.parameters(), lr=2e-3), torch.arange(16) % 2
    x0 = (labels * 1.2 - 0.6).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    found = []
    for step in range(90):
        seen = recipe.loss({"image": x0, "label": labels}, at(range(16 * step, 16 * step + 16)))
        optimiser.zero_grad()
        seen.value.backward()
        optimiser.step()
        found.append(seen.value.item())
    assert sum(found[-10:]) < 0.4 * sum(found[:10])
    *_, state = recipe.sample(Ask(4, labels=(0, 1, 1, 0)), rng=Seeds(0))
    tone = recipe.picture(state).flatten(1).mean(1)
    assert torch.allclose(tone, torch.tensor([0.2, 0.8, 0.8, 0.2]), atol=0.12), tone
