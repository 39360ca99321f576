"""Score-Based Generative Modeling through Stochastic Differential Equations. \
Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2021. arXiv:2011.13456.

Noise is a stochastic differential equation: variance-preserving (vp), its sub-VP kin (subvp) or variance-exploding
(ve). A network learns the score at every t (eq. 7), with which the equation runs backwards: by Euler-Maruyama, by
reverse diffusion with Langevin steps in between (appendix G), or without noise as a probability flow, which also
encodes pictures and says how probable they are (section 4.3). `--config.sde ve` chooses; `--config.continuous False` is
the chain of N steps from which each came (SMLD, DDPM).

Departs from the paper: the t of a batch are spread evenly, each still uniform. In the presets tiny, small and fashion
(_ve, _subvp) the network sees and answers unit variance and is told 999 t (predict edm, after Karras et al. 2022),
which small models learn faster in little time, x0 is clipped and sampling shorter. They average the loss over pixels,
where the authors sum that of ve: clipped to norm 1, as nearly all gradients of the sum are, that is another optimiser,
and kept in their presets. The norms of Langevin steps are a picture's own (samplers/langevin.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from sfumato.core import losses, parametrisation, schedules, times
from sfumato.core.cond import Cond
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.parametrisation import Coefficients, Parametrisation
from sfumato.core.process import Affine, Point
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import UNet, UNetConfig
from sfumato.networks.config import DDPMPP, DDPMPP_DEEP, NCSNPP, NCSNPP_256, NCSNPP_1024, NCSNPP_DEEP
from sfumato.pixels import PixelConfig, Pixels, presets
from sfumato.recipe import Preset, Training, reported
from sfumato.samplers.ancestral import Ancestral, large
from sfumato.samplers.langevin import PredictorCorrector
from sfumato.samplers.sampler import Sampler
from sfumato.samplers.sde import EulerMaruyama

__all__ = ["PRESETS", "Config", "ScoreSDE"]


@dataclass(frozen=True)
class Config(PixelConfig):
    """What the model is."""

    sde: Literal["vp", "subvp", "ve"] = "vp"
    continuous: bool = True  # False: trained on a chain of N steps, the SMLD of ve or the DDPM of vp
    N: int = 1000
    beta_min: float = 0.1  # of vp and subvp
    beta_max: float = 20.0
    sigma_min: float = 0.01  # of ve
    sigma_max: float = 0.0  # 0: 0.9 sqrt(dimensions), about the distance of the two pictures that differ most
    predict: Literal["score", "edm"] = "score"  # score: -F / sigma (vp, subvp) or F / sigma (ve), as in the paper
    weight: Literal["plain", "likelihood"] = "plain"  # of |sigma score + z|^2; likelihood: g^2 / sigma^2
    reduce: Literal["mean", "sum"] = "mean"  # over the dimensions of a picture; sum: half of it
    eps: float = 1e-5  # the least t of training
    steps: int = 1000  # of sampling
    snr: float = 0.16  # of Langevin steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.continuous and (self.sde == "subvp" or self.weight == "likelihood"):
            raise UserError("only continuous training has sub-VP and the likelihood weight: leave out continuous.")
        if not (2 <= self.N <= 100_000 and 1 <= self.steps <= 100_000 and 0 < self.eps < 0.1 and 0 <= self.snr < 1e3):
            raise UserError("N and steps must be from 2 and 1 to 100,000, eps from 0 to 0.1, and snr not negative.")
        if not (0 < self.beta_min <= self.beta_max < 1e4 and 0 < self.sigma_min < self.noisiest < 1e6):
            raise UserError("beta_min and beta_max, sigma_min and sigma_max must be positive and in this order.")

    @property
    def noisiest(self) -> float:
        return self.sigma_max or 0.9 * math.sqrt(math.prod(self.shape))


def process_of(config: Config) -> Affine:
    """The equation, or the chain of N steps that it is the limit of."""
    c = config
    if c.sde == "ve":
        return schedules.VE(c.sigma_min, c.noisiest) if c.continuous else schedules.Levels(c.N, c.sigma_min, c.noisiest)
    if not c.continuous:
        return schedules.Discrete.linear(c.N, c.beta_min / c.N, c.beta_max / c.N)
    return (schedules.VP if c.sde == "vp" else schedules.SubVP)(c.beta_min, c.beta_max)


def scaled(process: Affine, point: Point) -> Coefficients:
    """F is sigma score (their VE networks, whose output is divided by sigma). Of a chain they are told the index, else
    log sigma."""
    time = point.time
    if isinstance(process, schedules.VE):
        time = time.log() if isinstance(time, Tensor) else math.log(max(time, process.low))
    return Coefficients(1.0, point.sigma, 1.0, time, (0.0, -1.0))


def even(process: Affine, point: Point) -> Coefficients:
    """Network input and output of unit variance (`parametrisation.edm`), told 999 t."""
    return UNIT(process, point)._replace(time=999.0 * point.t)


UNIT = parametrisation.edm(0.5)  # the root mean square of pictures, about, in either range
WEIGHTS: dict[str, losses.Weight | None] = {"plain": None, "likelihood": losses.likelihood}


class Centred(UNet):
    """A network that is given x around 1/2, and sees 2 x - 1 (theirs, for data in [0, 1])."""

    def forward(self, x: Tensor, time: Tensor, **told: Any) -> Tensor:
        return super().forward(2 * x - 1, time, **told)


class ScoreSDE(Pixels):
    """Equation 7 with lambda = sigma^2, or with g^2 for the likelihood."""

    config: Config

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        exploding, paper = config.sde == "ve", config.predict == "score"
        self.value_range = (0.0, 1.0) if exploding else (-1.0, 1.0)
        self.weight, self.least = WEIGHTS[config.weight], config.eps
        network = self.make_network(kind=Centred if exploding and paper else UNet)
        predict: Parametrisation = (scaled if exploding else parametrisation.eps) if paper else even
        self.denoiser = NeuralDenoiser(network, process_of(config), predict)
        self.label = self.embedding(network)

    def draw(self, rng: Seeds) -> Tensor:
        """(B,) the t of a training batch: from eps to 1, or an entry of the chain."""
        if not self.config.continuous:
            return times.entries(rng, self.config.N)
        return self.config.eps + (1.0 - self.config.eps) * times.low_discrepancy(rng)

    def errors(self, x0: Tensor, t: Tensor, cond: Cond | None, rng: Seeds) -> Tensor:
        means = super().errors(x0, t, cond, rng)
        return means if self.config.reduce == "mean" else means * (0.5 * x0[0].numel())

    def sampler(self) -> Sampler:
        """Of vp and subvp Euler-Maruyama, of the chain of vp DDPM's ancestral steps; of ve reverse diffusion after a
        Langevin step."""
        if self.config.sde == "ve":
            return PredictorCorrector(self.config.steps, snr=self.config.snr)
        return (
            EulerMaruyama(self.config.steps) if self.config.continuous else Ancestral(self.config.steps, variance=large)
        )


def _theirs(network: UNetConfig, iterations: int, *, batch: int = 128, ema: float = 0.9999, **config: Any) -> Preset:
    """The authors' configuration: `iterations` of their best checkpoint's training."""
    training = Training(steps=iterations, batch=batch, lr=2e-4, warmup=5_000, ema=ema, ema_rule="warmup")
    return Preset(Config(network=network, **config), training, "the authors' configuration")


def _exploding(network: UNetConfig, iterations: int, most: float, *, ema: float = 0.999, **given: Any) -> Preset:
    return _theirs(network, iterations, ema=ema, sde="ve", sigma_max=most, reduce="sum", **given)


def _reached(preset: Preset, fid: float, score: float, flow: tuple[float, float] | None = None) -> Preset:
    """The preset with its row of the authors' table: by their sampler, and by the probability flow (FID, bits)."""
    source, data = "README of yang-song/score_sde_pytorch, table of checkpoints", "CIFAR-10"
    walked = reported({"fid": fid, "is": score}, data, None, source, note="the best checkpoint of the training")
    if flow is not None:
        found = {"fid": flow[0], "bits": flow[1]}
        walked += reported(found, data, None, source, sampler="probability flow (ODE)", note="the last checkpoint")
    return replace(preset, published=walked)


_OURS = presets(Config(predict="edm", clip=True, steps=200), ", the VP SDE")
_TEN_MINUTES = _OURS["fashion"]
_LARGE: dict[str, Any] = {"shape": (3, 256, 256), "N": 2000, "steps": 2000, "snr": 0.075}

PRESETS: dict[str, Preset] = {
    **_OURS,
    "fashion_subvp": Preset(replace(_TEN_MINUTES.config, sde="subvp"), _TEN_MINUTES.training, "the sub-VP SDE"),
    "fashion_ve": Preset(replace(_TEN_MINUTES.config, sde="ve"), _TEN_MINUTES.training, "the VE SDE"),
    "cifar10": _reached(_theirs(DDPMPP, 1_300_000), 2.55, 9.58, (3.93, 3.16)),
    "cifar10_deep": _reached(_theirs(DDPMPP_DEEP, 950_000), 2.41, 9.68, (3.08, 3.13)),
    "cifar10_subvp": _reached(_theirs(DDPMPP, 1_300_000, sde="subvp"), 2.61, 9.56, (3.16, 3.02)),
    "cifar10_subvp_deep": _reached(_theirs(DDPMPP_DEEP, 950_000, sde="subvp"), 2.41, 9.57, (2.92, 2.99)),
    "cifar10_ve": _reached(_exploding(NCSNPP, 1_300_000, 50.0), 2.38, 9.83),
    "cifar10_ve_deep": _reached(_exploding(NCSNPP_DEEP, 950_000, 50.0), 2.20, 9.89),
    "cifar10_chain": _reached(_theirs(DDPMPP, 1_300_000, continuous=False), 2.78, 9.64),
    "cifar10_ve_chain": _reached(
        _exploding(replace(NCSNPP, fourier=0.0, time_width=128), 1_300_000, 50.0, continuous=False), 2.45, 9.73
    ),
    "celebahq": _exploding(NCSNPP_256, 2_400_000, 348.0, batch=64, **_LARGE),
    "ffhq": _exploding(NCSNPP_256, 2_400_000, 348.0, batch=64, **_LARGE),
    "bedroom": _exploding(NCSNPP_256, 2_400_000, 378.0, batch=64, **_LARGE),
    "church": _exploding(NCSNPP_256, 2_400_000, 380.0, batch=64, **_LARGE),
    "ffhq_1024": _exploding(
        NCSNPP_1024, 2_400_000, 1348.0, batch=8, ema=0.9999, **{**_LARGE, "shape": (3, 1024, 1024), "snr": 0.15}
    ),
}
