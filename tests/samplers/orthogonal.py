"""Exact laws of samplers on Gaussian data, and stand-ins for Seeds.

On Gaussian data a step is linear in x and z, so that only inner products matter: with noises that are orthogonal to
each other and to x_1 and have the norm sqrt(D), |x|^2 / D *is* the variance, without any sampling error, for the very
samplers that users run (and for Langevin norms in the limit of many dimensions)."""

import itertools
import math

import torch


class Orthogonal:
    """Stands for Seeds: every row of noise is orthogonal to all others."""

    def __init__(self):
        self.used = 0

    def normal(self, shape, *, dtype=torch.float64, device="cpu"):
        z = torch.zeros(shape, dtype=torch.float64)
        for channel in range(shape[1]):
            z[0, channel, self.used] = math.sqrt(shape[-1])
            self.used += 1
        return z


def covariance(sampler, oracle, D, *, start=1.0, end=0.0, root=None):
    """Exact covariance of what `sampler` makes of the prior, or of root e at `start`: (1, 1), or (2, 2) for CLD."""
    rng = Orthogonal()
    x = oracle.process.prior((1, 1, D), rng, dtype=torch.float64)
    if root is not None:
        x = torch.einsum("ij,bjd->bid", root, Orthogonal().normal(x.shape))
    x = sampler(oracle, x, rng=rng, start=start, end=end)[0]
    assert rng.used <= D
    return x @ x.T / D


def std(sampler, oracle, D, **how):
    return math.sqrt(float(covariance(sampler, oracle, D, **how)[0, 0]))


class Fixed:
    """Stands for Seeds where a test needs to know the noise."""

    def __init__(self, *z):
        self.z = itertools.cycle(z)

    def normal(self, shape, *, dtype, device):
        return torch.as_tensor(next(self.z), dtype=dtype).expand(shape).clone()


class Bulk:
    """One generator for the whole batch, where a test asks for the law alone."""

    def __init__(self):
        self.g = torch.Generator().manual_seed(0)

    def normal(self, shape, *, dtype=torch.float64, device="cpu"):
        return torch.randn(shape, generator=self.g, dtype=dtype)


def slopes(errors):
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


class Noise:
    """Numbers that both sides draw, each of its dtype in turn."""

    def __init__(self, seed, *dtypes):
        self.g, self.dtypes = torch.Generator().manual_seed(seed), itertools.cycle(dtypes)

    def normal(self, shape, *, dtype, device):
        return torch.randn(shape, generator=self.g, dtype=next(self.dtypes)).to(dtype)
