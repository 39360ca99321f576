"""What the tests of one-step samplers share: noise that is known, denoisers that count, exact flows and moments."""

import itertools

import torch
from scipy.integrate import solve_ivp

from sfumato.core.estimate import Estimate, like
from sfumato.core.process import Affine
from sfumato.samplers.sampler import State


class Replay:
    """Stands for Seeds: these draws, in turn."""

    def __init__(self, noise):
        self.rest = iter(noise)

    def normal(self, shape, *, dtype, device):
        return next(self.rest).to(dtype).reshape(shape).clone()


class Draws:
    """Stands for Seeds: 1 at draw `k`, else 0; counts them."""

    def __init__(self, k=None):
        self.k, self.count = k, 0

    def normal(self, shape, *, dtype, device):
        self.count += 1
        return torch.full(shape, float(self.count - 1 == self.k), dtype=dtype)


class Counted:
    """A denoiser that counts its calls and remembers where it was called."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.calls, self.points = denoiser, denoiser.process, 0, []

    def __call__(self, x, t):
        self.calls += 1
        self.points.append(t)
        return self.denoiser(x, t)


class Rescaled(Affine):
    """The variance-exploding form of another process: x_t / alpha at the same t, the network's time unchanged."""

    prior_std = 1.0
    constant = True

    def __init__(self, other):
        self.other, self.first = other, other.first

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return self.other.sigma(t) / self.other.alpha(t)

    def network_time(self, t):
        return self.other.network_time(t)

    def time(self, log_snr):
        return self.other.time(log_snr)


class Wavy(torch.nn.Module):
    """A deterministic, nonlinear stand-in for a trained network."""

    def forward(self, x, time):
        return torch.sin(1.7 * x + 0.01 * time.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))) * 0.9


class Pair:
    """The exact denoiser of 0.5 N(-0.7, 0.6^2) + 0.5 N(0.7, 0.6^2), as one closed form."""

    def __init__(self, process):
        self.process = process

    def __call__(self, x, t):
        p = self.process.at(t)
        alpha, sigma = like(p.alpha, x), like(p.sigma, x)
        variance = 0.36 * alpha**2 + sigma**2
        x0 = (0.36 * alpha * x + 0.7 * sigma**2 * torch.tanh(0.7 * alpha * x / variance)) / variance
        return Estimate.from_x0(self.process, p, x, x0)


def ones(value=1.0, n=1):
    return torch.full((n, 1), value, dtype=torch.float64)


def affine(sampler, oracle, t, s):
    """(a, c, [b]) of one step under a linear denoiser: x_s = a x_t + c + sum_i b_i z_i."""

    def at(x, k):
        rng = Draws(k)
        return float(sampler.step(oracle, State(ones(x), t), s, rng).x), rng.count

    c, n = at(0.0, None)
    return at(1.0, None)[0] - c, c, [at(0.0, k)[0] - c for k in range(n)]


def moments(sampler, oracle, grid, mean, variance):
    """Exact (mean, variance) at the end of the grid, under a linear denoiser."""
    for t, s in itertools.pairwise(oracle.process.points(grid)):
        a, c, b = affine(sampler, oracle, t, s)
        mean, variance = a * mean + c, a * a * variance + sum(v * v for v in b)
    return mean, variance


def flowed(oracle, x, start, end):
    """x at `end` of the probability flow through x (B, 1) at `start`: d(x / alpha) = eps d(sigma / alpha), by an
    independent method of order 8."""
    process = oracle.process

    def slope(t, y):
        p, (da, ds) = process.at(t), process.rates(t)
        return (
            (ds * p.alpha - da * p.sigma)
            / p.alpha**2
            * oracle(torch.from_numpy(y)[:, None] * p.alpha, p).eps.flatten().numpy()
        )

    y = (x / process.at(start).alpha).flatten().numpy()
    found = solve_ivp(slope, (start, end), y, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    return torch.from_numpy(found.copy())[:, None] * process.at(end).alpha
