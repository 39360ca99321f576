"""`sample --classifier` of a run trained with `--config.guide mean`: the official rule at every respaced step, and the
score's where another sampler walks."""

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.cli.samplers import chosen
from sfumato.cli.steer import SteerFlags, steered
from sfumato.core import times
from sfumato.core.random import Seeds
from sfumato.recipe import Ask
from sfumato.samplers.auto import Auto
from sfumato.samplers.multistep import DEIS
from tests.cli.conftest import SMALL, quietly

STEPS, SCALE, ROSE = 6, 3.0, 1
LINEAR = ("--config.schedule", "linear")
READS = ("--config.reader.widths", "16", "16", "--config.reader.head-width", "8", "--batch", "16")


@pytest.fixture(scope="module")
def moved(place, photos):
    """(a run whose classifiers move the mean of a step, a classifier upon it)"""
    run, kinds = place / "runs" / "moved", place / "runs" / "moves"
    words = ("--steps", 25, "--config.guide", "mean", "--config.predict", "eps", *LINEAR, *SMALL)
    quietly("train", "adm", photos, "--labels", "folder", "--out", run, *words)
    words = ("--stage", "classifier", "--from", run, "--out", kinds, "--steps", 40, "--precision", "fp32", *READS)
    quietly("train", "adm", photos, "--labels", "folder", *words)
    return run, kinds


def official(run, kinds, x, noise, ddim=False, window=False):
    """p_mean_variance, condition_mean and condition_score of guided-diffusion, written out on the networks alone: x_s
    after every step. The window is ours: no gradient where noise is more than sqrt(N) times the picture."""
    model, reader = sfumato.load(run), sfumato.load(kinds)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    entries = torch.linspace(0, 999, STEPS, dtype=torch.float64).round().long()
    bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)[entries]])
    beta = 1 - bar[1:] / bar[:-1]
    posterior = beta * (1 - bar[:-1]) / (1 - bar[1:])
    clipped = torch.cat([posterior[1:2], posterior[1:]]).log()
    told = model.label.embedding(torch.full((len(x),), ROSE))
    for i in reversed(range(STEPS)):
        a, before, index = bar[i + 1], bar[i], entries[i : i + 1].float()
        seen = x.float().requires_grad_()
        known = reader.network(seen, index).log_softmax(1)[:, ROSE].sum()
        gradient = SCALE * torch.autograd.grad(known, seen)[0].double()
        gradient = gradient * (not window or (1 - a) / a <= x[0].numel())
        with torch.no_grad():
            eps, o = model.denoiser.network(x.float(), index, vector=told).double().chunk(2, 1)
        x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
        if ddim:
            eps = (x - a.sqrt() * x0) / (1 - a).sqrt() - (1 - a).sqrt() * gradient
            x = before.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - before).sqrt() * eps
        else:
            variance = ((o + 1) / 2 * beta[i].log() + (1 - o) / 2 * clipped[i]).exp()
            centre = before.sqrt() * beta[i] / (1 - a) * x0 + (1 - beta[i]).sqrt() * (1 - before) / (1 - a) * x
            x = centre + variance * gradient
            x = x + variance.sqrt() * noise.normal(x.shape).double() if i else x
        yield x


def trajectory(moved, **walk):
    """Ours, as `sample --classifier --classifier-scale 3 --label rose` has it."""
    run, kinds = moved
    recipe = steered(sfumato.load(run), SteerFlags(classifier=kinds, classifier_scale=SCALE))
    recipe.requires_grad_(False)
    sampler = chosen(recipe.sampler(), walk.pop("sampler", None), steps=STEPS, **walk)
    return [s.x.clone() for s in recipe.sample(Ask(3, labels=(ROSE,), sampler=sampler), rng=Seeds(4))]


def theirs(moved, **how):
    rng = Seeds(4)
    x = sfumato.load(moved[0]).denoiser.process.prior((3, 1, 16, 16), rng)
    return list(official(*moved, x.double(), rng, **how))


def test_every_respaced_step_is_the_official_rule(moved):
    """Also with another number of steps than the run's own, whose last variance is another."""
    ours, expected = trajectory(moved), theirs(moved)
    assert len(ours) == len(expected) == STEPS
    for x, y in zip(ours, expected, strict=True):
        assert torch.allclose(x.double(), y, rtol=1e-4, atol=1e-4), float((x - y).abs().max())
    unmoved = [s.x.clone() for s in sfumato.load(moved[0]).sample(asked(moved), rng=Seeds(4))]
    assert float((unmoved[-1] - ours[-1]).abs().max()) > 0.05  # the classifier was heard


def asked(moved):
    sampler = chosen(sfumato.load(moved[0]).sampler(), steps=STEPS)
    return Ask(3, labels=(ROSE,), sampler=sampler)


def test_ddim_goes_by_the_score(moved):
    ours = trajectory(moved, sampler="ddim", spacing=str(STEPS))
    for x, y in zip(ours, theirs(moved, ddim=True, window=True), strict=True):
        assert torch.allclose(x.double(), y, rtol=1e-4, atol=1e-4), float((x - y).abs().max())


def test_auto_takes_short_memory_where_a_gradient_steers(moved):
    """Its fourth order goes astray on a gradient that sets in at once: accuracy .34 in place of .75 on Fashion-MNIST
    with scale 8 and 20 steps."""
    run, kinds = moved
    recipe = steered(sfumato.load(run), SteerFlags(classifier=kinds, classifier_scale=SCALE)).requires_grad_(False)
    ends = []
    for sampler in (Auto(STEPS), DEIS(STEPS, times.balanced, order=2), Auto(STEPS, order=2)):
        *_, last = recipe.sample(Ask(3, labels=(ROSE,), sampler=sampler), rng=Seeds(4))
        ends.append(last.x)
    assert torch.equal(ends[0], ends[2]) and torch.allclose(ends[0], ends[1], atol=0.05)


@pytest.mark.parametrize("sampler", ["", "ddpm", "ddim", "heun"])
def test_the_command_does_so(sampler, moved, command, tmp_path):
    """As pictures, to a grey level; and samplers of other kinds walk, by the score."""
    walk = ("--sampler", sampler) if sampler else ()
    walk += ("--spacing", STEPS) if sampler == "ddim" else ("--steps", STEPS)
    words = ("--classifier", moved[1], "--classifier-scale", SCALE, "--label", "rose", "--n", 3, "--seed", 4)
    said = command("sample", moved[0], *words, *walk, "--threads", 1, "--out", tmp_path)
    assert said.code == 0, said
    made = torch.from_numpy(np.stack([np.asarray(Image.open(tmp_path / f"seed_0000000{i}.png")) for i in (4, 5, 6)]))
    x = trajectory(moved, sampler="heun")[-1] if sampler == "heun" else theirs(moved, **HOW[sampler == "ddim"])[-1]
    expected = ((x[:, 0] + 1) * 127.5).clamp(0, 255).round()
    assert float((made.double() - expected).abs().max()) <= 1


HOW = ({}, {"ddim": True, "window": True})
