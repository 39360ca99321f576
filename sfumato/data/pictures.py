"""Pictures out: rounding, grids, and PNG files that carry the settings they were made with."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sfumato.data.options import DataError, escape

__all__ = ["Settings", "grid", "read_settings", "save_png", "to_pil", "to_uint8"]

VERSION = 1
TEXT_CAP = 1 << 20  # bytes
CHUNKS_CAP = 1 << 18  # of 8 kB each: 2 GB
WORDS = ("prompt", "negative", "label", "labels", "text", "classes")  # fields that may contain a slash
LINE = {
    "Steps": "steps",
    "Sampler": "sampler",
    "CFG scale": "guidance",
    "Seed": "seed",
    "Size": "size",
    "Model": "model",
}
PAIR = re.compile(r'\s{0,8}([\w][\w \-/]{0,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


@dataclass(frozen=True)
class Settings:
    """How a picture was made. `request` is everything that was asked for, as plain JSON values."""

    model: str = ""
    sampler: str = ""
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None  # (width, height)
    prompt: str = ""
    negative: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)


def to_uint8(images: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] (..., C, H, W) to 0..255 (..., H, W, C): clipped, rounded to the nearest level; NaN becomes 0."""
    pixels = images.detach().float().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    levels = np.rint(np.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(levels, -3, -1))


def to_pil(pixels: NDArray[Any]) -> Image.Image:
    """(H, W) or (H, W, 1, 3, 4), uint8; gray also uint16."""
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def grid(images: Tensor | NDArray[Any], columns: int | None = None, pad: int = 2) -> Image.Image:
    """Pictures side by side, row by row, `pad` white pixels apart: (B, C, H, W) in [0, 1] as a tensor, or (B, H, W, C)
    uint8 or uint16 as an array. As square as it can be unless the columns are given."""
    tiles = to_uint8(images) if isinstance(images, Tensor) else images
    b, h, w, c = tiles.shape
    columns = min(b, columns or math.ceil(math.sqrt(b * h / w)))
    rows = math.ceil(b / columns)
    sheet = np.full((rows * (h + pad) - pad, columns * (w + pad) - pad, c), np.iinfo(tiles.dtype).max, tiles.dtype)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * (h + pad), (i % columns) * (w + pad)
        sheet[y : y + h, x : x + w] = tile
    return to_pil(sheet)


def save_png(path: str | os.PathLike[str], image: Image.Image | NDArray[Any], settings: Settings | None = None) -> None:
    """Writes (H, W, C) or a PIL image, whole or not at all. With settings the file says how it was made, in the
    `parameters` text that other programs read and as JSON in a chunk of our own; without them it has no text.
    Paths are cut to their last part: files tell nothing about the machine."""
    picture = image if isinstance(image, Image.Image) else to_pil(image)
    chunks = PngInfo()
    if settings is not None:
        clean = Settings(**scrub(_fields(settings)))
        chunks.add_text("parameters", _parameters(clean))
        chunks.add_text("sfumato", json.dumps({"version": VERSION, **_fields(clean)}))
    data = BytesIO()
    Image.Image.save(_bare(picture), data, "PNG", pnginfo=chunks)
    _replace(Path(path), data.getvalue())


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of `Settings` that a PNG carries, from our own chunk or else from `parameters`. Raises DataError. No
    pixel is decoded."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            text = dict(_texts(file))
        if "sfumato" in text:
            return _from_json(text["sfumato"])
        if "parameters" in text:
            return _from_parameters(text["parameters"])
    except FileNotFoundError:
        raise DataError(f'No such file: "{escape(path)}": give a PNG that sfumato or a web UI has written') from None
    except Exception as error:
        raise DataError(
            f'the settings of "{escape(path)}" cannot be read ({escape(str(error)[:120])}): give a PNG '
            "that sfumato or a web UI has written"
        ) from error
    raise DataError(f'"{escape(path)}" carries no settings: give a PNG that was written without --no-metadata')


def _texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Keyword and text of the chunks with settings, wherever they are in the file. Raises ValueError."""
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        raise ValueError("it is not a PNG")
    for _ in range(CHUNKS_CAP):
        head = file.read(8)
        kind, size = head[4:], int.from_bytes(head[:4])
        if len(head) < 8 or kind == b"IEND":
            return
        if kind not in TEXTS:
            file.seek(size + 4, os.SEEK_CUR)
        elif size > TEXT_CAP:
            raise ValueError("its text is too long")
        else:
            data, check = file.read(size), file.read(4)
            keyword, _, rest = data.partition(b"\0")
            if keyword in (b"sfumato", b"parameters"):
                if zlib.crc32(kind + data).to_bytes(4) != check:
                    raise ValueError("its text is damaged")
                yield keyword.decode(), TEXTS[kind](rest)
    raise ValueError("it has too many parts")


def _plain_text(rest: bytes) -> str:
    return rest.decode("latin-1")


def _compressed_text(rest: bytes) -> str:
    return _inflated(rest[1:]).decode("latin-1")


def _international_text(rest: bytes) -> str:
    """Compression flag and method, language, translated keyword, text (PNG 11.3.4.5)."""
    text = rest[2:].split(b"\0", 2)[2]
    return (_inflated(text) if rest[:1] == b"\1" else text).decode()


def _inflated(data: bytes) -> bytes:
    work = zlib.decompressobj()
    try:
        text = work.decompress(data, TEXT_CAP)
    except zlib.error as error:
        raise ValueError(f"its text is damaged ({error})") from None
    if not work.eof:
        raise ValueError("its text is too long, or cut off")
    return text


TEXTS = {b"tEXt": _plain_text, b"zTXt": _compressed_text, b"iTXt": _international_text}


def scrub(value: Any, key: str = "") -> Any:
    """Plain JSON values in which no text, except in fields for words, is more than the last part of a path."""
    if isinstance(value, Mapping):
        return {str(name): scrub(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(inner, key) for inner in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    return text if key in WORDS else re.split(r"[\\/]", text.rstrip("\\/"))[-1]


def _fields(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value not in (None, "", {})}


def _parameters(settings: Settings) -> str:
    """Prompt, negative prompt and one line of pairs, as AUTOMATIC1111's web UI writes them."""
    known = {
        "Steps": settings.steps,
        "Sampler": settings.sampler,
        "CFG scale": settings.guidance,
        "Seed": settings.seed,
        "Size": settings.size and "{}x{}".format(*settings.size),
        "Model": settings.model,
    }
    lines = [settings.prompt] if settings.prompt else []
    lines += [f"Negative prompt: {settings.negative}"] if settings.negative else []
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in known.items() if value not in (None, "")))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def _from_json(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict) or found.pop("version", None) != VERSION:
        raise ValueError("they are of another version of sfumato")
    for name, value in found.items():
        if name not in KINDS or not isinstance(value, KINDS[name]) or not _moderate(value):
            raise ValueError(f"{name[:40]} is not what sfumato writes there")
    if "size" in found:
        width, height = map(int, found["size"])
        found["size"] = width, height
    return found


KINDS: dict[str, type | UnionType] = {
    **dict.fromkeys(("model", "sampler", "prompt", "negative"), str),
    **dict.fromkeys(("steps", "seed"), int),
    "guidance": int | float,
    "size": list,
    "request": dict,
}


def _moderate(value: Any, depth: int = 8) -> bool:
    """Neither deeper nor larger than anything that anyone asks for."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_moderate(one, depth - 1) for one in inner)
    return not isinstance(value, int | float) or abs(value) < 2**64


def _from_parameters(text: str) -> dict[str, Any]:
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    if not pairs or not any(name in LINE for name, _ in pairs):
        lines, pairs = [*lines, last], []
    found: dict[str, Any] = {}
    for name, value in pairs:
        value = str(json.loads(value)) if value.startswith('"') else value.strip()
        if name in LINE:
            found[LINE[name]] = _number(LINE[name], value)
        else:
            found.setdefault("request", {})[name] = value
    whole = "\n".join(lines)
    prompt, _, negative = whole.partition("Negative prompt:")
    return {
        **({"prompt": prompt.strip()} if prompt.strip() else {}),
        **({"negative": negative.strip()} if negative.strip() else {}),
        **found,
    }


def _number(name: str, value: str) -> Any:
    if name == "size":
        width, height = value.split("x")
        return int(width), int(height)
    number = int(value) if name in ("steps", "seed") else float(value) if name == "guidance" else value
    if not _moderate(number):
        raise ValueError(f"{name} is out of range")
    return number


def _bare(picture: Image.Image) -> Image.Image:
    """Only the pixels: PIL would also write an EXIF or text it had read."""
    out = picture.copy()
    out.info = {}
    out.getexif().clear()
    return out


def _replace(path: Path, data: bytes) -> None:
    """Under a temporary name first, then renamed."""
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise DataError(
            f'"{escape(path)}" cannot be written ({(error.strerror or "").lower()}): choose a folder that '
            "exists and may be written"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
