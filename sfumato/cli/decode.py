"""`sfumato decode RUN LATENTS`: the pictures that a run makes of encodings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tyro.conf import Positional

from sfumato import encodings
from sfumato.cli.encode import FORMAT, kind_of, one_label
from sfumato.cli.parse import option, parse
from sfumato.cli.progress import Progress
from sfumato.cli.request import Chunk
from sfumato.cli.runs import model_hash
from sfumato.cli.samplers import chosen, in_steps
from sfumato.cli.show import amount, duration, printable
from sfumato.cli.workshop import Workshop, told
from sfumato.data.pictures import grid, save_png, to_uint8
from sfumato.engine.tensors import Damaged, opened
from sfumato.errors import UserError
from sfumato.recipe import Ask
from sfumato.samplers.sampler import Sampler

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato decode runs/photos latents.safetensors
  sfumato decode runs/letters latents.safetensors --label B     the same hand, another letter"""
MOST = 1 << 28  # numbers in a file


@dataclass(frozen=True)
class Decode:
    """The pictures of latents that `sfumato encode` wrote, walked as they were encoded."""

    run: Annotated[str, Positional, option("a run's folder, or the final/ of one", "RUN", "")] = ""
    latents: Annotated[Path | None, Positional, option("what `sfumato encode` wrote", "FILE", "")] = None
    label: Annotated[str, option("another class", "NAME", "that of the encoding")] = ""
    steps: Annotated[int | None, option("more is more exact", "N", "as encoded")] = None
    out: Annotated[Path | None, option("where pictures go", "FOLDER", "RUN/decoded")] = None
    batch: Annotated[int | None, option("pictures at once", "N", "by their size")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "timed")] = None


def run(args: list[str]) -> int:
    flags = parse(Decode, "decode", args, examples=EXAMPLES)
    if not flags.run or flags.latents is None:
        raise UserError("decode needs a run and latents, as in `sfumato decode runs/NAME latents.safetensors`.")
    shop = Workshop.open(flags.run, "decode", flags)
    latents, about = read_latents(flags.latents)
    _refuse_others(shop, about, flags.latents)
    label = one_label(shop, flags.label or about["class"])
    sampler = _sampler(shop, about, flags)
    request = shop.request(flags, sampler, label, len(latents))
    start = time.monotonic()

    def make(ask: Ask, chunk: Chunk, show: Callable[[int, int], object]) -> Tensor:
        return encodings.decode(shop.recipe, latents[chunk.first : chunk.first + chunk.size], ask, show=show)

    with shop.folder(flags.out, "decoded") as out:
        tiles = to_uint8(shop.made(request, sampler, make, "decoding"))
        for i, tile in enumerate(tiles):
            save_png(out / f"picture_{i:04d}.png", tile, shop.settings(request, i))
        if len(tiles) > 1:
            save_png(out / "grid.png", grid(tiles), shop.settings(request, None))
    where = out / ("grid.png" if len(tiles) > 1 else "picture_0000.png")
    print(printable(f"{amount(len(tiles), 'picture')} in {duration(time.monotonic() - start)}: {where}"))
    print(printable(f"{shop.name}, {in_steps(sampler)}{told(label, shop)}"))
    return 0


def read_latents(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """(B, C, *S) and what the file says of them. Raises UserError for any other file."""
    if not path.is_file():
        raise UserError(f"there is no file '{path}': `sfumato encode` writes one.")
    other = UserError(f"'{path.name}' holds no latents: give a file that `sfumato encode` wrote.")
    with opened(path) as file:
        text = file.metadata() or {}
        if text.get("format") != FORMAT or list(file.keys()) != ["latents"]:
            raise other
        part = file.get_slice("latents")
        if part.get_dtype() != "F32" or not 2 <= len(part.get_shape()) <= 5 or not 0 < prod(part.get_shape()) <= MOST:
            raise other
        latents = file.get_tensor("latents").clone()
    about: dict[str, Any] = {}
    with suppress(ValueError, RecursionError):
        about = {name: json.loads(value) for name, value in text.items() if name != "format"}
    strings = all(isinstance(about.get(name), str) for name in ("paper", "process", "class", "hash", "sampler"))
    if not strings or not torch.isfinite(latents).all():
        raise Damaged(f"'{path.name}' is damaged: encode the pictures again.")
    return latents, about


def _refuse_others(shop: Workshop, about: dict[str, Any], path: Path) -> None:
    """Raises UserError for latents of another kind of run; a word about other weights."""
    here = kind_of(shop)
    for name, mine in here.items():
        if about.get(name) != mine:
            theirs = about.get(name)
            raise UserError(
                f"'{path.name}' is of a run of {name} {theirs}, and this one is of {name} {mine}: decode "
                "with the run that encoded."
            )
    if about["hash"] != model_hash(shop.home):
        Progress.say("note: other weights encoded these: the pictures will be others.")


def _sampler(shop: Workshop, about: dict[str, Any], flags: Decode) -> Sampler:
    """As encoded, with other steps if they are asked for."""
    steps, spacing = flags.steps or about.get("steps"), about.get("spacing")
    if not (isinstance(steps, int) and 1 <= steps <= 100_000 and isinstance(spacing, str | None)):
        raise Damaged("the latents do not say how they were encoded: encode the pictures again.")
    return chosen(encodings.encoder(shop.recipe), about["sampler"], steps=steps, spacing=spacing)
