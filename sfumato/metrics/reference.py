"""Statistics of reference sets: kept on disk under a hash of the data and the settings, and read from others' files."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato.data import Dataset
from sfumato.errors import UserError
from sfumato.metrics.statistics import Gaussian, Statistics

__all__ = ["References", "fingerprint", "key", "read_npz"]

CHUNK = 1024  # pictures hashed at once
VERSION = 1  # raise when what is kept changes its meaning
Settings = Mapping[str, str | int | float | bool | None]
NAMES = ("moments.n", "moments.mean", "moments.scatter", "positions")


def fingerprint(data: Dataset) -> str:
    """A hash of the pictures of a set, pixel by pixel, and of their order: the same wherever their files lie."""
    code = hashlib.blake2b(digest_size=16)
    code.update(f"{len(data)}\0{data.images.shape[1:]}\0{data.images.dtype}".encode())
    for first in range(0, len(data), CHUNK):
        code.update(np.ascontiguousarray(data.images[data.rows[first : first + CHUNK]]).data)
    return code.hexdigest()


def key(settings: Settings) -> str:
    """32 hex digits that change with any setting."""
    text = json.dumps({"version": VERSION, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class References:
    """A folder of statistics, one safetensors file each, named by the hash of what they are of: `settings` holds the
    fingerprint of the data, the identity of the features, n and whatever else matters, and never a path. A file that
    is damaged or of other settings is as good as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, settings: Settings) -> Path:
        return self.folder / f"{key(settings)}.safetensors"

    def get(self, identity: str, settings: Settings) -> Statistics | None:
        """What was kept for these settings."""
        path = self.path(settings)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError):
            return None
        fits = about == _about(identity, settings) and set(NAMES) <= state.keys()
        return Statistics.from_state(identity, state) if fits else None

    def put(self, statistics: Statistics, settings: Settings) -> Path:
        """Keep statistics; the file is whole or absent."""
        path = self.path(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        state: dict[str, Tensor] = {name: t.contiguous() for name, t in statistics.state().items()}
        try:
            save_file(state, beside, metadata=_about(statistics.identity, settings))
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        return path


def _about(identity: str, settings: Settings) -> dict[str, str]:
    return {"sfumato": str(VERSION), "features": identity, "settings": json.dumps(dict(settings), sort_keys=True)}


def read_npz(path: Path, *, spatial: bool = False) -> Gaussian:
    """Statistics as pytorch-fid, clean-fid (mu, sigma) and ADM (the same, and mu_s, sigma_s for sFID) keep them. How
    many samples they are of is not in the file. Nothing is unpickled. Raises UserError."""
    names = ("mu_s", "sigma_s") if spatial else ("mu", "sigma")
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in names if name not in file]:
                raise UserError(f"{path} holds no '{missing[0]}': it is not a file of statistics.")
            mean, cov = (torch.from_numpy(file[name].astype(np.float64)) for name in names)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {(str(error).splitlines() or ['damaged'])[0]}.") from None
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: mean {tuple(mean.shape)} and covariance {tuple(cov.shape)} do not fit.")
    return Gaussian(mean, cov)
