"""What every converter does: take each tensor of a state dict once, in the shape that the config says, and put it where
our network has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.networks import UNet
from sfumato.networks.blocks import ResBlock
from sfumato.networks.unet import Stage

__all__ = ["Conversion", "Converted", "Leaves", "Place", "unwrapped"]

State = Mapping[str, Tensor]
SHOWN = 3  # names in a message


class Converted(NamedTuple):
    """`network` is for `UNet.load_state_dict`; the others are the tables of what it was told, where the source has any.

    label (classes + 1, config.told): `Label.embedding`, the last row "not told" (zeros where the source has no such
    row); augment (config.told, numbers): a linear layer without bias.
    """

    network: dict[str, Tensor]
    label: Tensor | None = None
    augment: Tensor | None = None


@dataclass(frozen=True)
class Leaves:
    """A source's names inside a residual block, after the block's own name and a dot."""

    norm1: str
    conv1: str
    row: str
    norm2: str
    conv2: str
    shortcut: str


class Place(NamedTuple):
    """Where a source has a stage: the names of its block and of its attention."""

    block: str
    mixer: str = ""


class Conversion:
    """A conversion under way. Raises UserError for a key that is missing, left over or of another shape."""

    def __init__(self, state: State, config: Any, make: Callable[[], nn.Module] | None = None) -> None:
        """`make`: our network, where it is no U-Net of that config."""
        with torch.device("meta"):
            self.net: Any = UNet(config) if make is None else make()
        self.config, self.rest = config, dict(state)
        self.want = {name: tensor.shape for name, tensor in self.net.state_dict().items()}
        self.made: dict[str, Tensor] = {}

    def take(self, key: str, shape: Iterable[int]) -> Tensor:
        """The tensor of that name, which is then used up."""
        shape = tuple(shape)
        if key not in self.rest:
            raise UserError(f"The weights have no {key!r}, which this network needs: the config is another's.")
        found = self.rest.pop(key)
        if tuple(found.shape) != shape:
            raise UserError(f"{key!r} is of shape {tuple(found.shape)}, where the config says {shape}.")
        return found

    def put(self, name: str, tensor: Tensor) -> None:
        """`tensor` as our `name`, in our shape."""
        self.made[name] = tensor.reshape(self.want[name]).contiguous()

    def copy(self, name: str, key: str) -> None:
        """Weight and bias of our layer `name` from their layer `key`, as they are."""
        for leaf in ("weight", "bias"):
            self.put(f"{name}.{leaf}", self.take(f"{key}.{leaf}", self.want[f"{name}.{leaf}"]))

    def time(self, first: str, second: str) -> None:
        self.copy("encoder.time.first", first)
        self.copy("encoder.time.second", second)

    def halves(self) -> tuple[tuple[str, list[Stage]], ...]:
        """The stages of encoder (with the middle) and decoder, if there is one, whose rows are packed, in the order of
        computation."""
        encoder, decoder = self.net.encoder, getattr(self.net, "decoder", None)
        first = ("encoder", [*encoder.levels, *encoder.middle])
        return (first,) if decoder is None else (first, ("decoder", [*decoder.levels]))

    def stages(self, leaves: Leaves, encoder: Sequence[Place], decoder: Sequence[Place]) -> None:
        """Everything of the stages but attention."""
        for (half, stages), places in zip(self.halves(), (encoder, decoder), strict=False):
            paths = self.paths(half)
            rows: list[tuple[Tensor, Tensor]] = []
            for path, stage, place in zip(paths, stages, places, strict=True):
                if isinstance(stage.block, ResBlock):
                    rows.append(self.block(f"{path}.block", stage.block, place.block, leaves))
                else:
                    self.copy(f"{path}.block.conv", place.block)
            self.put(f"{half}.rows.linear.weight", torch.cat([weight for weight, _ in rows]))
            self.put(f"{half}.rows.linear.bias", torch.cat([bias for _, bias in rows]))

    def paths(self, half: str) -> list[str]:
        """Our names of a half's stages."""
        paths = [f"{half}.levels.{i}" for i in range(len(getattr(self.net, half).levels))]
        return paths + (["encoder.middle.0", "encoder.middle.1"] if half == "encoder" else [])

    def block(self, name: str, block: ResBlock, key: str, leaves: Leaves) -> tuple[Tensor, Tensor]:
        """A residual block; returns its row."""
        for ours in ("norm1", "conv1", "norm2", "conv2"):
            self.copy(f"{name}.{ours}", f"{key}.{getattr(leaves, ours)}")
        if block.shortcut is not None:
            self.copy(f"{name}.shortcut", f"{key}.{leaves.shortcut}")
        row = f"{key}.{leaves.row}"
        weight = self.take(f"{row}.weight", (block.width, self.config.embedding))
        return weight, self.take(f"{row}.bias", (block.width,))

    def mixers(self, encoder: Sequence[Place], decoder: Sequence[Place]) -> Iterable[tuple[str, str, int, int]]:
        """(our name, their name, channels, heads) of every attention."""
        for (half, stages), places in zip(self.halves(), (encoder, decoder), strict=False):
            for path, stage, place in zip(self.paths(half), stages, places, strict=True):
                if stage.mixer is not None:
                    channels = self.want[f"{path}.mixer.project.bias"][0]
                    yield f"{path}.mixer", place.mixer, channels, self.config.heads_of(channels)

    def finish(self, label: Tensor | None = None, augment: Tensor | None = None) -> Converted:
        """What was made, all of it there and nothing left over."""
        if self.rest:
            names = ", ".join(repr(key) for key in sorted(self.rest)[:SHOWN])
            more = f" and {len(self.rest) - SHOWN} more" if len(self.rest) > SHOWN else ""
            raise UserError(f"The weights have {names}{more}, for which this network has no place: another's config.")
        absent = self.want.keys() - self.made.keys()
        if absent:
            raise UserError(
                f"The source has nothing for {min(absent)!r}, which this config has ({len(absent)} in all)."
            )
        return Converted(self.made, label, augment)


def unwrapped(state: State, prefix: str) -> State:
    """Without a prefix that every name has."""
    if not state or not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}
