"""Sets of pictures for metrics: data sets, videos, and files of statistics alone."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data import Dataset
from sfumato.errors import UserError
from sfumato.metrics.reference import fingerprint, read_npz
from sfumato.metrics.statistics import Gaussian

__all__ = ["Clips", "Known", "Pictures", "Source", "holds"]

Ints = NDArray[np.int64]
CAP = 8 << 30  # bytes of an unpacked file of videos


class Source(Protocol):
    """Pictures that are asked for by position. `fingerprint` changes when a picture or their order does; picture i of
    two sources of one fingerprint is the same."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def batch(self, positions: Ints) -> Tensor:
        """uint8 (B, C, *S)."""
        ...


@dataclass(frozen=True)
class Known:
    """A reference that came as statistics: Gaussians by part (features, spatial)."""

    name: str
    fingerprint: str
    gaussians: Mapping[str, Gaussian]

    @classmethod
    def read(cls, path: Path) -> Known:
        """mu and sigma, and mu_s and sigma_s where they are, as pytorch-fid, clean-fid and ADM write them."""
        parts = {"features": read_npz(path)}
        if {"mu_s", "sigma_s"} <= holds(path):
            parts["spatial"] = read_npz(path, spatial=True)
        code = hashlib.blake2b(digest_size=16)
        for one in parts.values():
            code.update(one.mean.numpy().tobytes() + one.cov.numpy().tobytes())
        return cls(path.name, code.hexdigest(), parts)


@dataclass(frozen=True, eq=False)
class Pictures:
    """A data set: as 8 bits, never flipped."""

    data: Dataset

    def __len__(self) -> int:
        return len(self.data)

    @property
    def names(self) -> Sequence[str]:
        return self.data.names

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.data)

    def batch(self, positions: Ints) -> Tensor:
        """uint8 (B, C, H, W)."""
        pixels: NDArray[Any] = self.data.images[self.data.rows[positions]]
        if pixels.dtype == np.uint16:
            pixels = np.rint(pixels / 257).astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


@dataclass(frozen=True, eq=False)
class Clips:
    """Videos (N, T, H, W, C) uint8: the array `video` of an .npz file."""

    video: NDArray[np.uint8]

    @classmethod
    def read(cls, path: Path) -> Clips:
        """Raises UserError."""
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > CAP:
                    raise UserError(f"{path} unpacks to more than {CAP >> 30} GB: give fewer videos in one file.")
            with np.load(path, allow_pickle=False) as file:
                video = file["video"]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read: {(str(error).splitlines() or ['damaged'])[0]}.") from None
        if video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] not in (1, 3) or not video.size:
            raise UserError(
                f"{path}: video is {video.dtype} {video.shape}, but uint8 (N, frames, height, width, 1 or 3) is needed."
            )
        return cls(video)

    def take(self, n: int) -> Clips:
        return Clips(self.video[:n])

    def __len__(self) -> int:
        return len(self.video)

    @cached_property
    def names(self) -> Sequence[str]:
        return [f"video-{i}" for i in range(len(self.video))]

    @cached_property
    def fingerprint(self) -> str:
        code = hashlib.blake2b(f"{self.video.shape}".encode(), digest_size=16)
        code.update(np.ascontiguousarray(self.video).data)
        return code.hexdigest()

    def batch(self, positions: Ints) -> Tensor:
        """uint8 (B, 3, T, H, W); gray is repeated."""
        clips = torch.from_numpy(np.ascontiguousarray(self.video[positions].transpose(0, 4, 1, 2, 3)))
        return clips.expand(-1, 3, -1, -1, -1) if clips.shape[1] == 1 else clips


def holds(path: Path) -> set[str]:
    """The names of the arrays of an .npz file; () for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    except (OSError, zipfile.BadZipFile, ValueError):
        return set()
