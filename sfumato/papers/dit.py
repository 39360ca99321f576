"""Scalable Diffusion Models with Transformers. Peebles, Xie 2022. arXiv:2212.09748.

improved_ddpm's model with a transformer in the place of the U-Net: a picture is cut into patches, which attend to each
other, and the time and the label scale and shift every layer (adaLN-Zero). The smaller the patch and the larger the
network, the better the pictures. L_hybrid without a weight on its bound, DDPM's table, 250 steps with the learned
variance.

Departs from the paper: the presets S/2 to XL/8 are its networks on pixels, clipped in sampling; XL/2-256 and XL/2-512
are the released models, of latents: without their autoencoder, which is not here yet, nothing trains them or makes
pictures of what they sample. The presets tiny, fashion and small are ours and predict v. The t of neighbouring examples
are spread evenly. The release guides the first three of its four channels alone: `--config.guided-channels 3`, set in
XL/2-256 and XL/2-512."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from sfumato.conditioning.label import Label
from sfumato.errors import UserError
from sfumato.networks import dit
from sfumato.networks.dit import DiTConfig
from sfumato.papers import improved_ddpm
from sfumato.papers.improved_ddpm import ImprovedDDPM
from sfumato.pixels import FAST
from sfumato.recipe import Preset, Published, Training, latents, reported
from sfumato.samplers.sampler import State

__all__ = ["PRESETS", "Config", "DiT"]

SIZES = {  # table 1
    "S": DiTConfig(width=384, depth=12, heads=6),
    "B": DiTConfig(width=768, depth=12, heads=12),
    "L": DiTConfig(width=1024, depth=24, heads=16),
    "XL": DiTConfig(width=1152, depth=28, heads=16),
}
PATCHES = (2, 4, 8)


@dataclass(frozen=True)
class Config(improved_ddpm.Config):
    """What the model is."""

    network: DiTConfig = SIZES["S"]  # type: ignore[assignment]  # a transformer where its base has a U-Net
    clip: bool = False
    schedule: Literal["cosine", "linear"] = "linear"
    T: int = 1000
    rescale_bound: bool = False
    rescale_time: bool = False
    guided_channels: int = 0  # the first so many alone are moved by guidance; 0: all
    latent: bool = False  # x0 is no picture: an autoencoder makes it of one

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.guided_channels <= self.shape[0]:
            raise UserError(
                f"guided_channels is {self.guided_channels}: it is at most the channels, {self.shape[0]}; 0 is all."
            )


class DiT(ImprovedDDPM):
    """Its own network; everything else is shared."""

    config: Config
    backbone = dit.DiT

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        self.led = config.guided_channels
        if config.latent:
            self.use = latents(config)

    def embedding(self, network: Any) -> Label | None:
        """As small as the code's, so that at first the time is heard."""
        label = super().embedding(network)
        if label is not None:
            nn.init.normal_(label.embedding.weight, std=0.02)
        return label

    def picture(self, state: State, *, quick: bool = False) -> Tensor:
        """Raises UserError for latents, which are colour noise to the eye."""
        if self.config.latent:
            raise UserError(f"There are no pictures: {self.use}.")
        return super().picture(state, quick=quick)


_PAPER = Training(
    steps=400_000, batch=256, lr=1e-4, warmup=0, weight_decay=0.0, clip=0.0, ema=0.9999, ema_rule="constant"
)
_OURS = Config(clip=True, predict="v", steps=100)
_TINY = DiTConfig(patch=4, width=192, depth=4, heads=3)


def _on_pixels(size: str, patch: int) -> Preset:
    config = Config((3, 64, 64), network=replace(SIZES[size], patch=patch), clip=True)
    return Preset(config, _PAPER, "the paper's network, on pixels")


def _released(side: int, steps: int, *figures: Published) -> Preset:
    """The authors' model of 8 times as large pictures."""
    config = Config((4, side, side), network=replace(SIZES["XL"], channels=4), guided_channels=3, latent=True)
    note = f"the released network, of latents 4 x {side} x {side}; their autoencoder is not here yet"
    return Preset(config, replace(_PAPER, steps=steps), note, figures)


def _readme(fid: float, inception: float, side: int) -> tuple[Published, ...]:
    data = f"ImageNet at {side} x {side}, with classes"
    return reported({"fid": fid, "is": inception}, data, 50_000, "facebookresearch/DiT", sampler="250 steps, guided")


PRESETS: dict[str, Preset] = {
    "tiny": Preset(replace(_OURS, network=_TINY), FAST, "2.7 M parameters; minutes on a laptop at 32 x 32"),
    "fashion": Preset(
        replace(_OURS, shape=(1, 28, 28), network=_TINY),
        replace(FAST, steps=3_000, ema=0.999),
        "ten minutes on one core for Fashion-MNIST",
    ),
    "small": Preset(
        replace(_OURS, network=DiTConfig(patch=2, width=256, depth=8, heads=4)),
        replace(FAST, lr=5e-4, batch=64, steps=20_000, ema=0.999),
        "10 M parameters; minutes on a GPU",
    ),
    **{f"{size}/{patch}": _on_pixels(size, patch) for size in SIZES for patch in PATCHES},
    "XL/2-256": _released(32, 7_000_000, *_readme(2.27, 278.24, 256)),
    "XL/2-512": _released(64, 3_000_000, *_readme(3.04, 240.82, 512)),
}
