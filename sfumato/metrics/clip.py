"""The CLIP score: how well pictures agree with their captions, by a CLIP that somebody has in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import UserError
from sfumato.metrics.features import rgb, state_digest
from sfumato.metrics.matched import mean_figure
from sfumato.metrics.receipt import Figure
from sfumato.metrics.reference import key
from sfumato.metrics.resize import clean, resize
from sfumato.metrics.shelf import Ints, Processes, rows_of
from sfumato.metrics.sources import Source

__all__ = ["Clip", "clip_score"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """A CLIP of transformers (Radford et al. 2021, arXiv:2103.00020) from a folder on this machine; nothing is
    downloaded and no code of the folder runs."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"--clip {folder} is not the folder of a CLIP (config.json, model.safetensors, tokenizer).")
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError:
            raise UserError('clip needs the package transformers: pip install "sfumato[text]"') from None
        try:
            model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self.words: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # a folder from anywhere fails in any way
            said = (str(error).splitlines() or ["damaged"])[0][:200]
            raise UserError(f"--clip {folder} cannot be opened as a CLIP: {said}") from None
        self.model = model.eval().requires_grad_(False)
        self.name = folder.resolve().name
        self.digest = state_digest(self.model.state_dict())

    @property
    def identity(self) -> str:
        return f"{self.name} ({self.digest[:12]})"

    @torch.no_grad()
    def pictures(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to unit vectors (B, D): short side to the network's size (bicubic), the middle cut out,
        as CLIP does."""
        size = int(self.model.config.vision_config.image_size)
        x, (high, wide) = rgb(x, "CLIP"), x.shape[2:]
        short = min(high, wide)
        x = resize(x, (size * high // short, size * wide // short), clean).round()
        top, left = (x.shape[2] - size) // 2, (x.shape[3] - size) // 2
        x = x[:, :, top : top + size, left : left + size] / 255
        mean, std = (torch.tensor(of).reshape(3, 1, 1) for of in (MEAN, STD))
        pooled = self.model.vision_model(pixel_values=(x - mean) / std).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=1)

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, D); captions are cut after the 77 tokens, or as many as the network reads."""
        most = int(self.model.config.text_config.max_position_embeddings)
        told = self.words(list(captions), padding=True, truncation=True, max_length=most, return_tensors="pt")
        pooled = self.model.text_model(input_ids=told["input_ids"], attention_mask=told["attention_mask"]).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=1)

    def scores(self, x: Tensor, captions: Sequence[str]) -> Tensor:
        """max(100 cos, 0) of each pair, (B,) (Hessel et al. 2021, arXiv:2104.08718, in the scale of torchmetrics)."""
        return (100 * (self.pictures(x) * self.texts(captions)).sum(1)).clamp(min=0)


def clip_score(
    made: Source,
    captions: Sequence[str],
    clip: Clip,
    *,
    batch: int = 64,
    show: Callable[[int, int], None] = lambda done, total: None,
    keep: Path | None = None,
    world: Processes | None = None,
) -> Figure:
    """The mean over pictures that have a caption. Raises UserError where none has."""
    told = np.array([i for i, text in enumerate(captions) if text], np.int64)
    if not len(told):
        raise UserError(
            "clip compares pictures with captions, and these have none: give --captions COLUMN, sidecar or names, or "
            "put a picture.txt beside each picture.png."
        )

    def look(positions: Ints) -> dict[str, Tensor]:
        return {"clip": clip.scores(made.batch(positions), [captions[i] for i in positions])[:, None]}

    about = {"pictures": made.fingerprint, "clip": clip.digest, "captions": "\n".join(captions)}
    rows = rows_of(told, ("clip",), look, keep=keep / key(about) if keep else None, batch=batch, world=world, show=show)
    return mean_figure("clip", rows["clip"][:, 0], clip.identity)
