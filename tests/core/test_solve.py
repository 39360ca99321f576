"""The adaptive solver: order, error control, and the independence of samples, against closed forms and scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, solve_ivp

from sfumato.core import solve

A = torch.tensor([[-0.5, 2.0], [-2.0, -0.1]], dtype=torch.float64)
Y0 = torch.tensor([[1.0, 0.0], [0.3, -2.0], [5.0, 5.0]], dtype=torch.float64)


def swing(t, y):
    """dy/dt = cos(t) A y, so that y(t) = exp(sin(t) A) y(0)."""
    return (y @ A.T) * torch.cos(t)[:, None]


def exact(y, t0, t1):
    turn = torch.linalg.matrix_exp((math.sin(t1) - math.sin(t0)) * A)
    return y @ turn.T


def test_the_tableau_is_dormand_and_prince():
    assert pytest.approx(RK45.C[1:]) == solve.NODES[:5]
    for i, row in enumerate(solve.ROWS[:5]):
        assert pytest.approx(RK45.A[i + 1, : len(row)]) == row
    assert pytest.approx(RK45.B) == solve.ROWS[5]
    assert pytest.approx(-RK45.E) == solve.ERROR


def test_fixed_steps_are_of_fifth_order_and_their_estimate_too():
    errors, guesses = [], []
    for n in (16, 32, 64):
        t, y, h = torch.zeros(3, dtype=torch.float64), (Y0,), torch.full((3,), 2.0 / n, dtype=torch.float64)
        for step in range(n):
            slopes, after = [swing(t, y[0])], y
            for node, row in zip(solve.NODES, solve.ROWS, strict=True):
                after = solve._moved(y, [(s,) for s in slopes], row, h)
                slopes.append(swing(t + node * h, after[0]))
            if step == 0:
                guess = solve._moved((torch.zeros_like(Y0),), [(s,) for s in slopes], solve.ERROR, h)[0].abs().max()
            t, y = t + h, after
        errors.append(float((y[0] - exact(Y0, 0.0, 2.0)).abs().max()))
        guesses.append(float(guess))
    slopes = [[math.log2(a / b) for a, b in itertools.pairwise(row)] for row in (errors, guesses)]
    assert all(s > 4.85 for s in slopes[0]), slopes
    assert all(s > 4.85 for s in slopes[1]), slopes  # h^5: the local error of order 4


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_the_error_follows_the_tolerance_both_ways(tolerance):
    end = torch.tensor([0.7, 3.0, 9.0], dtype=torch.float64)
    y, calls = solve.integrate(swing, Y0, 0.0, end, rtol=tolerance, atol=tolerance)
    expected = torch.cat([exact(Y0[i : i + 1], 0.0, float(end[i])) for i in range(3)])
    assert float((y - expected).abs().max()) < 30 * tolerance
    back, _ = solve.integrate(swing, y, end, 0.0, rtol=tolerance, atol=tolerance)
    assert float((back - Y0).abs().max()) < 60 * tolerance
    assert calls % 6 == 2 and calls < 60 * tolerance**-0.2


def test_as_many_calls_as_scipy():
    """One sample, the same tolerances: PI control is worth as much as scipy's rule."""
    theirs = solve_ivp(
        lambda t, y: np.cos(t) * (A.numpy() @ y), (0, 9), Y0[0].numpy(), rtol=1e-6, atol=1e-6, method="RK45"
    )
    ours, calls = solve.integrate(swing, Y0[:1], 0.0, 9.0, rtol=1e-6, atol=1e-6)
    assert calls <= 1.1 * theirs.nfev
    truth = exact(Y0[:1], 0.0, 9.0)
    assert float((ours - truth).abs().max()) < 3 * float(np.abs(theirs.y[:, -1] - truth[0].numpy()).max()) + 1e-7


def course(f, y, t0, t1, tolerance):
    """Every accepted t of every sample."""
    end = solve.spread(t1, (y,))
    here = solve.begin(lambda t, p: (f(t, p[0]),), (y,), solve.spread(t0, (y,)), end, tolerance, tolerance)
    seen = [[] for _ in range(len(y))]
    while not bool((here.t == end).all()):
        here = solve.advance(lambda t, p: (f(t, p[0]),), here, end, tolerance, tolerance)
        for i, t in enumerate(here.t.tolist()):
            if not seen[i] or seen[i][-1] != t:
                seen[i].append(t)
    return here, seen


def stiff(rate):
    """Each sample needs other steps: a bump at t = 1/2 as narrow as its own rate."""
    return lambda t, y: y * (rate * torch.exp(-((rate * (t - 0.5)) ** 2)))[:, None]


def test_a_sample_takes_its_own_steps_whatever_the_others_do():
    rate = torch.tensor([1.0, 60.0, 7.0, 300.0], dtype=torch.float64)
    y = torch.ones(4, 3, dtype=torch.float64)
    together, steps = course(stiff(rate), y, 0.0, 1.0, 1e-6)
    assert len({len(row) for row in steps}) > 1, "the samples must differ, or the test says nothing"
    for i in range(4):
        alone, own = course(stiff(rate[i : i + 1]), y[i : i + 1], 0.0, 1.0, 1e-6)
        assert own[0] == steps[i]
        assert torch.equal(alone.y[0][0], together.y[0][i])
    other = rate.clone()
    other[1:] = torch.tensor([2.0, 1.0, 5.0])
    changed, _ = course(stiff(other), torch.cat([y[:1], 9 * y[1:]]), 0.0, 1.0, 1e-6)
    assert torch.equal(changed.y[0][0], together.y[0][0])


def test_all_end_exactly_and_arrived_samples_rest():
    end = torch.tensor([0.1, 0.9, -0.4], dtype=torch.float64)
    here, steps = course(swing, Y0, 0.2, end, 1e-7)
    assert here.t.tolist() == end.tolist() and all(row[-1] == e for row, e in zip(steps, end.tolist(), strict=True))
    still, calls = solve.integrate(swing, Y0, 0.3, 0.3)
    assert torch.equal(still, Y0) and calls == 2


def test_every_part_of_a_state_is_controlled_by_itself():
    """A scalar beside ten thousand quiet numbers: its error does not drown in theirs."""

    def slope(t, y):
        return torch.zeros_like(y[0]), 40.0 * torch.cos(40.0 * t)

    (x, area), _ = solve.integrate(
        slope, (torch.ones(2, 1, 100, 100, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)), 0.0, 1.0
    )
    assert torch.equal(x, torch.ones_like(x))
    assert area.tolist() == pytest.approx([math.sin(40.0)] * 2, abs=2e-4)


def test_float32_states_keep_their_type_and_time_stays_float64():
    def slope(t, y):
        assert t.dtype is torch.float64 and y.dtype is torch.float32
        return (y @ A.float().T) * torch.cos(t).float()[:, None]

    y, _ = solve.integrate(slope, Y0.float(), 0.0, 2.0)
    assert y.dtype is torch.float32
    assert torch.allclose(y.double(), exact(Y0, 0.0, 2.0), atol=1e-4)


def test_what_cannot_be_integrated_is_refused():
    with pytest.raises(ArithmeticError, match=r"vanished at t = 0\.5"):
        solve.integrate(lambda t, y: torch.where(t < 0.5, y[:, 0], torch.nan)[:, None], torch.ones(2, 1), 0.0, 1.0)
    with pytest.raises(ArithmeticError, match="vanished at t = 0"):
        solve.integrate(lambda t, y: y * torch.nan, torch.ones(2, 1), 0.0, 1.0)
    with pytest.raises(ArithmeticError, match="5 steps did not reach"):
        solve.integrate(swing, Y0, 0.0, 50.0, limit=5)


def test_given_tensors_are_left_alone():
    y0 = Y0.clone()
    solve.integrate(swing, y0, 0.0, 1.0)
    assert torch.equal(y0, Y0)
