"""Distances between sets: closed forms, the figures of torch-fidelity, torchmetrics and prdc, honest intervals."""

import json
import warnings
from pathlib import Path

import numpy as np
import prdc
import pytest
import scipy.linalg
import torch

from sfumato.errors import UserError
from sfumato.metrics.enough import frechet_warning, kid_warning, needed_for_frechet, needed_for_kid
from sfumato.metrics.frechet import Infinity, frechet, frechet_infinity, noise_floor
from sfumato.metrics.inception_score import inception_score
from sfumato.metrics.kid import KID, kid, mmd
from sfumato.metrics.neighbours import density_coverage, precision_recall
from sfumato.metrics.statistics import Gaussian, Moments
from sfumato.metrics.vendi import vendi
from tests.metrics.seeded import rows

RECORDED = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())["torch_fidelity"]
X, Y = rows(0, 600, 24, 0.1), rows(1, 700, 24)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(x):
    return Moments.of(x).gaussian()


def diagonal(mean, variances):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.diag(torch.tensor(variances, dtype=torch.float64)))


def test_frechet_in_closed_form():
    assert frechet(diagonal([0, 0], [1, 4]), diagonal([1, 2], [9, 16])) == pytest.approx(13, rel=1e-12)
    a, b = normal(0, 9, 9), normal(1, 9, 9)
    a, b = a @ a.T, b @ b.T
    expected = np.trace(a + b) - 2 * np.trace(scipy.linalg.sqrtm(a.numpy() @ b.numpy()).real)
    zero = torch.zeros(9, dtype=torch.float64)
    assert frechet(Gaussian(zero, a), Gaussian(zero, b)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [500, 1500])
def test_a_set_against_itself_is_nothing(n):
    """At n = 500 the 1,024 features have no full rank, where eigenvalues of the product err by 1e-6 and more."""
    x = (normal(0, n, 1024) * torch.logspace(0, -2, 1024) + 3).float()
    one, two = gaussian(x), gaussian(x[torch.randperm(n, generator=torch.Generator().manual_seed(1))])
    assert abs(frechet(one, two)) < 1e-10 * one.cov.trace()


def test_figures_of_torch_fidelity():
    assert frechet(gaussian(X), gaussian(Y)) == pytest.approx(RECORDED["frechet_inception_distance"], rel=1e-6)
    found = kid(X, Y, subsets=7, size=200)
    assert found.value == pytest.approx(RECORDED["kernel_inception_distance_mean"], rel=1e-6)
    assert found.std == pytest.approx(RECORDED["kernel_inception_distance_std"], rel=1e-6)
    score = inception_score(4 * X)
    assert score.value == pytest.approx(RECORDED["inception_score_mean"], rel=1e-6)
    assert score.std == pytest.approx(RECORDED["inception_score_std"], rel=1e-6)
    found = precision_recall(Y, X)
    assert found.precision == pytest.approx(RECORDED["precision"], rel=1e-6)
    assert found.recall == pytest.approx(RECORDED["recall"], rel=1e-6)


def test_figures_of_torchmetrics():
    """What its metrics compute once they have features; the metrics themselves want Inception or torch-fidelity."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.fid import _compute_fid
        from torchmetrics.image.kid import poly_mmd
    one, two = gaussian(X), gaussian(Y)
    fid = _compute_fid(one.mean, one.cov, two.mean, two.cov)
    assert frechet(one, two) == pytest.approx(float(fid), rel=1e-6)
    x, y = X[:500].double(), Y[:500].double()
    assert mmd(x, y) == pytest.approx(float(poly_mmd(x, y)), rel=1e-6)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_figures_of_prdc(k, capsys):
    x, y = X.double(), Y.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = prdc.compute_prdc(y.numpy(), x.numpy(), k)
    ours = precision_recall(y, x, k=k, closed=False)._asdict() | density_coverage(y, x, k=k)._asdict()
    assert {name: float(value) for name, value in theirs.items()} == pytest.approx(ours, rel=1e-12)


def test_precision_and_recall_by_hand():
    """Balls of radius 1 about 0..9; those of 0, 0.5, 100, 101, 102 have the radii 0.5, 0.5, 1, 1, 1."""
    real, made = torch.arange(10.0)[:, None], torch.tensor([0, 0.5, 100, 101, 102])[:, None]
    assert precision_recall(real, made, k=1) == pytest.approx((0.4, 0.2))
    assert precision_recall(real, made, k=1, closed=False) == pytest.approx((0.4, 0.1))
    assert precision_recall(made, real, k=1) == pytest.approx((0.2, 0.4))
    far = precision_recall(1e4 + 7 * real, 1e4 + 7 * made, k=1)
    assert far == pytest.approx((0.4, 0.2)), "ties stay ties far from the origin"


def test_precision_tells_quality_and_recall_variety():
    real, narrow = normal(0, 1000, 8), 0.2 * normal(1, 1000, 8)
    assert precision_recall(real, narrow).precision > 0.99 and precision_recall(real, narrow).recall < 0.02
    assert precision_recall(narrow, real).precision < 0.02 and precision_recall(narrow, real).recall > 0.99
    same = density_coverage(real, normal(2, 1000, 8))
    assert same.density == pytest.approx(1, abs=0.1) and same.coverage > 0.95
    with pytest.raises(UserError, match="more than 3"):
        precision_recall(real[:3], narrow)


def test_kid_by_hand_and_without_bias():
    x, y = torch.tensor([[0, 0], [1, 0], [0, 1.0]]), torch.tensor([[1, 1], [2, 0], [0, 2.0]])
    assert mmd(x, y) == pytest.approx(0.5, rel=1e-12) == mmd(x, y, batch=2)
    draws = [mmd(normal(2 * s, 40, 4), normal(2 * s + 1, 40, 4)) for s in range(200)]
    assert min(draws) < 0 < max(draws) and abs(np.mean(draws)) < 3 * np.std(draws) / 200**0.5


def test_the_error_of_kid_is_how_much_it_varies():
    draws = [kid(normal(2 * s, 400, 6) * 1.3, normal(2 * s + 1, 400, 6), subsets=30, size=80) for s in range(60)]
    spread, told = np.std([d.value for d in draws]), np.mean([d.error for d in draws])
    assert 0.7 < told / spread < 1.4


def test_inception_score_by_hand():
    rows_ = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert inception_score(rows_.log(), splits=1, seed=None).value == pytest.approx(1.44493, abs=5e-6)
    sure = torch.eye(5).repeat(4, 1).log()
    assert inception_score(sure, splits=1).value == pytest.approx(5) and inception_score(sure * 0, splits=2).value != 5
    with pytest.raises(UserError, match="10 splits"):
        inception_score(rows_)


def test_vendi_counts():
    assert vendi(torch.eye(7)) == pytest.approx(7) and vendi(3 * torch.ones(9, 4)) == pytest.approx(1)
    assert vendi(torch.eye(3).repeat(5, 1)) == pytest.approx(3) and vendi(torch.eye(9, 20) * 5) == pytest.approx(9)


D = 16
MIX = [normal(99 + i, D, D) / 4 for i in range(2)]
CASES = {  # factor of the second covariance, shift of its mean
    "far": (MIX[1] + 0.5 * torch.eye(D, dtype=torch.float64), 0.2),
    "near": (MIX[0] + 0.2 * MIX[1], 0.02),
    "same": (MIX[0], 0.0),
}


def covered(case, draws, n=5000):
    """(how often the interval holds the true distance, mean of value - truth and of plain - truth)."""
    factor, shift = CASES[case]
    mean = shift * normal(5, D)
    truth = frechet(Gaussian(0 * mean, MIX[0] @ MIX[0].T), Gaussian(mean, factor @ factor.T))
    hits, off = 0, []
    for draw in range(draws):
        x, y = normal(2 * draw, n, D) @ MIX[0].T, normal(2 * draw + 1, n, D) @ factor.T + mean
        found = frechet_infinity(x, y)
        hits += found.low <= truth <= found.high
        off.append((found.value - truth, found.plain - truth))
    return hits, *np.mean(off, 0)


def test_the_interval_covers_the_truth():
    hits, bias, plain = covered("near", 100)
    assert hits >= 88 and abs(bias) < plain / 10, (hits, bias, plain)


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES))
def test_the_interval_covers_the_truth_everywhere(case):
    hits, bias, plain = covered(case, 100)
    assert hits >= 88 and abs(bias) < plain / 2, (hits, bias, plain)


def test_extrapolation_takes_the_bias_of_either_side():
    """Against exact statistics of y only the bias of x remains, half of it."""
    x, exact = normal(1, 3000, D), Gaussian(torch.zeros(D).double(), torch.eye(D).double())
    one, both = frechet_infinity(x, exact), frechet_infinity(x, normal(2, 3000, D))
    assert both.plain / one.plain == pytest.approx(2, rel=0.2)
    assert abs(one.value) < 2.5 * one.error and abs(both.value) < 2.5 * both.error
    assert one.low < one.value < one.high and one.plain > one.high
    assert frechet_infinity(x, exact) == one, "the groups are the same each time"
    with pytest.raises(UserError, match="40 samples"):
        frechet_infinity(x[:30], exact)


def test_the_noise_floor_is_what_real_samples_score():
    x = normal(3, 8000, D) @ MIX[0]
    whole = [
        frechet(gaussian(normal(10 + s, 1000, D) @ MIX[0]), gaussian(normal(50 + s, 1000, D) @ MIX[0]))
        for s in range(8)
    ]
    assert noise_floor(x, 1000) == pytest.approx(np.mean(whole), rel=0.15)
    assert noise_floor(x[:800], 1000) == pytest.approx(np.mean(whole), rel=0.3), "scaled from halves of 400"
    assert noise_floor(x, 500) == pytest.approx(2 * noise_floor(x, 1000), rel=0.2)


def test_too_few_samples_are_told_with_the_number_needed():
    enough = Infinity(10.0, 0.1, 9.8, 10.2, 10.5)
    assert needed_for_frechet(enough, 0.5, 5000, 64) == 2500 and frechet_warning(enough, 0.5, 5000, 64) == ""
    assert "20,000" in frechet_warning(enough, 4.0, 5000, 64)
    assert "4,096" in frechet_warning(enough, 0.5, 1000, 2048) and "rank" in frechet_warning(enough, 0.5, 1000, 2048)
    assert "cannot tell" in frechet_warning(Infinity(0.1, 0.1, -0.1, 0.3, 1.0), 1.0, 1000, 64)
    assert needed_for_kid(KID(1.0, 1.0, 0.2), 1000) == 4000 and "4,000" in kid_warning(KID(1.0, 1.0, 0.2), 1000)
    assert kid_warning(KID(1.0, 1.0, 0.05), 1000) == "" and "cannot tell" in kid_warning(KID(0.1, 1.0, 0.2), 1000)


def test_n_as_needed_is_then_enough():
    """The number that the warning gives ends the warning."""
    x, y = normal(0, 20_000, D), 1.2 * normal(1, 20_000, D)
    few = frechet_infinity(x[:400], y[:400])
    needed = needed_for_frechet(few, noise_floor(y, 400), 400, D)
    assert 400 < needed < 10_000
    many = frechet_infinity(x[: 2 * needed], y[: 2 * needed])
    assert frechet_warning(many, noise_floor(y, 2 * needed), 2 * needed, D) == ""
