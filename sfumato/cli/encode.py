"""`sfumato encode RUN PICTURES`: the noise from which a run makes given pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from safetensors.torch import save
from torch import Tensor
from tyro.conf import Positional

from sfumato import encodings
from sfumato.cli.parse import option, parse
from sfumato.cli.pictures import read_all
from sfumato.cli.progress import Progress
from sfumato.cli.request import Chunk
from sfumato.cli.runs import model_hash, writable
from sfumato.cli.samplers import facts, in_steps
from sfumato.cli.show import amount, duration, printable
from sfumato.cli.workshop import Workshop, labels_of, told, walked
from sfumato.core.random import Seeds
from sfumato.engine.files import TEMPORARY, write_bytes
from sfumato.errors import UserError
from sfumato.recipe import Ask
from sfumato.samplers.sampler import Sampler

__all__ = ["FORMAT", "kind_of", "one_label", "run"]

FORMAT = "sfumato latents 1"
EXAMPLES = """\
examples
  sfumato encode runs/photos a.png b.png --out latents.safetensors
  sfumato decode runs/photos latents.safetensors"""


@dataclass(frozen=True)
class Encode:
    """The noise from which a run makes these pictures, along the probability flow: `sfumato decode` makes them again.

    Only samplers without noise can: ddim, euler, heun, ode45.
    """

    run: Annotated[str, Positional, option("a run's folder, or the final/ of one", "RUN", "")] = ""
    pictures: Annotated[tuple[Path, ...], Positional, option("what to encode", "PICTURE ...", "")] = ()
    out: Annotated[Path, option("where the latents go", "FILE")] = Path("latents.safetensors")
    label: Annotated[str, option("the class that the run is told", "NAME", "none")] = ""
    sampler: Annotated[str | None, option("how to walk", "ddim|euler|heun|ode45", "ddim; of cld ode45")] = None
    steps: Annotated[int | None, option("more is more exact", "N", "200")] = None
    seed: Annotated[int, option("of the momentum of the first picture (cld alone has one)", "N")] = 0
    fit: Annotated[Literal["crop", "pad", "stretch"], option("what happens to other shapes")] = "crop"
    batch: Annotated[int | None, option("pictures at once", "N", "by their size")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "timed")] = None


def run(args: list[str]) -> int:
    flags = parse(Encode, "encode", args, examples=EXAMPLES)
    if not flags.run or not flags.pictures:
        raise UserError("encode needs a run and pictures, as in `sfumato encode runs/NAME photo.png`.")
    shop = Workshop.open(flags.run, "encode", flags)
    label, sampler = one_label(shop, flags.label), walked(shop, encodings.encoder(shop.recipe), flags)
    pictures, notes = read_all(flags.pictures, shop.recipe, flags.fit)
    for note in notes:
        Progress.say(note)
    if flags.out.is_dir():
        raise UserError(f"'{flags.out}' is a folder: give a file with --out, as latents.safetensors.")
    if flags.out.exists() and not flags.out.is_file():  # a device or a pipe, which a file would take the place of
        raise UserError(f"'{flags.out}' is no ordinary file: give one with --out, as latents.safetensors.")
    writable(flags.out.parent)
    request = shop.request(flags, sampler, label, len(pictures))
    start = time.monotonic()

    def make(ask: Ask, chunk: Chunk, show: Callable[[int, int], object]) -> Tensor:
        part = pictures[chunk.first : chunk.first + chunk.size]
        return encodings.encode(shop.recipe, part, ask, rng=Seeds(flags.seed + chunk.first), show=show)

    latents = shop.made(request, sampler, make, "encoding")
    write(flags.out, latents, _about(shop, sampler, label))
    print(printable(f"{amount(len(latents), 'picture')} in {duration(time.monotonic() - start)}: {flags.out}"))
    print(printable(f"{shop.name}, {in_steps(sampler)}{told(label, shop)}"))
    return 0


def one_label(shop: Workshop, text: str) -> tuple[str, ...]:
    """The one class of a whole flow, or none. Raises UserError."""
    names = labels_of(shop, text)
    if len(names) > 1:
        raise UserError(f"--label {text} are {len(names)} classes, and a flow between picture and noise is told one.")
    return names


def kind_of(shop: Workshop) -> dict[str, Any]:
    """What latents are of: they fit every run that says the same."""
    process = shop.recipe.denoiser.process
    return {"paper": shop.config["paper"], "process": type(process).__name__, "shape": list(shop.recipe.config.shape)}


def _about(shop: Workshop, sampler: Sampler, label: tuple[str, ...]) -> dict[str, Any]:
    walk = {name: value for name, value in facts(sampler).items() if value is not None}
    return {**kind_of(shop), "class": label[0] if label else "", "hash": model_hash(shop.home), **walk}


def write(out: Path, latents: Tensor, about: dict[str, Any]) -> None:
    """Whole or not at all."""
    text = {name: json.dumps(value) for name, value in about.items()}
    beside = out.with_name(TEMPORARY + out.name)
    write_bytes(beside, save({"latents": latents.contiguous()}, metadata={"format": FORMAT, **text}))
    beside.replace(out)
