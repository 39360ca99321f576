"""Edits: what is known stays, and the rest has the right law where the law is known."""

import math
from dataclasses import replace

import pytest
import torch

import sfumato
from sfumato import edits, encodings, walks
from sfumato.core import guidance, parametrisation, times
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.estimate import Estimate
from sfumato.core.known import LUMA, Known
from sfumato.core.oracle import Gaussian, Mixture, PhaseGaussian
from sfumato.core.phase import CLD
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, SubVP
from sfumato.errors import UserError
from sfumato.papers import cld, consistency, ddpm, edm, flow_matching, score_sde
from sfumato.pixels import Pixels
from sfumato.recipe import Ask
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.held import Held
from sfumato.samplers.multistep import DPMpp2M
from sfumato.samplers.ode import Heun
from sfumato.samplers.restart import RePaint
from sfumato.samplers.sde import SSCS

AFFINE = [VP(), Discrete.linear(), Cosine(), SubVP(), VE(0.01, 50.0), EDM(), Flow()]
PAIR = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
FIRST = Known(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[True, False]]))
TRUTH = 0.9, math.sqrt(1 - 0.81)


class Joint:
    """Normal data of covariance `law` and mean 0: the exact denoiser."""

    def __init__(self, process, law=PAIR):
        self.process, self.law = process, law

    def __call__(self, x, t):
        p = self.process.at(t)
        seen = p.alpha**2 * self.law + p.sigma**2 * torch.eye(len(self.law), dtype=torch.float64)
        return Estimate.from_x0(self.process, p, x, x @ torch.linalg.solve(seen, self.law) * p.alpha)


class Fast:
    """Stands for Seeds: one generator for all."""

    def __init__(self, seed=5):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape, *, dtype=torch.float64, device="cpu"):
        return torch.randn(shape, generator=self.generator, dtype=dtype)


def unknown(sampler, denoiser, n=3000):
    """Mean and deviation of the number that is not known; the other must be 1."""
    x = sampler(denoiser, denoiser.process.prior((n, 2), Fast(1), dtype=torch.float64), rng=Fast())
    assert torch.allclose(x[:, 0], torch.ones(n, dtype=torch.float64), atol=1e-10)
    return float(x[:, 1].mean()), float(x[:, 1].std())


# -- the law of the rest -----------------------------------------------------------------------------------------------


def test_biased_and_unbiased_as_the_docs_say():
    """Correlation 0.9, the known number 1: the other has mean 0.9 and deviation 0.436 (3,000 draws: the estimates
    vary by 0.008 and 0.006)."""
    pair, steps = Joint(VP()), Ancestral(100)
    held = Held(100, known=FIRST, base=steps)
    found = {
        "project": unknown(steps, guidance.project(pair, FIRST.paste)),
        "held": unknown(held, pair),
        "repaint": unknown(RePaint(base=held, passes=10, length=1), pair),
        "reconstruct": unknown(Heun(50), guidance.reconstruct(pair, FIRST.residue)),
        "reconstruct, ancestral": unknown(steps, guidance.reconstruct(pair, FIRST.residue)),
    }
    docs = {
        "project": (0.615, 0.578),
        "held": (0.615, 0.537),
        "repaint": (0.872, 0.389),
        "reconstruct": (0.899, 0.433),
        "reconstruct, ancestral": (0.900, 0.405),
    }
    for name, (mean, std) in docs.items():
        assert found[name] == (pytest.approx(mean, abs=0.025), pytest.approx(std, abs=0.018)), name


@pytest.mark.parametrize("process", AFFINE, ids=lambda p: type(p).__name__)
def test_reconstruct_is_the_exact_denoiser_of_what_is_left(process):
    """Conditioned on its first number the pair is (1, N(0.9, 0.19)): x0 and eps of that, at any x_t and t."""
    guided = guidance.reconstruct(Joint(process), FIRST.residue)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.02, 0.3, 0.7, 0.95):
        p = process.at(t)
        conditional = _pinned(process, x, t)
        assert torch.allclose(guided(x * (p.alpha + p.sigma), p).x0[:, 0], torch.ones(64).double(), atol=1e-9)
        assert torch.allclose(guided(x * (p.alpha + p.sigma), p).x0, conditional, atol=1e-6)


def _pinned(process, x, t):
    """E[x0 | x_t, first = 1] by conditioning the joint law of (x0, x_t), written out."""
    p, eye = process.at(t), torch.eye(2, dtype=torch.float64)
    xt = x * (p.alpha + p.sigma)
    cross = p.alpha * PAIR  # of x0 with x_t
    seen = torch.zeros(3, 3, dtype=torch.float64)  # of (first, x_t)
    seen[0, 0], seen[0, 1:], seen[1:, 0] = 1.0, cross[0], cross[0]
    seen[1:, 1:] = p.alpha**2 * PAIR + p.sigma**2 * eye
    with_x0 = torch.cat([PAIR[:, :1], cross], dim=1)
    told = torch.cat([torch.ones(len(x), 1, dtype=torch.float64), xt], dim=1)
    return told @ torch.linalg.solve(seen, with_x0.T)


@pytest.mark.parametrize("process", AFFINE, ids=lambda p: type(p).__name__)
def test_reconstruct_samples_the_conditional_law_of_every_process(process):
    spacing = times.power if isinstance(process, EDM) else times.uniform
    mean, std = unknown(Heun(40, spacing), guidance.reconstruct(Joint(process), FIRST.residue), 4000)
    assert (mean, std) == (pytest.approx(TRUTH[0], abs=0.03), pytest.approx(TRUTH[1], abs=0.03))


def test_more_rounds_solve_for_many_known_numbers():
    """Four numbers that fall off with distance, three known: one round is near, two are nearer, three exact, and no
    more do harm."""
    law = 0.9 ** (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    y = torch.tensor([[1.0, -0.5, 0.8, 0.0]], dtype=torch.float64)
    known = Known(y, torch.tensor([[True, True, True, False]]))
    truth = (law[3, :3] @ torch.linalg.solve(law[:3, :3], y[0, :3])).item()
    x = torch.zeros(1, 4, dtype=torch.float64)
    far = {}
    for rounds in (1, 2, 3, 300):
        guess = guidance.reconstruct(Joint(VP(), law), known.residue, rounds=rounds, floor=1e-6)(x, 0.9)
        far[rounds] = float((guess.x0[0, :3] - y[0, :3]).abs().max())
    assert far[300] < 1e-9 and far[3] < 1e-9 < far[2] < far[1]
    pinned = guidance.reconstruct(Joint(VP(), law), known.residue, rounds=3, floor=1e-6)(x, 0.95)
    assert float(pinned.x0[0, 3]) == pytest.approx(truth, abs=0.02)


def test_reconstruct_moves_a_momentum():
    """Independent numbers of a CLD: the known one goes to its value, the other keeps its law."""
    process = CLD()
    known = Known(torch.tensor([[0.7, 0.0]], dtype=torch.float64), torch.tensor([[True, False]]))
    guided = guidance.reconstruct(PhaseGaussian(process, 0.2, 0.5), known.residue)
    x = SSCS(60)(guided, process.prior((4000, 2), Fast(1), dtype=torch.float64), rng=Fast())
    assert torch.allclose(process.project(x)[:, 0], torch.full((4000,), 0.7).double(), atol=1e-6)
    rest = process.project(x)[:, 1]
    assert (float(rest.mean()), float(rest.std())) == (pytest.approx(0.2, abs=0.04), pytest.approx(0.5, abs=0.04))


def test_reconstruct_leaves_no_graph_and_keeps_the_split():
    guess = guidance.reconstruct(Joint(VP()), FIRST.residue)(torch.ones(3, 2, dtype=torch.float64), 0.4)
    assert not guess.x0.requires_grad and not guess.eps.requires_grad
    p = guess.point
    assert torch.allclose(p.alpha * guess.x0 + p.sigma * guess.eps, torch.ones(3, 2).double(), atol=1e-12)


# -- colours -----------------------------------------------------------------------------------------------------------


def test_the_axes_of_colour():
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(LUMA @ LUMA.T, eye, atol=1e-15)
    assert torch.equal(LUMA[0], torch.full((3,), 1 / math.sqrt(3), dtype=torch.float64))
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    other = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    axes = Known(torch.zeros(1), torch.tensor([True, False, False]).reshape(1, 3, 1, 1), LUMA)
    mixed = axes.put(x, axes.turn(other))
    assert torch.allclose(mixed.mean(1), other.mean(1), atol=1e-14)  # the brightness of one
    assert torch.allclose(mixed - mixed.mean(1, keepdim=True), x - x.mean(1, keepdim=True), atol=1e-14)
    assert float(axes.residue(axes.put(x, axes.values)).abs().max()) < 1e-14


# -- whole recipes -----------------------------------------------------------------------------------------------------


def tiny(paper, *, shape=(3, 8, 8), classes=(), **config):
    preset = paper.PRESETS["tiny" if "tiny" in paper.PRESETS else "fashion"].config
    network = replace(preset.network, widths=(16, 16), attention=(), patch=1)
    recipe = next(
        k
        for k in vars(paper).values()
        if isinstance(k, type) and issubclass(k, Pixels) and (k.__module__ == paper.__name__)
    )
    torch.manual_seed(0)
    return recipe(replace(preset, shape=shape, classes=classes, network=network, **config)).eval().requires_grad_(False)


RUNS = {
    "ddpm": lambda **k: tiny(ddpm, **k),
    "edm": lambda **k: tiny(edm, **k),
    "vp": lambda **k: tiny(score_sde, **k),
    "subvp": lambda **k: tiny(score_sde, sde="subvp", **k),
    "ve": lambda **k: tiny(score_sde, sde="ve", **k),
    "flow": lambda **k: tiny(flow_matching, **k),
    "cld": lambda **k: tiny(cld, **k),
}
PHOTO = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(3)).mul(255).round() / 255
MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:6, 3:] = True


def few(recipe, steps=4):
    """The run's own sampler, shorter."""
    own = recipe.sampler()
    return DDIM(steps) if isinstance(own, ODE45) else replace(own, steps=steps)


@pytest.mark.parametrize("method", edits.METHODS)
@pytest.mark.parametrize("name", RUNS)
def test_known_pixels_stay_bit_for_bit(name, method):
    recipe = RUNS[name]()
    ask = Ask(n=2, sampler=few(recipe))
    how = (lambda w, k: edits.repaint(w, k, passes=2, length=2)) if method == "repaint" else edits.METHODS[method]
    if name == "cld" and method == "repaint":
        with pytest.raises(UserError, match="use reconstruct"):
            edits.inpaint(recipe, PHOTO, MASK, ask, rng=Seeds(0), method=how)
        return
    if method == "repaint":
        ask = Ask(n=2, sampler=Ancestral(4, few(recipe).spacing))
    out = edits.inpaint(recipe, PHOTO, MASK, ask, rng=Seeds(0), method=how)
    assert out.shape == (2, 3, 8, 8) and torch.isfinite(out).all()
    assert torch.equal(out[:, :, ~MASK], PHOTO[:, ~MASK].expand(2, -1, -1))
    assert not torch.equal(out[0], out[1])


def test_an_edit_depends_on_its_own_seed():
    recipe = RUNS["ddpm"]()
    ask = lambda n: Ask(n=n, sampler=Ancestral(5))  # noqa: E731
    many = edits.inpaint(recipe, PHOTO, MASK, ask(4), rng=Seeds(5))
    one = edits.inpaint(recipe, PHOTO, MASK, ask(1), rng=Seeds(7))
    assert torch.allclose(many[2], one[0], atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "ve", "flow"])
def test_colours_keep_the_brightness(name):
    recipe = RUNS[name]()
    out = edits.colorize(recipe, PHOTO, Ask(n=2, sampler=few(recipe)), rng=Seeds(0))
    assert float((out.mean(1) - PHOTO.mean(0)).abs().max()) < 1e-6
    levels = (out * 255).round()
    assert float((levels.mean(1) - 255 * PHOTO.mean(0)).abs().max()) <= 1.0
    assert float((out - out.mean(1, keepdim=True)).abs().max()) > 0.01
    again = edits.colorize(recipe, PHOTO.mean(0, keepdim=True), Ask(n=2, sampler=few(recipe)), rng=Seeds(0))
    assert torch.equal(out, again)  # a coloured photograph is its gray one


@pytest.mark.parametrize("name", RUNS)
def test_strength_runs_from_the_picture_to_a_fresh_sample(name):
    recipe = RUNS[name]()
    ask = Ask(n=2, sampler=few(recipe, 6))
    assert torch.equal(edits.redraw(recipe, PHOTO, 0.0, ask, rng=Seeds(3)), PHOTO.expand(2, 3, 8, 8))
    *_, last = recipe.sample(ask, rng=Seeds(3))
    assert torch.equal(edits.redraw(recipe, PHOTO, 1.0, ask, rng=Seeds(3)), recipe.picture(last))
    seen = []
    half = edits.redraw(recipe, PHOTO, 0.5, ask, rng=Seeds(3), show=lambda *pair: seen.append(pair))
    assert torch.isfinite(half).all() and seen[-1] == (3, 3)


@pytest.mark.parametrize("process", AFFINE, ids=lambda p: type(p).__name__)
def test_little_strength_stays_near(process):
    """By the exact denoiser of normal data, the closer the less is changed, and strength 1 has forgotten all."""
    spacing = times.power if isinstance(process, EDM) else times.uniform
    sampler = DDIM(40, spacing)
    x0 = torch.full((2000, 1), 0.8, dtype=torch.float64)
    means = []
    for strength in (0.1, 0.5, 0.9):
        start, tail = edits._last(sampler, process, strength)
        noised = process.noise(x0, start, process.draw(x0, Fast(2))).xt
        means.append(float(tail(Gaussian(process, 0.0, 0.5), noised, start=start).mean()))
        assert tail.steps == round(40 * strength)
    assert 0.8 > means[0] > means[1] > means[2] > -0.1


# -- encodings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", AFFINE, ids=lambda p: type(p).__name__)
def test_the_default_encoder_returns(process):
    """Of a mixture of pictures, within 0.004 of the range: 0.0017 at most was measured."""
    g = torch.Generator().manual_seed(0)
    means = torch.rand(20, 1, 6, 6, generator=g, dtype=torch.float64) * 2 - 1
    data = Mixture(process, means, torch.full((20,), 0.2))
    x = means[:3] + 0.1 * torch.randn(3, 1, 6, 6, generator=g, dtype=torch.float64)
    sampler = DDIM(200, times.balanced)
    back = sampler(data, sampler(data, x, start=0.0, end=1.0))
    assert float((back - x).abs().mean()) / 2 < 0.004


@pytest.mark.parametrize("name", RUNS)
def test_every_run_encodes_and_decodes(name):
    recipe = RUNS[name]()
    seen = []
    ask = Ask(sampler=None if name in ("ddpm", "cld") else encodings.encoder(recipe, 60))
    latents = encodings.encode(recipe, PHOTO[None], ask, show=lambda *pair: seen.append(pair))
    assert latents.shape == (1, 6 if name == "cld" else 3, 8, 8)
    error = float((encodings.decode(recipe, latents, ask) - PHOTO).abs().mean())
    assert error < (0.02 if ask.sampler is None else 0.06)  # a third of the steps
    assert name != "ddpm" or seen[-1] == (200, 200)


def test_slerp_goes_in_equal_angles():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 4, 4, generator=g), 2 * torch.randn(3, 4, 4, generator=g)
    way = encodings.slerp(a, b, torch.linspace(0, 1, 5)).flatten(1).double()
    assert torch.allclose(way[0], a.flatten().double(), atol=1e-6)
    assert torch.allclose(way[-1], b.flatten().double(), atol=1e-6)
    unit = way / way.norm(dim=1, keepdim=True)
    angles = (unit[1:] * unit[:-1]).sum(1).acos()
    assert torch.allclose(angles, angles[:1].expand(4), atol=1e-6)
    assert torch.allclose(way.norm(dim=1), torch.linspace(float(a.norm()), float(b.norm()), 5).double(), atol=1e-4)
    assert torch.equal(encodings.slerp(a, a, torch.tensor([0.3]))[0], a)


def test_an_interpolation_begins_and_ends_with_its_pictures():
    recipe = RUNS["ddpm"]()
    other = PHOTO.flip(0, 2)
    way = encodings.interpolate(recipe, PHOTO, other, 3, Ask(sampler=encodings.encoder(recipe, 60)))
    assert float((way[0] - PHOTO).abs().mean()) < 0.02 and float((way[2] - other).abs().mean()) < 0.02


# -- labels, and what cannot be ----------------------------------------------------------------------------------------


class Told(torch.nn.Module):
    """A network that answers what it was told."""

    def forward(self, x, time, *, vector=None):
        return x * 0 + vector.mean(1).reshape(-1, 1, 1, 1)


def test_a_run_with_classes_is_told_those_that_were_asked_for_or_none():
    recipe = RUNS["ddpm"](classes=("a", "b"))
    recipe.denoiser = NeuralDenoiser(Told(), VP(), parametrisation.x0)
    x = torch.zeros(2, 3, 8, 8)
    rows = recipe.label.embedding.weight.mean(1)
    for labels, scale, wanted in ((None, 1.0, rows[2]), ((1,), 1.0, rows[1]), ((0,), 3.0, 3 * rows[0] - 2 * rows[2])):
        told = walks.told(recipe, Ask(n=2, labels=labels, guidance=scale))
        assert torch.allclose(told(x, 0.5).x0, torch.full_like(x, float(wanted)), atol=1e-5)


def test_what_cannot_be_is_one_sentence():
    plain, gray = RUNS["ddpm"](), RUNS["ddpm"](shape=(1, 8, 8))
    jump = tiny(consistency)
    classes = RUNS["ddpm"](classes=("a", "b"))
    cases = {
        "gray pictures": lambda: edits.colorize(gray, PHOTO[:1], rng=Seeds(0)),
        "nothing is kept": lambda: edits.inpaint(plain, PHOTO, MASK | True, rng=Seeds(0)),
        "marks nothing": lambda: edits.inpaint(plain, PHOTO, MASK & False, rng=Seeds(0)),
        "the mask is 4 x 8": lambda: edits.inpaint(plain, PHOTO, MASK[:, :4], rng=Seeds(0)),
        "this run makes 3 x 8 x 8": lambda: edits.redraw(plain, PHOTO[:1], 0.5, rng=Seeds(0)),
        "from 0": lambda: edits.redraw(plain, PHOTO, 1.5, rng=Seeds(0)),
        "adds noise, and cannot encode": lambda: encodings.encode(plain, PHOTO[None], Ask(sampler=Ancestral(4))),
        "looks back": lambda: encodings.encode(plain, PHOTO[None], Ask(sampler=DPMpp2M(4))),
        "leave out guidance": lambda: encodings.encode(classes, PHOTO[None], Ask(labels=(0,), guidance=2.0)),
        "say which": lambda: edits.redraw(classes, PHOTO, 0.5, Ask(n=1, guidance=2.0), rng=Seeds(0)),
        "without labels": lambda: edits.redraw(plain, PHOTO, 0.5, Ask(n=1, labels=(0,)), rng=Seeds(0)),
        "no way back": lambda: encodings.encode(jump, PHOTO[None]),
        "use project": lambda: edits.inpaint(jump, PHOTO, MASK, rng=Seeds(0)),
        "encode with the run": lambda: encodings.decode(plain, torch.zeros(1, 3, 4, 8)),
        "must be a half, a third": lambda: edits.enlarge(plain, PHOTO[:, :3, :3], rng=Seeds(0)),
        "the blur is 0 pixels wide": lambda: edits.deblur(plain, PHOTO, 0.0, rng=Seeds(0)),
        "2 ends": lambda: encodings.interpolate(plain, PHOTO, PHOTO, 1),
    }
    for words, call in cases.items():
        with pytest.raises(UserError, match=words) as refused:
            call()
        assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_edits_are_public():
    assert sfumato.inpaint is edits.inpaint and sfumato.encode is encodings.encode


def test_a_consistency_model_pastes_and_redraws():
    jump = tiny(consistency)
    made = edits.inpaint(jump, PHOTO, MASK, Ask(n=2), rng=Seeds(0), method=edits.project)
    assert torch.equal(made[:, :, ~MASK], PHOTO[:, ~MASK].expand(2, -1, -1))
    assert torch.isfinite(edits.redraw(jump, PHOTO, 0.5, Ask(n=2), rng=Seeds(0))).all()
