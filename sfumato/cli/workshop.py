"""What the verbs that begin with a picture share: an opened run, how it walks, batches, threads, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.cli.parse import nearest
from sfumato.cli.progress import Progress
from sfumato.cli.request import Chunk, Request, refuse_numbers
from sfumato.cli.runs import described, find_run, free_folder, model_hash, opened, writable
from sfumato.cli.samplers import chosen, facts, length
from sfumato.core.random import Seeds
from sfumato.data.pictures import Settings
from sfumato.engine.plan import choose_device, choose_threads, using_threads
from sfumato.errors import UserError
from sfumato.pixels import Pixels
from sfumato.recipe import Ask
from sfumato.samplers.sampler import Sampler

__all__ = ["Edited", "Make", "Workshop", "labels_of", "told", "walk_of", "walked"]

AT_ONCE = 1 << 16  # pixels of a batch, at most 64 pictures
Show = Callable[[int, int], object]
Make = Callable[[Ask, Chunk, Show], Tensor]  # a batch: (chunk.size, C, ...)


@dataclass(frozen=True)
class Edited(Request):
    """A request that begins with a picture: it says what was done, never with which file."""

    edit: str = ""
    method: str = ""
    passes: int | None = None
    strength: float | None = None


@dataclass(frozen=True)
class Workshop:
    """A run that works on pixels."""

    home: Path
    recipe: Pixels
    config: dict[str, Any]
    verb: str

    @classmethod
    def open(cls, typed: str, verb: str, flags: Any) -> Workshop:
        """Raises UserError, also for numbers among `flags` that no request has."""
        refuse_numbers(vars(flags))
        home = find_run(typed, verb)
        config = described(home)
        recipe = opened(home, choose_device(flags.device)).requires_grad_(False).eval()
        if not isinstance(recipe, Pixels):
            raise UserError(f"{verb} works on pixels, and {config['paper']} does not: give a run of ddpm, edm, ...")
        return cls(home, recipe, config, verb)

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.config["paper"], str(self.config.get("preset") or ""))))

    @property
    def device(self) -> torch.device:
        return next(self.recipe.parameters()).device

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.recipe.config.classes)

    @contextmanager
    def folder(self, asked: Path | None, otherwise: str) -> Iterator[Path]:
        """Where pictures go; nothing is left of it where nothing was made."""
        out = asked or free_folder(self.home / otherwise)
        new = not out.exists()
        try:
            yield writable(out)
        except BaseException:
            with suppress(OSError):
                if new:
                    out.rmdir()
            raise

    def batch(self, asked: int | None, n: int) -> int:
        return min(asked or max(1, min(64, AT_ONCE // prod(self.recipe.config.shape[1:]))), n)

    def ask(self, request: Request, chunk: Chunk, sampler: Sampler) -> Ask:
        """A batch of the request. Without labels nothing is told."""
        known = [self.classes.index(name) for name in request.labels]
        labels = tuple(known[i % len(known)] for i in range(chunk.first, chunk.first + chunk.size)) if known else None
        return Ask(n=chunk.size, labels=labels, guidance=request.guidance, sampler=sampler)

    def made(self, request: Request, sampler: Sampler, make: Make, what: str) -> Tensor:
        """All batches, one after another, on the CPU."""
        chunks = list(request.chunks())
        parts = []
        with using_threads(request.threads or self.best_threads(chunks[0].size)), Progress(what) as show:
            for done, chunk in enumerate(chunks):

                def shown(step: int, steps: int, done: int = done) -> None:
                    show(done * steps + step, len(chunks) * steps)

                parts.append(make(self.ask(request, chunk, sampler), chunk, shown).cpu())
        return torch.cat(parts)

    def best_threads(self, n: int) -> int | None:
        """Timed on one call of the network."""
        if self.device.type != "cpu" or torch.get_num_threads() == 1:
            return None
        denoiser = self.recipe.denoiser
        x = denoiser.process.prior((n, *self.recipe.config.shape), Seeds(0))
        cond = self.recipe.label and self.recipe.label.null(n)
        with torch.no_grad():
            return choose_threads(lambda: denoiser(x, 0.5, cond))[0]

    def settings(self, request: Request, i: int | None) -> Settings:
        """What picture i carries."""
        label = request.labels[(i or 0) % len(request.labels)] if request.labels else ""
        size = (self.recipe.config.shape[2], self.recipe.config.shape[1])
        return request.settings(i, model=self.name, digest=model_hash(self.home), label=label, size=size)


def walk_of(sampler: Sampler) -> dict[str, Any]:
    """The fields of a request that say how it walks."""
    told = facts(sampler)
    return {name: told.get(name) for name in ("sampler", "steps", "spacing", "eta", "variance")}


def walked(shop: Workshop, own: Sampler, flags: Any) -> Sampler:
    """The sampler with what was asked for. Raises UserError where the run's process has no such walk."""
    asked = {name: getattr(flags, name, None) for name in ("steps", "spacing", "eta")}
    sampler = chosen(own, flags.sampler, **asked)
    if getattr(flags, "strength", None) is None:  # else it begins later, where more samplers can walk
        length(sampler, shop.recipe)
    return sampler


def labels_of(shop: Workshop, text: str, guidance: float = 1.0) -> tuple[str, ...]:
    """The classes that were typed. Raises UserError for one that the run does not know."""
    names = (text,) if text in shop.classes else tuple(name.strip() for name in text.split(",") if name.strip())
    if not shop.classes and (names or guidance != 1.0):
        raise UserError(
            f"this run knows no classes, so --{'label' if names else 'guidance'} means nothing to it: leave it out."
        )
    for name in names:
        if name not in shop.classes:
            shown = ", ".join(shop.classes[:12]) + (", ..." if len(shop.classes) > 12 else "")
            raise UserError(f"this run knows no class '{name}':{nearest(name, shop.classes)} Choose from {shown}.")
    if guidance != 1.0 and not names:
        raise UserError("--guidance makes a class stronger: say which with --label NAME.")
    return names


def told(names: Sequence[str], shop: Workshop) -> str:
    """Which classes the network was told, for the last line."""
    return (f", told {', '.join(names)}" if names else ", told no class") if shop.classes else ""
