"""What decides the pixels of a set of pictures, as values that a PNG can carry and `--like` can repeat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal, NamedTuple

from sfumato.cli.parse import nearest
from sfumato.cli.samplers import chosen
from sfumato.data.pictures import Settings
from sfumato.engine.run import THREADS
from sfumato.errors import UserError
from sfumato.registry import config_from
from sfumato.samplers.sampler import Sampler

__all__ = ["Chunk", "Request", "batch_of", "from_settings", "names_of", "refuse_labels", "refuse_numbers"]


@dataclass(frozen=True)
class Request:
    """Picture i has the seed `seed + i`. Bits repeat at equal batch, threads, device and precision; otherwise pictures
    agree to about one grey level."""

    seed: int = 0
    n: int = 64
    batch: int = 64  # pictures made at once
    labels: tuple[str, ...] = ()  # in turn; none: class (seed + i) modulo their number
    guidance: float = 1.0
    sampler: str = ""  # "": the run's own
    steps: int | None = None
    spacing: str | None = None
    eta: float | None = None
    variance: str | None = None
    size: tuple[int, int] | None = None  # (width, height)
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int | None = None
    only: int | None = None  # of these pictures, keep this one
    interval: tuple[float, float] | None = None  # of guidance, in t
    rescale: float = 0.0
    negative: tuple[str, ...] = ()  # classes that guidance leads away from, in turn
    weak: str = ""  # the hash of a run that it leads away from
    classifier: str = ""  # the hash of one that steers
    classifier_scale: float | None = None
    discriminator: str = ""
    discriminator_slopes: tuple[float, float] | None = None

    def label(self, i: int, classes: tuple[str, ...]) -> str:
        """The class of picture i: a function of its seed alone unless labels were asked for."""
        return self.labels[i % len(self.labels)] if self.labels else classes[(self.seed + i) % len(classes)]

    def file(self, i: int) -> str:
        """What picture i is called."""
        return f"seed_{self.seed + i:08d}.png"

    def chunks(self) -> Iterator[Chunk]:
        """The batches to make: all, or the one that holds `only`."""
        for first in range(0, self.n, self.batch):
            size = min(self.batch, self.n - first)
            if self.only is None or first <= self.only < first + size:
                yield Chunk(first, size)

    def alone(self, classes: tuple[str, ...]) -> Request:
        """A request for the picture `only` by itself, from which others may follow."""
        if self.only is None:
            return self
        labels = (self.label(self.only, classes),) if self.labels else ()
        return replace(self, seed=self.seed + self.only, labels=labels, n=1, batch=1, only=None)

    def walk(self, own: Sampler) -> Sampler:
        """The sampler with this request's fields. Raises UserError."""
        return chosen(
            own, self.sampler or None, steps=self.steps, spacing=self.spacing, eta=self.eta, variance=self.variance
        )

    def settings(self, i: int | None, *, model: str, digest: str, label: str, size: tuple[int, int]) -> Settings:
        """What picture i carries; None for a grid of all."""
        request = {**asdict(self), "only": i, "label": label, "hash": digest}
        plain = {name: value for name, value in request.items() if value not in (None, (), "")}
        return Settings(
            model=model,
            sampler=self.sampler,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed + (i or 0),
            size=size,
            request=plain,
        )


AT_ONCE = 1 << 16  # pixels of a batch, at most 64 pictures: some hundred MB of activations


def batch_of(asked: int | None, n: int, space: Sequence[int], most: int = AT_ONCE) -> int:
    """How many of n pictures are worked on at once: as asked, or by their size."""
    return min(asked or max(1, min(64, most // prod(space))), n)


def names_of(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes that were typed. A name may contain a comma if it is the only one."""
    return (text,) if text in classes else tuple(name.strip() for name in text.split(",") if name.strip())


def refuse_labels(names: Sequence[str], guidance: float, classes: Sequence[str]) -> None:
    """Raises UserError for a class that the run does not know, and for classes and guidance where it knows none."""
    for name in names if classes else ():
        if name not in classes:
            shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
            hint = f"{near} Choose" if (near := nearest(name, list(classes))) else " choose"
            raise UserError(f"this run knows no class '{name}':{hint} from {shown}.")
    if not classes and (names or guidance != 1.0):
        raise UserError(
            f"this run knows no classes, so --{'label' if names else 'guidance'} means nothing to "
            "it: train with --labels folder (or a column), or leave it out."
        )


RANGES = {"n": (1, 1_000_000), "batch": (1, 65_536), "steps": (1, 100_000), "seed": (0, 2**63), "threads": (1, THREADS)}


class Chunk(NamedTuple):
    """Pictures first .. first + size - 1 of a request, made in one batch."""

    first: int
    size: int


OTHERS = ("upscale", "interpolate", "decode")  # verbs that make pictures of given ones, beside edit


def from_settings(found: Mapping[str, Any], where: str) -> tuple[Request, str]:
    """(request, model hash) of a picture's settings. Raises UserError when they do not make sense here."""
    request = found.get("request")
    values = dict(request) if isinstance(request, Mapping) else {}
    if not {"seed", "n", "batch", "sampler"} <= values.keys():
        raise UserError(
            f"'{where}' was not made by `sfumato sample`: it says too little to be repeated. "
            f"Give its settings as options; `sfumato inspect` shows them."
        )
    if "edit" in values:
        verb = values["edit"] if values["edit"] in OTHERS else "edit"
        raise UserError(f"'{where}' was made from another picture, by `sfumato {verb}`: repeat that, with this seed.")
    digest = str(values.get("hash", ""))
    known = {name: value for name, value in values.items() if name in Request.__dataclass_fields__}
    try:
        out: Request = config_from(Request, known)
        refuse_numbers(asdict(out))
        if not 0 <= (out.only or 0) < out.n:
            raise UserError(f"it is number {out.only} of {out.n}")
    except UserError as error:
        raise UserError(f"the settings in '{where}' are damaged ({error}): give them as options instead.") from None
    return out, digest


def refuse_numbers(asked: Mapping[str, Any]) -> None:
    """Raises UserError for numbers that no request has; None is not asked."""
    for name, (least, most) in RANGES.items():
        value = asked.get(name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} is {value}: it must be at least {least} and at most {most:,}.")
    eta, guidance, size = asked.get("eta"), asked.get("guidance"), asked.get("size") or (1, 1)
    if eta is not None and not 0 <= eta <= 1:
        raise UserError(f"--eta is {eta:g}: it must be from 0 (no noise on the way) to 1 (as much as ddpm).")
    if guidance is not None and not abs(guidance) <= 1000:
        raise UserError(f"--guidance is {guidance:g}: 1 is off, 2 to 5 are usual.")
    if not isinstance(size, str) and not all(1 <= side <= 8192 for side in size):
        raise UserError(f"--size is {size[0]}x{size[1]}: sides are from 1 to 8192.")
