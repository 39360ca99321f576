"""Features of videos for FVD: an I3D network that somebody has as a TorchScript file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sfumato.errors import UserError
from sfumato.metrics.features import Extractor, Read, file_digest
from sfumato.metrics.script import load

__all__ = ["Video"]

FLAGS = ("rescale", "resize", "return_features")  # of StyleGAN-V's i3d_torchscript.pt: to [-1, 1], to 224 pixels, 400


class Video(Extractor):
    """A TorchScript file that gets float32 (B, 3, T, H, W) in 0..255 and gives (B, D). Those of the flags of
    StyleGAN-V's i3d_torchscript.pt that its `forward` has are set, so that it scales, resizes and gives features
    itself (Unterthiner et al. 2018, arXiv:1812.01717; Skorokhodov et al. 2021, arXiv:2112.14683)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        digest = file_digest(path)
        self.net = load(path)
        schema = self.net.forward.schema  # type: ignore[attr-defined]
        known = {argument.name for argument in schema.arguments}
        self.flags = {name: True for name in FLAGS if name in known}
        self.describe(path.stem, digest, 0, None, "clean")

    @property
    def identity(self) -> str:
        return f"{self.name} ({', '.join([*self.flags, self.digest[:12]])})"

    def accept(self, pictures: Tensor) -> Tensor:
        if pictures.ndim != 5:
            raise UserError(f"fvd compares videos, .npz files with `video`, not pictures {tuple(pictures.shape)}.")
        return pictures

    def read(self, x: Tensor) -> Read:
        try:
            found = self.net(x, **self.flags)
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["it failed"]
            raise UserError(f"{self.name} does not read videos of shape {tuple(x.shape)}: {lines[-1]}") from None
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
            raise UserError(f"{self.name} must give one row of features for each video, a tensor (B, D).")
        self.width = self.width or found.shape[1]
        return Read(found)
