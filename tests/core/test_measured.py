"""Sums of pixels that are known: means of cells, and a blurred picture. The truth is the law of a normal field."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from sfumato.core import guidance, times
from sfumato.core.estimate import Estimate
from sfumato.core.known import Measured, blurred, shrunk, spread
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, SubVP
from sfumato.samplers.ode import Heun

AFFINE = [VP(), Discrete.linear(), Cosine(), SubVP(), VE(0.01, 50.0), EDM(), Flow()]
SIDE, FACTOR = 12, 4
LAW = 0.9 ** (torch.arange(SIDE)[:, None] - torch.arange(SIDE)).abs().double()
EYE = torch.eye(SIDE, dtype=torch.float64)
KINDS = {
    "cells": (partial(shrunk, factor=FACTOR), partial(spread, factor=FACTOR), 0.0),
    "blur": (partial(blurred, width=1.5), None, 0.1),
}


class Field:
    """A line of numbers (B, 1, SIDE), normal with covariance LAW: the exact denoiser."""

    def __init__(self, process):
        self.process = process

    def __call__(self, x, t):
        p = self.process.at(t)
        seen = p.alpha**2 * LAW + p.sigma**2 * EYE
        return Estimate.from_x0(self.process, p, x, x @ torch.linalg.solve(seen, LAW) * p.alpha)


class Fast:
    """Stands for Seeds: one generator for all."""

    def __init__(self, seed=5):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape, *, dtype=torch.float64, device="cpu"):
        return torch.randn(shape, generator=self.generator, dtype=dtype)


def measured(kind):
    """A draw of the field as it was seen, and the matrix of how."""
    of, inverse, noise = KINDS[kind]
    x0 = torch.linalg.cholesky(LAW) @ torch.randn(SIDE, generator=torch.Generator().manual_seed(2)).double()
    matrix = of(EYE[:, None])[:, 0].T
    y = of(x0[None, None]) + noise * torch.randn(1, 1, len(matrix), generator=torch.Generator().manual_seed(3))
    return Measured(y, of, inverse, noise), matrix


def truth(kind):
    """Mean (SIDE,) and covariance of the field, given what was measured."""
    known, h = measured(kind)
    seen = h @ LAW @ h.T + known.noise**2 * torch.eye(len(h), dtype=torch.float64)
    gain = torch.linalg.solve(seen, h @ LAW).T
    return gain @ known.values[0, 0], LAW - gain @ h @ LAW


# -- the operators -----------------------------------------------------------------------------------------------------


def test_means_of_cells_and_back():
    x = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = shrunk(x, 4)
    assert torch.allclose(means[1, 2, 1, 2], x[1, 2, 4:8, 8:12].mean(), atol=1e-15)
    assert torch.allclose(shrunk(spread(means, 4), 4), means, atol=1e-15)
    known = Measured(torch.rand_like(means), partial(shrunk, factor=4), partial(spread, factor=4))
    assert float(known.residue(known.paste(x)).abs().max()) < 1e-14
    with pytest.raises(ValueError, match="no inverse"):
        Measured(x, partial(blurred, width=1.0)).paste(x)


@pytest.mark.parametrize("width", [0.3, 1.0, 2.7, 9.0])
def test_the_blur_is_scipys(width):
    x = np.random.default_rng(0).normal(size=(2, 1, 9, 14))
    found = blurred(torch.from_numpy(x), width).numpy()
    for picture, out in zip(x, found, strict=True):
        assert np.abs(gaussian_filter(picture[0], width, mode="reflect", truncate=4.0) - out[0]).max() < 1e-13


# -- the law of the rest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", AFFINE, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_solved_to_the_end_it_is_the_exact_denoiser_of_what_is_left(process, kind):
    """E[x0 | x_t, y] by conditioning the joint law of (x0, x_t, y), written out."""
    known, h = measured(kind)
    guided = guidance.reconstruct(Field(process), known.residue, noise=known.noise, rounds=3 * SIDE, floor=1e-9)
    x = torch.randn(5, 1, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.05, 0.3, 0.7, 0.95):
        p = process.at(t)
        xt = x * (p.alpha + p.sigma)
        rows = torch.cat([p.alpha * EYE, h])
        noise = torch.cat([torch.full((SIDE,), p.sigma**2), torch.full((len(h),), known.noise**2)]).double()
        told = torch.cat([xt[:, 0], known.values[0].expand(5, -1)], dim=1)
        exact = told @ torch.linalg.solve(rows @ LAW @ rows.T + torch.diag(noise), rows @ LAW)
        assert torch.allclose(guided(xt, p).x0[:, 0], exact, atol=2e-6), (kind, t)


def law_of(kind, method, sampler, n=3000):
    """How far 3,000 samples are from the truth: the mean, and the deviations, both root mean square over the field in
    units of the true deviation."""
    known, _ = measured(kind)
    process = VP()
    field = {
        "project": lambda: guidance.project(Field(process), known.paste),
        "1": lambda: guidance.reconstruct(Field(process), known.residue, noise=known.noise),
        "3": lambda: guidance.reconstruct(Field(process), known.residue, noise=known.noise, rounds=3),
        "12": lambda: guidance.reconstruct(Field(process), known.residue, noise=known.noise, rounds=SIDE),
    }[method]()
    x = sampler(field, process.prior((n, 1, SIDE), Fast(1), dtype=torch.float64), rng=Fast())[:, 0]
    mean, covariance = truth(kind)
    true = covariance.diagonal().sqrt()
    off, wide = (x.mean(0) - mean) / true, x.std(0) / true - 1
    return float(off.square().mean().sqrt()), float(wide.mean())


@pytest.mark.parametrize(
    ("kind", "method", "off", "wide"),
    [
        ("cells", "project", 0.027, 0.008),
        ("cells", "1", 0.025, -0.011),
        ("cells", "3", 0.016, -0.024),
        ("blur", "1", 0.598, 0.18),
        ("blur", "3", 0.128, -0.062),
        ("blur", "12", 0.017, -0.053),
    ],
)
def test_as_far_from_the_truth_as_the_docs_say(kind, method, off, wide):
    found = law_of(kind, method, Heun(40, times.uniform))
    assert found == (pytest.approx(off, abs=0.05), pytest.approx(wide, abs=0.03))
