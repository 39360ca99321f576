"""LPIPS ready to use: where its weights come from, and how pictures go in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sfumato.errors import UserError
from sfumato.metrics.features import file_digest, read_weights
from sfumato.networks.perceptual import LPIPS, TRUNKS

__all__ = ["open_lpips", "packaged_heads"]


def packaged_heads(trunk: str) -> Path:
    """The linear layers in the installed package `lpips` (version 0.1), which is not imported."""
    spec = find_spec("lpips")
    path = Path(spec.origin).parent / "weights" / "v0.1" / f"{trunk}.pth" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError("The linear layers of LPIPS come with the package lpips: pip install --no-deps lpips")
    return path


def open_lpips(trunk: str, weights: Path, heads: Path | None = None) -> tuple[LPIPS, str]:
    """(LPIPS, its name with a hash) from a trunk's weights as torchvision names them, at a path that the user gives,
    and the linear layers of the package lpips. Raises UserError."""
    if trunk not in TRUNKS:
        raise UserError(f"LPIPS has no trunk '{trunk}': choose {', '.join(TRUNKS)}.")
    digest = file_digest(weights)
    lpips = LPIPS(trunk)
    try:
        lpips.load_trunk(read_weights(weights))
        lpips.load_heads(read_weights(heads or packaged_heads(trunk)))
    except (KeyError, RuntimeError):
        raise UserError(f"{weights} does not hold the weights of torchvision's {trunk} for LPIPS.") from None
    return lpips.eval().requires_grad_(False), f"LPIPS {trunk} ({digest[:12]})"
