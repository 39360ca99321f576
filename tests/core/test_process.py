"""Processes and schedules against the published formulas."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from sfumato.core.schedules import VP, Cosine, Discrete, betas

T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
PROCESSES = [VP(), Cosine(), Cosine(2.0), Discrete.linear(), Discrete.cosine(), Discrete.scaled_linear()]


def test_discrete_is_equation_4_at_its_entries():
    process = Discrete.linear()
    alpha_bar = torch.cumprod(1 - betas.linear(), 0)
    points = process.points((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    assert max(abs(p.alpha**2 - a) for p, a in zip(points, alpha_bar.tolist(), strict=True)) < 2e-15
    assert max(abs(p.alpha**2 + p.sigma**2 - 1) for p in points) < 1e-15
    assert [p.time for p in points] == list(range(1000))


def test_discrete_between_and_outside_its_entries():
    process = Discrete.linear()
    clean, below, at_first, middle = process.points([0.0, 0.0004, 0.001, 0.5005])
    assert (clean.alpha, clean.sigma, clean.time) == (1.0, 0.0, 0.0)
    assert below.time == 0.0 and math.isclose(
        below.sigma / below.alpha, 0.4 * at_first.sigma / at_first.alpha, rel_tol=1e-12
    )
    low, high = (math.log(p.sigma / p.alpha) for p in process.points([0.5, 0.501]))
    assert math.isclose(
        math.log(middle.sigma / middle.alpha), (low + high) / 2, rel_tol=1e-9
    ) and middle.time == pytest.approx(499.5)


def test_known_figures_of_the_tables():
    linear = Discrete.linear()
    assert float(linear.alpha_bar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)
    first, last = linear.points([0.001, 1.0])
    assert first.sigma / first.alpha == pytest.approx(0.0100, abs=1e-4) and last.sigma / last.alpha == pytest.approx(
        157.41, abs=5e-3
    )
    assert float(Discrete.cosine(1000).alpha_bar[-1]) == pytest.approx(2.43e-9, rel=2e-3)
    assert float(Discrete.cosine(4000).alpha_bar[-1]) == pytest.approx(1.52e-10, rel=5e-3)
    assert int((betas.cosine() == 0.999).sum()) == 1
    assert Discrete(betas.jsd()).points([1.0])[0].alpha == 0.0 and Discrete(betas.jsd()).points([1.0])[0].sigma == 1.0


@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_tables_equal_diffusers(ours, theirs):
    limits = {} if ours == "cosine" else {"beta_start": 0.00085, "beta_end": 0.012}
    table = getattr(betas, ours)(1000, *limits.values())
    assert torch.allclose(table.float(), DDPMScheduler(1000, beta_schedule=theirs, **limits).betas, rtol=1e-6, atol=0)


def test_warm_up_quad_and_const_tables():
    assert torch.equal(betas.warmup(100, fraction=0.5)[50:], betas.const(50)) and torch.equal(
        betas.warmup(100, fraction=0.5)[:50], betas.linear(50)
    )
    assert torch.allclose(betas.quad(10).sqrt().diff(), betas.quad(10).sqrt().diff()[0].expand(9), rtol=1e-12)
    assert torch.allclose(betas.jsd(4), torch.tensor([1 / 4, 1 / 3, 1 / 2, 1.0], dtype=torch.float64))


def test_vp_gives_songs_drift_and_diffusion():
    process, x = VP(), torch.ones(1, 1, dtype=torch.float64)
    for t in T.tolist():
        beta = 0.1 + t * 19.9
        assert float(process.diffusion(x, t)) ** 2 == pytest.approx(beta, rel=1e-12)
        assert float(process.drift(x, t)) == pytest.approx(-beta / 2, rel=1e-12)
        score = torch.full_like(x, 0.3)
        assert float(process.reverse(x, t, score)) == pytest.approx(-beta / 2 - beta * 0.3, rel=1e-12)
        assert float(process.reverse(x, t, score, ode=True)) == pytest.approx(-beta / 2 - beta * 0.15, rel=1e-12)


def test_diffusion_at_the_data_is_its_limit():
    x = torch.ones(2, 1, dtype=torch.float64)
    assert float(VP().diffusion(x, 0.0)) == pytest.approx(math.sqrt(0.1), rel=1e-4)
    assert VP().diffusion(x, torch.zeros(2)).tolist() == pytest.approx([math.sqrt(0.1)] * 2, rel=1e-4)
    assert torch.isfinite(VP().reverse(x, 0.0, x)).all() and torch.isfinite(Discrete.linear().reverse(x, 0.0, x)).all()


def test_linear_table_tends_to_vp():
    """Ho's table is the discretisation of Song's beta(t) = 0.1 + 19.9 t."""
    gaps = [
        float((Discrete.linear(n, 0.1 / n, 20 / n).log_snr(T) - VP().log_snr(T)).abs().max())
        for n in (1000, 2000, 4000)
    ]
    assert gaps[0] < 0.07 and gaps[0] / gaps[1] == pytest.approx(2, rel=0.02) == gaps[1] / gaps[2]


def test_shift_lowers_log_snr_by_its_logarithm():
    assert torch.allclose(Cosine(2.0).log_snr(T), Cosine(1.0).log_snr(T) - 2 * math.log(2), atol=1e-12)
    assert torch.allclose(Cosine(1.0, end=1.0).alpha(T), torch.cos(math.pi / 2 * T), atol=1e-15)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_rates_are_derivatives(process):
    """Central differences inside an interval of the table (the log ratio of a table has kinks at its entries)."""
    t, h = (T * 1000).floor() / 1000 + 3.7e-4, 1e-6
    da, ds = process.rates(t)
    for rate, f in ((da, process.alpha), (ds, process.sigma)):
        assert torch.allclose(rate, (f(t + h) - f(t - h)) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_time_inverts_log_snr(process):
    assert torch.allclose(process.time(process.log_snr(T)), T, atol=1e-11)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_batch_of_times_gives_the_same_points_as_a_grid(process):
    batch, grid = process.at(T), process.points(T)
    for name in ("alpha", "sigma", "time"):
        assert getattr(batch, name).tolist() == [getattr(point, name) for point in grid]


@pytest.mark.parametrize("bad", [[0.0, 0.1], [0.5, 1.5], [[0.1]], [float("nan")]])
def test_impossible_tables_are_refused(bad):
    with pytest.raises(ValueError, match="betas"):
        Discrete(torch.tensor(bad))
