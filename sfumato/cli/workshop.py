"""What the verbs that begin with a picture share: an opened run, how it walks, batches, threads, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.cli.progress import Progress
from sfumato.cli.request import Chunk, Request, batch_of, names_of, refuse_labels, refuse_numbers
from sfumato.cli.runs import described, find_run, free_folder, model_hash, name_of, opened, refuse_use, writable
from sfumato.cli.samplers import chosen, length, walk_of
from sfumato.core.random import Seeds
from sfumato.data.pictures import Settings
from sfumato.engine.plan import choose_device, choose_threads, using_threads
from sfumato.errors import UserError
from sfumato.pixels import Pixels
from sfumato.recipe import Ask
from sfumato.samplers.sampler import Sampler

__all__ = ["Edited", "Make", "Workshop", "labels_of", "told", "walked"]

Show = Callable[[int, int], object]
Make = Callable[[Ask, Chunk, Show], Tensor]  # a batch: (chunk.size, C, ...)


@dataclass(frozen=True)
class Edited(Request):
    """A request that begins with a picture: it says what was done, never with which file."""

    edit: str = ""
    method: str = ""
    passes: int | None = None
    rounds: int | None = None
    strength: float | None = None
    factor: int | None = None  # of enlarging
    width: float | None = None  # of the blur, in pixels
    noise: float | None = None


@dataclass(frozen=True)
class Workshop:
    """A run that works on pixels."""

    home: Path
    recipe: Pixels
    config: dict[str, Any]
    verb: str

    @classmethod
    def open(cls, typed: str, verb: str, flags: Any, kind: type[Pixels] | None = None, trains: str = "") -> Workshop:
        """A run that makes pictures by itself, or one of a kind for this verb alone, which `trains` makes. Raises
        UserError, also for numbers among `flags` that no request has."""
        refuse_numbers(vars(flags))
        home = find_run(typed, verb)
        config = described(home)
        recipe = opened(home, choose_device(flags.device)).requires_grad_(False).eval()
        if kind is None:
            refuse_use(recipe, verb)
        elif not isinstance(recipe, kind):
            raise UserError(f"'{typed}' is no run to {verb} with: `{trains}` trains one.")
        if not isinstance(recipe, Pixels):
            raise UserError(f"{verb} works on pixels, and {config['paper']} does not: give a run of ddpm, edm, ...")
        return cls(home, recipe, config, verb)

    @property
    def name(self) -> str:
        return name_of(self.config)

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
        return batch_of(asked, n, self.recipe.config.shape[1:])

    def request(self, flags: Any, sampler: Sampler, labels: tuple[str, ...], n: int, **about: Any) -> Edited:
        """What is asked for with the walk, the classes and n pictures; `about` are other fields."""
        about = {"edit": self.verb, **walk_of(sampler), **about}
        return Edited(n=n, batch=self.batch(flags.batch, n), labels=labels, threads=flags.threads, **about)

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


def walked(shop: Workshop, own: Sampler, flags: Any) -> Sampler:
    """The sampler with what was asked for. Raises UserError where the run's process has no such walk."""
    asked = {name: getattr(flags, name, None) for name in ("steps", "spacing", "eta")}
    sampler = chosen(own, flags.sampler, **asked)
    if getattr(flags, "strength", None) is None:  # else it begins later, where more samplers can walk
        length(sampler, shop.recipe)
    return sampler


def labels_of(shop: Workshop, text: str, guidance: float = 1.0) -> tuple[str, ...]:
    """The classes that were typed. Raises UserError for one that the run does not know."""
    names = names_of(text, shop.classes)
    refuse_labels(names, guidance, shop.classes)
    if guidance != 1.0 and not names:
        raise UserError("--guidance makes a class stronger: say which with --label NAME.")
    return names


def told(names: Sequence[str], shop: Workshop) -> str:
    """Which classes the network was told, for the last line."""
    return (f", told {', '.join(names)}" if names else ", told no class") if shop.classes else ""
