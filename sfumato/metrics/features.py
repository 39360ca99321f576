"""What looks at pictures for a metric: uint8 pictures in, rows of features out, and a name for every figure."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.metrics.resize import mode, resize

__all__ = ["Extractor", "Read", "file_digest", "levels", "read_weights", "rgb", "state_digest"]

HUB = re.compile(r"-([0-9a-f]{8,64})$")  # torch.hub's names end with the first digits of the file's SHA-256


class Read(NamedTuple):
    """features (B, D); where the network has them, class logits (B, K) and spatial features (B, E), for sFID."""

    features: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


class Extractor(nn.Module, ABC):
    """A frozen network with the way it wants its pictures.

    name    what the user calls it: lite0, own, inception, ...
    digest  hex hash of the weights
    width   D, the number of features
    size    pixels a side, None: as the pictures come
    resize  name of a mode of `resize`
    scaled  sets are compared in features minus the reference's mean over its deviation: for networks whose features
            have no published scale, where a few large ones would decide alone
    """

    name: str
    digest: str
    width: int
    size: int | None
    resize: str
    scaled: bool = False

    def describe(self, name: str, digest: str, width: int, size: int | None, resize: str) -> None:
        """Set what the figures say, and freeze."""
        mode(resize)
        self.name, self.digest, self.width, self.size, self.resize = name, digest, width, size, resize
        self.requires_grad_(False).eval()

    @property
    def identity(self) -> str:
        """All that a figure depends on but the pictures: 'lite0@64 (232 features, clean, 5793442442f2)'."""
        at = f"@{self.size}" if self.size else ""
        return f"{self.name}{at} ({self.width} features, {self.resize}, {self.digest[:12]})"

    @property
    def protocol(self) -> str:
        """The identity, and whether sets are compared in scaled features."""
        return self.identity.replace(" (", " (scaled, ", 1) if self.scaled else self.identity

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Read:
        """uint8 (B, C, *S). Raises UserError for pictures that it cannot read."""
        if pictures.dtype != torch.uint8:
            raise UserError(f"{self.name} reads pictures of 256 levels (uint8), not {pictures.dtype}: use levels().")
        x = self.accept(pictures).float()
        return self.read(x if self.size is None else resize(x, self.size, mode(self.resize)))

    def accept(self, pictures: Tensor) -> Tensor:
        """Pictures in the channels of the network: here red, green, blue."""
        return rgb(pictures, self.name)

    @abstractmethod
    def read(self, x: Tensor) -> Read:
        """float32 (B, C, *S) in 0..255, of `size`."""


def levels(images: Tensor) -> Tensor:
    """[0, 1] to uint8: clipped, rounded to the nearest of 256 levels. Features are of what a PNG file would hold."""
    return images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)


def rgb(pictures: Tensor, name: str) -> Tensor:
    """uint8 (B, 1, 3 or 4, H, W) to three channels: gray is repeated, transparency laid on white."""
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3, 4):
        raise UserError(
            f"{name} reads gray or colour pictures, not {tuple(pictures.shape[1:])}: use --features own, which learns "
            "from any data, or a TorchScript file that reads these."
        )
    if pictures.shape[1] == 4:
        alpha = pictures[:, 3:].float() / 255
        return (pictures[:, :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return pictures.expand(-1, 3, -1, -1)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of tensors."""
    code = hashlib.sha256()
    for name in sorted(state):
        code.update(f"{name}{tuple(state[name].shape)}{state[name].dtype}".encode())
        code.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return code.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a weights file, compared with the one in its name where it has one, as torch.hub's names have
    (pt_inception-2015-12-05-6726825d.pth). Raises UserError."""
    if not path.is_file():
        raise UserError(f"There is no weights file {path}: nothing is downloaded, give the path of one that you have.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    named = HUB.search(path.stem)
    if named and not found.startswith(named[1]):
        raise UserError(f"{path} is damaged or another's: its SHA-256 begins {found[:8]}, not {named[1][:8]}.")
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or torch's own format, tensors only: nothing else is unpickled."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a file from anywhere fails in any way
        raise UserError(f"{path} cannot be read: {(str(error).splitlines() or ['damaged'])[0]}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} holds no state dict.")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
