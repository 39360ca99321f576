"""Networks that come as TorchScript files: StyleGAN's Inception, and any other."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.metrics.features import Extractor, Read, file_digest, rgb

__all__ = ["Script", "ScriptedInception", "is_script"]


def is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive, by its table of contents."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def load(path: Path) -> torch.jit.ScriptModule:
    if not is_script(path):
        raise UserError(f"{path} is not a TorchScript file.")
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call,no-any-return]
    except Exception as error:  # a file from anywhere fails in any way
        raise UserError(f"{path} cannot be read: {(str(error).splitlines() or ['damaged'])[0]}") from None


class ScriptedInception(Extractor):
    """`inception:FILE` with StyleGAN's inception-2015-12-05.pt (also clean-fid's): its `layers` give the features and
    its `output` the weights of the logits."""

    def __init__(self, path: Path, *, resize: str = "tf1") -> None:
        super().__init__()
        digest = file_digest(path)
        self.net = load(path)
        if not hasattr(self.net, "layers"):
            raise UserError(f"{path} has no 'layers': it is not StyleGAN's Inception. Give it as --features FILE.")
        self.describe("inception", digest, 2048, 299, resize)

    def read(self, x: Tensor) -> Read:
        features = self.net.layers((x - 128) / 128).flatten(1)
        weight = getattr(getattr(self.net, "output", None), "weight", None)
        return Read(features, None if weight is None else features @ weight.T)


class Script(Extractor):
    """Any TorchScript file: it gets float32 (B, C, *S) in 0..255, with three channels if they are pictures, and gives
    (B, D). Video and volumes go in as they come."""

    def __init__(self, path: Path, *, size: int | None = None, resize: str = "clean") -> None:
        super().__init__()
        digest = file_digest(path)
        self.net = load(path)
        self.describe(path.stem, digest, 0, size, resize)

    @property
    def identity(self) -> str:
        at = f"@{self.size}" if self.size else ""
        return f"{self.name}{at} ({self.resize}, {self.digest[:12]})"

    def accept(self, pictures: Tensor) -> Tensor:
        return rgb(pictures, self.name) if pictures.ndim == 4 else pictures

    def read(self, x: Tensor) -> Read:
        try:
            found = self.net(x)
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["it failed"]
            raise UserError(f"{self.name} does not read pictures of shape {tuple(x.shape)}: {lines[-1]}") from None
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
            raise UserError(f"{self.name} must give one row of features for each picture, a tensor (B, D).")
        self.width = self.width or found.shape[1]
        return Read(found)
