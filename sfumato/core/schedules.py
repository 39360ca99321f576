"""Schedules: each is two functions, alpha(t) and sigma(t), or a table of betas that stands for them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.estimate import Scalar
from sfumato.core.process import INSTANT, Affine

__all__ = ["EDM", "VE", "VP", "Betas", "Cosine", "Discrete", "Flow", "Levels", "SubVP", "betas"]


@dataclass(frozen=True)
class VP(Affine):
    """Variance-preserving SDE (Song et al. 2021, eq. 32-33), beta(t) = low + t (high - low) in units of 1 / t.

    log alpha = -t^2 (high - low) / 4 - t low / 2. `times` is what networks are told: `times` x t (999 in Song's code).
    """

    low: float = 0.1
    high: float = 20.0
    times: float = 999.0
    prior_std = 1.0
    constant = True

    def _log_power(self, t: Tensor) -> Tensor:
        """log alpha^2."""
        return -0.5 * t * t * (self.high - self.low) - t * self.low

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * self._log_power(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(self._log_power(t)))

    def network_time(self, t: Tensor) -> Tensor:
        return self.times * t

    def time(self, log_snr: Tensor | float) -> Tensor:
        decay = torch.nn.functional.softplus(-_double(log_snr), threshold=700.0)
        return self._at_decay(decay)

    def _at_decay(self, decay: Tensor) -> Tensor:
        """t where -log alpha^2 is `decay`, at most 1."""
        most = 0.5 * (self.high + self.low)
        decay = decay.clamp(max=most)
        return 2 * decay / (self.low + torch.sqrt(self.low**2 + 2 * (self.high - self.low) * decay))


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP SDE (Song et al. 2021, eq. 34): VP's alpha, and sigma = 1 - alpha^2, never above VP's."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._log_power(t))

    def time(self, log_snr: Tensor | float) -> Tensor:
        return self._at_decay(2 * torch.asinh(_level(log_snr) / 2))


@dataclass(frozen=True)
class VE(Affine):
    """Variance-exploding SDE (Song et al. 2021, eq. 30-31): sigma = low (high / low)^t for t > 0, and 0 at t = 0, so
    that the last step of a sampler reaches clean data. Networks are told sigma."""

    low: float = 0.01
    high: float = 50.0
    first = INSTANT
    constant = True

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.where(t > 0, self.low * (self.high / self.low) ** t, 0.0)

    def network_time(self, t: Tensor) -> Tensor:
        return self.sigma(t)

    def time(self, log_snr: Tensor | float) -> Tensor:
        u = -_double(log_snr) / 2
        t = (u - math.log(self.low)) / math.log(self.high / self.low)
        return torch.where(u == -math.inf, 0.0, t.clamp(INSTANT, 1.0))


@dataclass(frozen=True)
class EDM(Affine):
    """x_t = x_0 + sigma eps with sigma = high t (Karras et al. 2022, table 1); `low` is the least noise that networks
    know. They are told log(sigma) / 4."""

    low: float = 0.002
    high: float = 80.0
    constant = True

    @property
    def first(self) -> float:  # type: ignore[override]
        return self.low / self.high

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.high * t

    def network_time(self, t: Tensor) -> Tensor:
        return self.sigma(t).clamp(min=self.low).log() / 4

    def share(self, t: Tensor) -> Tensor:
        """How far log sigma is from `low` to `high`, in [0, 1]."""
        return (torch.log(self.sigma(t) / self.low) / math.log(self.high / self.low)).clamp(0.0, 1.0)

    def time(self, log_snr: Tensor | float) -> Tensor:
        return (_level(log_snr) / self.high).clamp(max=1.0)


@dataclass(frozen=True)
class Flow(Affine):
    """x_t = (1 - t) x_0 + t eps: rectified flow and flow matching (Liu et al. 2022, arXiv:2209.03003; Lipman et al.
    2022), with noise at t = 1 as everywhere here. Networks are told `times` x t."""

    times: float = 1000.0
    prior_std = 1.0
    constant = True

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t * 1.0

    def rates(self, t: Scalar) -> tuple[Scalar, Scalar]:
        return (-torch.ones_like(t), torch.ones_like(t)) if isinstance(t, Tensor) and t.ndim else (-1.0, 1.0)

    def network_time(self, t: Tensor) -> Tensor:
        return self.times * t

    def time(self, log_snr: Tensor | float) -> Tensor:
        return torch.sigmoid(-_double(log_snr) / 2)


@dataclass(frozen=True)
class Cosine(Affine):
    """alpha = cos(theta), sigma = sin(theta), with sigma / alpha = shift tan(pi t / 2).

    The continuous cosine schedule (Nichol & Dhariwal 2021; Kingma et al. 2021) with the shift of log SNR by -2
    log(shift) of simple diffusion (Hoogeboom et al. 2023, arXiv:2301.11093, eq. 6): the larger the picture, the larger
    `shift`. `end` < 1 keeps alpha(1) above 0. Networks are told `times` x t."""

    shift: float = 1.0
    end: float = 0.9999
    times: float = 1000.0
    prior_std = 1.0
    constant = True

    def _angle(self, t: Tensor) -> Tensor:
        return torch.atan(self.shift * torch.tan(0.5 * math.pi * self.end * t))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t))

    def network_time(self, t: Tensor) -> Tensor:
        return self.times * t

    def time(self, log_snr: Tensor | float) -> Tensor:
        return (torch.atan(_level(log_snr) / self.shift) * (2 / (math.pi * self.end))).clamp(max=1.0)


def _double(log_snr: Tensor | float) -> Tensor:
    return torch.as_tensor(log_snr, dtype=torch.float64)


def _level(log_snr: Tensor | float) -> Tensor:
    """sigma / alpha."""
    return torch.exp(-_double(log_snr) / 2)


# -- tables ------------------------------------------------------------------------------------------------------------

Betas = Tensor  # (T,) float64: the variance that each of T steps adds


class betas:
    """The tables of the literature, each (T,) float64 in (0, 1].

    linear, quad, const, jsd, warmup10, warmup50: Ho et al. 2020 (the code's `get_beta_schedule`); cosine: Nichol &
    Dhariwal 2021, eq. 17; scaled_linear: latent diffusion, linear in sqrt(beta)."""

    @staticmethod
    def linear(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Betas:
        return torch.linspace(start, end, T, dtype=torch.float64, device="cpu")

    @staticmethod
    def scaled_linear(T: int = 1000, start: float = 0.00085, end: float = 0.012) -> Betas:
        return torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=torch.float64, device="cpu") ** 2

    @staticmethod
    def quad(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Betas:
        return betas.scaled_linear(T, start, end)

    @staticmethod
    def const(T: int = 1000, end: float = 0.02) -> Betas:
        return torch.full((T,), end, dtype=torch.float64, device="cpu")

    @staticmethod
    def warmup(T: int = 1000, start: float = 1e-4, end: float = 0.02, *, fraction: float = 0.1) -> Betas:
        table = betas.const(T, end)
        n = int(T * fraction)
        table[:n] = betas.linear(n, start, end)
        return table

    @staticmethod
    def jsd(T: int = 1000) -> Betas:
        """1/T, 1/(T-1), ..., 1: the last step leaves no signal, alpha(1) = 0."""
        return 1.0 / torch.arange(T, 0, -1, dtype=torch.float64, device="cpu")

    @staticmethod
    def cosine(T: int = 1000, offset: float = 0.008, most: float = 0.999) -> Betas:
        """1 - f((i+1)/T) / f(i/T) with f(u) = cos^2((u + offset) / (1 + offset) pi / 2), at most `most`."""
        f = [math.cos((i / T + offset) / (1 + offset) * math.pi / 2) ** 2 for i in range(T + 1)]
        return torch.tensor(
            [min(1 - after / before, most) for before, after in itertools.pairwise(f)],
            dtype=torch.float64,
            device="cpu",
        )


class _Table(Affine):
    """T values of log(sigma / alpha) at t = 1/T, 2/T, ..., 1, linear in t between; below the first, where it has no
    finite end, sigma / alpha is linear, so that t = 0 is exactly clean."""

    constant = True

    def __init__(self, knots: Tensor) -> None:
        self._knots = knots

    def __len__(self) -> int:
        return len(self._knots)

    @property
    def first(self) -> float:  # type: ignore[override]
        return 1.0 / len(self)

    def index(self, t: Tensor) -> Tensor:
        """T t - 1, rounded to the entry where it is one (t may carry the rounding of a grid)."""
        k = len(self) * t - 1
        off = (k.round() - k).detach()
        return k + torch.where(off.abs() < 1e-9, off, 0.0)

    def _log_ratio(self, t: Tensor) -> Tensor:
        """log(sigma / alpha) at t."""
        knots = self._knots.to(t.device)
        k = self.index(t)
        low = k.detach().floor().clamp(0, max(len(self) - 2, 0)).long()
        high = (low + 1).clamp(max=len(self) - 1)
        a, b, w = knots[low], knots[high], k - low
        signal_ends = torch.isinf(b)  # there alpha / sigma falls linearly to 0
        to_zero = torch.log1p(-torch.where(signal_ends, w, 0.0))
        inside = a + torch.where(signal_ends, -to_zero, w * (torch.where(signal_ends, a, b) - a))
        return torch.where(k < 0, knots[0] + torch.log1p(k.clamp(max=0.0)), inside)

    def time(self, log_snr: Tensor | float) -> Tensor:
        u = -_double(log_snr) / 2
        knots = self._knots.to(u.device)
        knots = knots if len(self) > 1 else torch.cat([knots, knots + 1])
        high = torch.searchsorted(knots, u).clamp(1, len(knots) - 1)
        a, b = knots[high - 1], knots[high]
        ends = torch.isinf(b)
        inside = torch.where(ends, -torch.expm1(a - u), (u - a) / torch.where(ends, 1.0, b - a))
        k = torch.where(u < knots[0], torch.expm1(u - knots[0]), (high - 1) + inside)
        return ((k + 1) / len(self)).clamp(0.0, 1.0)


class Discrete(_Table):
    """A table of T betas as a continuous process: alpha^2 at t = (k+1)/T is prod_{i <= k} (1 - beta_i) (Ho et al. eq.
    4). Networks are told `pace` times the index T t - 1, held at 0 below the first entry. Raises ValueError when a beta
    leaves (0, 1]."""

    prior_std = 1.0

    def __init__(self, table: Betas, pace: float = 1.0) -> None:
        table = torch.as_tensor(table, dtype=torch.float64, device="cpu")
        if table.ndim != 1 or not bool(((table > 0) & (table <= 1)).all()):
            raise ValueError("betas must be a row of numbers in (0, 1]")
        self.betas, self.pace = table, pace
        self.alpha_bar = torch.cumprod(1 - table, 0)
        log_signal = torch.cumsum(torch.log1p(-table), 0)  # log alpha^2, -inf when it is 0
        super().__init__(0.5 * (torch.log(-torch.expm1(log_signal)) - log_signal))

    def __repr__(self) -> str:
        return f"Discrete({len(self)} betas, {float(self.betas[0]):g} .. {float(self.betas[-1]):g})"

    @classmethod
    def linear(cls, T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Discrete:
        return cls(betas.linear(T, start, end))

    @classmethod
    def cosine(cls, T: int = 1000) -> Discrete:
        return cls(betas.cosine(T))

    @classmethod
    def scaled_linear(cls, T: int = 1000, start: float = 0.00085, end: float = 0.012) -> Discrete:
        return cls(betas.scaled_linear(T, start, end))

    def network_time(self, t: Tensor) -> Tensor:
        return self.pace * self.index(t).clamp(min=0)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._log_ratio(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self._log_ratio(t)).sqrt()


class Levels(_Table):
    """x_t = x_0 + sigma eps on N noise levels evenly spaced in log sigma (SMLD; Song & Ermon 2019, Song et al. 2021):
    level k = 0 .. N - 1 is t = (k + 1) / N. Networks are told N - 1 - k: 0 is the most noise."""

    def __init__(self, N: int = 1000, low: float = 0.01, high: float = 50.0) -> None:
        self.low, self.high = low, high
        super().__init__(torch.linspace(math.log(low), math.log(high), N, dtype=torch.float64, device="cpu"))

    def __repr__(self) -> str:
        return f"Levels({len(self)}, {self.low:g} .. {self.high:g})"

    def network_time(self, t: Tensor) -> Tensor:
        return len(self) - 1 - self.index(t).clamp(min=0)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._log_ratio(t).exp()
