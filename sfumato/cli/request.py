"""What decides the pixels of a set of pictures, as values that a PNG can carry and `--like` can repeat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from sfumato.cli.samplers import chosen
from sfumato.data.pictures import Settings
from sfumato.errors import UserError
from sfumato.samplers.sampler import Sampler

__all__ = ["Chunk", "Request", "from_settings"]


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
    precision: str = "fp32"
    threads: int | None = None
    only: int | None = None  # of these pictures, keep this one

    def label(self, i: int, classes: tuple[str, ...]) -> str:
        """The class of picture i: a function of its seed alone unless labels were asked for."""
        return self.labels[i % len(self.labels)] if self.labels else classes[(self.seed + i) % len(classes)]

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


class Chunk(NamedTuple):
    """Pictures first .. first + size - 1 of a request, made in one batch."""

    first: int
    size: int


def from_settings(found: Mapping[str, Any], where: str) -> tuple[Request, str]:
    """(request, model hash) of a picture's settings. Raises UserError when they do not make sense here."""
    request = found.get("request")
    values = dict(request) if isinstance(request, Mapping) else {}
    if not {"seed", "n", "batch", "sampler"} <= values.keys():
        raise UserError(
            f"'{where}' was not made by `sfumato sample`: it says too little to be repeated. "
            f"Give its settings as options; `sfumato inspect` shows them."
        )
    digest = str(values.get("hash", ""))
    known = {name: value for name, value in values.items() if name in Request.__dataclass_fields__}
    known |= {name: tuple(known[name]) for name in ("labels", "size") if name in known}
    try:
        out = Request(**known)
        whole = all(isinstance(value, int) and value >= 0 for value in (out.seed, out.n, out.batch, out.only or 0))
        if not whole or out.n < 1 or out.batch < 1 or (out.only or 0) >= out.n:
            raise ValueError("numbers out of range")
    except (TypeError, ValueError) as error:
        raise UserError(f"the settings in '{where}' are damaged ({error}): give them as options instead.") from None
    return out, digest
