"""Score-Based Generative Modeling with Critically-Damped Langevin Diffusion. \
Dockhorn, Vahdat, Kreis 2022. arXiv:2112.07068.

Every pixel gets a momentum, and noise enters the momentum alone: data and noise mix smoothly, and the network has only
the score of the momentum given the pixel to learn (section 3.1). Trained by hybrid score matching (eq. 8), in which the
momentum's beginning is integrated out, and a mixed score (section 3.2); sampled by their symmetric splitting, SSCS
(section 3.3), by Euler-Maruyama or by the probability flow, whose density bounds the likelihood of the pictures.

`clip` holds x0, which follows from the guessed noise of the momentum, in the range of the data; the position itself is
never clipped but in the picture at the end, as in the authors' code, which has no other.

Departs from the paper: the t of a batch are spread evenly, each still uniform. The presets tiny, small and fashion tell
the network 999 t, average the loss over pixels and sample by a short SSCS. The kernel is computed without cancellation,
so that numerical_eps is a choice and never a need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from sfumato.core import phase, times
from sfumato.core.cond import Cond
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.phase import CLD as Process
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks.config import CLD_CELEBA, CLD_CIFAR10
from sfumato.pixels import PixelConfig, Pixels, presets
from sfumato.recipe import Preset, Training, reported
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.sampler import Sampler
from sfumato.samplers.sde import SSCS, EulerMaruyama, quadratic_striding, striding

__all__ = ["CLD", "PRESETS", "Config"]


def index_time(t: Tensor) -> Tensor:
    """999 t, for sinusoidal features."""
    return 999.0 * t


CLOCKS: dict[str, Callable[[Tensor], Tensor]] = {"log": phase.log_time, "raw": phase.raw_time, "index": index_time}
STRIDES: dict[str, times.Spacing] = {"linear": striding, "quadratic": quadratic_striding}


@dataclass(frozen=True)
class Config(PixelConfig):
    """What the model is."""

    beta: float = 4.0  # beta(t) = beta + slope t
    slope: float = 0.0
    mass: float = 0.25  # 1 / 4: friction 1, critical
    gamma: float = 0.04  # v_0 has variance gamma x mass
    numerical_eps: float = 1e-9  # added to the variances of the kernel: tempers 1 / sigma at small t
    objective: Literal["hybrid", "denoising"] = "hybrid"  # v_0 integrated out of the loss, or drawn
    clock: Literal["log", "raw", "index"] = "log"  # what the network is told: log t, t, 999 t
    weight: Literal["plain", "likelihood"] = "plain"  # plain: of the noise of v ("reweighted"); Gamma beta of the score
    reduce: Literal["sum", "mean"] = "sum"  # over the dimensions of a picture
    eps: float = 1e-5  # the least t of training
    method: Literal["ode45", "sscs", "em"] = "ode45"  # of sampling
    striding: Literal["linear", "quadratic"] = "linear"  # of its steps
    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1 <= self.steps <= 100_000 and 0 < self.eps < 0.1):
            raise UserError("steps must be from 1 to 100,000, and eps between 0 and 0.1.")
        try:
            process_of(self)
        except ValueError as error:
            raise UserError(f"{error}.") from None


def process_of(config: Config) -> Process:
    """Raises ValueError for numbers that diffuse nothing."""
    c = config
    hybrid = c.objective == "hybrid"
    return Process(c.beta, c.slope, c.mass, c.gamma, c.numerical_eps, hybrid=hybrid, clock=CLOCKS[c.clock])


class CLD(Pixels):
    """Equation 9: the noise of the momentum, told the position and the momentum."""

    config: Config

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        self.weight = phase.likelihood if config.weight == "likelihood" else None
        self.least = config.eps
        network = self.make_network(inputs=2)
        self.denoiser = NeuralDenoiser(network, process_of(config), phase.mixed)
        self.label = self.embedding(network)

    def draw(self, rng: Seeds) -> Tensor:
        """(B,) the t of a training batch, from eps to 1 in float64."""
        return self.config.eps + (1.0 - self.config.eps) * times.low_discrepancy(rng)

    def errors(self, x0: Tensor, t: Tensor, cond: Cond | None, rng: Seeds) -> Tensor:
        means = super().errors(x0, t, cond, rng)
        return means if self.config.reduce == "mean" else means * x0[0].numel()

    def sampler(self) -> Sampler:
        """The config's method: each ends with a step to t = 0 that denoises."""
        if self.config.method == "ode45":
            return ODE45()
        kind = SSCS if self.config.method == "sscs" else EulerMaruyama
        return kind(self.config.steps, STRIDES[self.config.striding])


_OURS = Config(clock="index", reduce="mean", method="sscs", striding="quadratic", steps=200)


_THEIRS = Training(steps=800_000, batch=128, lr=2e-4, warmup=100_000, ema=0.9999, ema_rule="warmup")
_CELEBA = Config((3, 256, 256), network=CLD_CELEBA, numerical_eps=1e-6, clock="raw")

_TABLE_1, _BOUND = "Dockhorn et al. 2022, table 1", "bits are an upper bound"

PRESETS: dict[str, Preset] = {
    **presets(_OURS),
    "cifar10": Preset(
        Config(network=CLD_CIFAR10),
        _THEIRS,
        "the authors' configuration",
        reported({"fid": 2.25, "bits": 3.31}, "CIFAR-10", None, _TABLE_1, sampler="probability flow", note=_BOUND)
        + reported({"fid": 2.23}, "CIFAR-10", None, "Dockhorn et al. 2022, table 3", sampler="Euler-Maruyama"),
    ),
    "celebahq": Preset(
        _CELEBA,
        replace(_THEIRS, steps=320_000, batch=64, lr=1e-4),
        "the authors' configuration of the paper, which they call unstable",
    ),
    "celebahq_stable": Preset(
        replace(_CELEBA, network=replace(CLD_CELEBA, blocks=4), beta=0.1, slope=6.9, eps=1e-3),
        replace(_THEIRS, steps=600_000, batch=96, lr=1e-4, weight_decay=0.01),
        "the authors' configuration after the paper",
    ),
}
