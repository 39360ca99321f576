"""Denoising Diffusion Probabilistic Models. Ho, Jain, Abbeel 2020. arXiv:2006.11239.

Trains a network to tell the noise in a picture from the picture (L_simple, eq. 14) and samples by walking the noising
chain backwards (algorithm 2). With classes it is told the label, which it forgets now and then, so that
classifier-free guidance works (Ho & Salimans 2022).

Departs from the paper: the presets tiny, small and base predict v on a shifted cosine schedule, which small models
learn faster in little time; cifar10, lsun and celebahq are the paper's own. The decoder of the bound uses the exact
normal distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from sfumato.core import losses, parametrisation, schedules, times
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.parametrisation import Parametrisation
from sfumato.core.process import Affine
from sfumato.core.random import Seeds
from sfumato.core.schedules import betas
from sfumato.errors import UserError
from sfumato.networks import HO_256, UNetConfig
from sfumato.pixels import FAST, PixelConfig, Pixels, presets
from sfumato.recipe import Preset, Training, reported
from sfumato.samplers.ancestral import Ancestral, large, small
from sfumato.samplers.sampler import Sampler

__all__ = ["DDPM", "PRESETS", "Config"]

TABLES: dict[str, Callable[[int], Tensor]] = {
    "linear": betas.linear,
    "quad": betas.quad,
    "const": betas.const,
    "jsd": betas.jsd,
    "cosine": betas.cosine,
    "scaled_linear": betas.scaled_linear,
    "warmup10": betas.warmup,
    "warmup50": lambda T: betas.warmup(T, fraction=0.5),
}
PREDICT: dict[str, tuple[Parametrisation, losses.View]] = {
    "eps": (parametrisation.eps, losses.views.eps),
    "x0": (parametrisation.x0, losses.views.x0),
    "v": (parametrisation.v, losses.views.v),
}
WEIGHTS: dict[str, losses.Weight | None] = {
    "plain": None,
    "snr": losses.snr,
    "min_snr": losses.min_snr(),
    "truncated_snr": losses.truncated_snr,
}
VARIANCES = {"small": small, "large": large}


@dataclass(frozen=True)
class Config(PixelConfig):
    """What the model is."""

    clip: bool = True
    schedule: Literal[
        "linear", "quad", "const", "jsd", "cosine", "scaled_linear", "warmup10", "warmup50", "shifted_cosine"
    ] = "linear"
    T: int = 1000  # entries of the table
    steps: int = 1000  # of sampling
    shift: float = 1.0  # of shifted_cosine, for sides up to 32; 2 halves the signal-to-noise amplitude
    predict: Literal["eps", "x0", "v"] = "eps"
    weight: Literal["plain", "snr", "min_snr", "truncated_snr"] = "plain"
    variance: Literal["small", "large"] = "large"  # of ancestral sampling, section 3.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1 <= self.T <= 100_000 and 1 <= self.steps <= 100_000 and 0 < self.shift < 1e6):
            raise UserError(
                "T and steps must be at least 1 and at most 100,000, and shift greater than 0 and less than a million."
            )


def process_of(config: Config) -> Affine:
    """The table, or the cosine schedule with a shift that follows the side: larger pictures need more noise to be
    hidden by as much (simple diffusion, section 3.1). Raises UserError for a table that leaves a signal at its end."""
    if config.schedule == "shifted_cosine":
        return schedules.Cosine(config.shift * max(1.0, max(config.shape[1:]) / 32))
    process = schedules.Discrete(TABLES[config.schedule](config.T))
    left = float(process.alpha_bar[-1])
    if left > 0.01:
        raise UserError(
            f"The schedule {config.schedule} with T = {config.T} leaves {left:.0%} of the signal's power at t = 1, "
            "where sampling begins with pure noise: use T = 1000, or the schedule cosine, which fits any T."
        )
    return process


class DDPM(Pixels):
    """L_simple, eq. 14, in the view that the network predicts; algorithm 2."""

    config: Config

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        network = self.make_network()
        predict, self.view = PREDICT[config.predict]
        self.weight = WEIGHTS[config.weight]
        self.denoiser = NeuralDenoiser(network, process_of(config), predict)
        self.label = self.embedding(network)

    def draw(self, rng: Seeds) -> Tensor:
        """(B,) the t of a training batch: entries of the table, or anywhere in (0, 1]."""
        process = self.denoiser.process
        return (
            times.entries(rng, len(process)) if isinstance(process, schedules.Discrete) else times.low_discrepancy(rng)
        )

    def sampler(self) -> Sampler:
        """Algorithm 2, by default with the chain's own number of steps."""
        return Ancestral(self.config.steps, variance=VARIANCES[self.config.variance])


_OURS = Config(schedule="shifted_cosine", steps=100, predict="v", variance="small")
_COMMON = presets(_OURS, ": benchmarks/fashion.py")
_TINY = replace(_COMMON["tiny"], config=replace(_COMMON["tiny"].config, shift=2.0))
_BASE = UNetConfig(widths=(128, 256, 256, 256), attention=(1, 2), head_width=64, groups=0, dropout=0.1)

_TABLE_1 = "FID to the training pictures, to the test pictures 5.24; bits are an upper bound"

PRESETS: dict[str, Preset] = {
    "tiny": _TINY,
    "letters": Preset(
        replace(_TINY.config, shape=(1, 32, 32)),
        replace(FAST, steps=2_100),
        "the demo's: tiny, for `glyphs` at 32 x 32 with labels",
    ),
    "fashion": _COMMON["fashion"],
    "small": _COMMON["small"],
    "base": Preset(
        replace(_OURS, network=_BASE),
        replace(FAST, lr=3e-4, batch=128, steps=200_000, warmup=1_000, ema=0.9999),
        "the size of the paper's CIFAR-10 network; a GPU",
    ),
    "cifar10": Preset(
        Config(),
        Training(steps=800_000, batch=128, lr=2e-4, warmup=5_000, ema=0.9999, ema_rule="copy_first"),
        "the paper's",
        reported({"fid": 3.17, "is": 9.46, "bits": 3.75}, "CIFAR-10", None, "Ho et al. 2020, table 1", note=_TABLE_1),
    ),
    "lsun": Preset(
        Config((3, 256, 256), network=HO_256, variance="small"),
        Training(steps=2_388_000, batch=64, lr=2e-5, warmup=5_000, ema_rule="copy_first"),
        "the authors' script; steps of their released bedroom model (cat: 1,761,000, church: 4,432,000)",
    ),
    "celebahq": Preset(
        Config((3, 256, 256), network=HO_256, variance="small"),
        Training(steps=500_000, batch=64, lr=2e-5, warmup=5_000, ema_rule="copy_first"),
        "the authors' script; the number of steps is ours",
    ),
}
