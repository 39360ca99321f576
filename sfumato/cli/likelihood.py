"""`sfumato likelihood RUN DATA`: how probable a trained run thinks pictures are, in bits per dimension."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tyro.conf import OmitArgPrefixes, Positional

from sfumato.cli.bits import Found, joined, told
from sfumato.cli.flags import data_options
from sfumato.cli.parse import nearest, option, parse
from sfumato.cli.plan import COLOURS
from sfumato.cli.progress import Progress
from sfumato.cli.request import batch_of, refuse_numbers
from sfumato.cli.runs import find_run, free_folder, opened, refuse_use, writable
from sfumato.cli.samplers import own_sampler, refuse_jumps
from sfumato.cli.show import Rows, amount, duration, rows, table
from sfumato.core import guidance, losses
from sfumato.core.denoiser import Denoiser, NeuralDenoiser
from sfumato.core.likelihood import Density, density, dequantised, offset, phase_density, rademacher
from sfumato.core.phase import CLD
from sfumato.core.posterior import Variance, large, learned, small
from sfumato.core.process import Affine
from sfumato.core.random import Seeds, key
from sfumato.data import Dataset, open_data
from sfumato.engine.plan import choose_device, choose_threads, using_threads
from sfumato.engine.run import RunFolder
from sfumato.errors import UserError
from sfumato.recipe import Recipe

__all__ = ["run"]

AT_ONCE = 1 << 15  # pixels of a batch: activations are kept for the backward pass
EXAMPLES = """\
examples
  sfumato likelihood runs/photos photos/ --holdout 0.02   on the pictures that training kept aside
  sfumato likelihood runs/photos other/ --n 256           are these pictures like those?
  sfumato likelihood runs/photos photos/ --method both    the flow's density, and the bound of the chain"""
VARIANCES: dict[str, Variance] = {"small": small, "large": large, "learned": learned}
Show = Callable[[float], object]
T = TypeVar("T")


@dataclass(frozen=True)
class PartFlags:
    """Which pictures, and how they are read: at the run's size, in its colours."""

    split: Annotated[str, option("part of the data", "NAME|all", "train, where there is one")] = ""
    holdout: Annotated[
        float | None, option("only the share that training kept aside, as `train --holdout`", "SHARE", "all")
    ] = None
    labels: Annotated[
        str, option("classes, for runs that know some; none: not told", "folder|COLUMN|none", "column `label`")
    ] = ""
    fit: Annotated[Literal["crop", "pad", "stretch"], option("what happens to other shapes")] = "crop"
    alpha: Annotated[Literal["white", "keep"], option("transparent pictures: on white, or as a channel")] = "white"
    strict: Annotated[bool, option("stop at a bad picture in place of skipping it")] = False


@dataclass(frozen=True)
class Likelihood:
    """How probable a trained run thinks pictures are: bits per dimension with an error bar, a value for each picture,
    the strangest first.

    Fewer bits: more probable. docs/likelihood.md says what the number means and what it does not compare with.
    """

    run: Annotated[str, Positional, option("a run's folder, or the final/ of one", "RUN", "")] = ""
    source: Annotated[
        str, Positional, option("a folder, .parquet, .npz, .zip, hf:NAME, digits or glyphs", "DATA", "")
    ] = ""
    method: Annotated[
        Literal["ode", "bound", "both"], option("ode: density of the probability flow; bound: of the chain of steps")
    ] = "ode"
    n: Annotated[int, option("how many pictures, chosen by the seed", "N")] = 64
    seed: Annotated[int, option("of the choice and of all noise", "N")] = 0
    probes: Annotated[int, option("ode: random probes of the divergence for each picture", "N")] = 1
    rtol: Annotated[float, option("ode: relative and absolute error of a step", "E")] = 1e-3
    eps: Annotated[float | None, option("ode: the t at which the flow begins", "T", "the least t trained at")] = None
    steps: Annotated[int | None, option("bound: steps of the chain", "N", "the run's own")] = None
    variance: Annotated[
        Literal["small", "large", "learned"] | None, option("bound: of the chain's steps", None, "the run's own")
    ] = None
    strangest: Annotated[int, option("pictures listed and drawn", "N")] = 8
    out: Annotated[Path | None, option("where tables and pictures go", "FOLDER", "RUN/likelihood")] = None
    batch: Annotated[int | None, option("pictures at once", "N", "by their size")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "timed")] = None
    data: OmitArgPrefixes[PartFlags] = field(default_factory=PartFlags)


def run(args: list[str]) -> int:
    if any(word.startswith("--guidance") for word in args):
        raise UserError("guidance makes no density: likelihood is that of the run itself; leave out --guidance.")
    flags = parse(Likelihood, "likelihood", args, examples=EXAMPLES)
    if not (flags.run and flags.source):
        raise UserError("likelihood needs a run and data, as in `sfumato likelihood runs/NAME photos/`.")
    _refuse(flags)
    home = find_run(flags.run, "likelihood")
    recipe = opened(home, choose_device(flags.device)).requires_grad_(False).eval()
    refuse_use(recipe, "likelihood")
    meter = Meter.of(recipe, flags, home)
    out = writable(flags.out or free_folder(home / "likelihood"))
    for note in meter.notes:
        Progress.say(note)
    start = time.monotonic()
    with using_threads(flags.threads or meter.best_threads()):
        found = meter.measured()
    written = found.write(out, flags.strangest)
    print(rows([*meter.about(found), ("time", duration(time.monotonic() - start))], indent=""))
    print(f"\nthe strangest first, in bits per dimension\n{table(found.listed(flags.strangest))}\n")
    print(rows([("written", "\n".join(map(str, written)))], indent=""))
    return 0


def _refuse(flags: Likelihood) -> None:
    """Raises UserError for numbers that make no sense."""
    refuse_numbers(vars(flags))
    ranges = {
        "probes": (1, 10_000),
        "strangest": (1, 1000),
        "rtol": (1e-12, 0.1),
        "eps": (1e-9, 0.9),
        "steps": (2, 1e5),
    }
    for name, (least, most) in ranges.items():
        value = getattr(flags, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} is {value:g}: it must be at least {least:g} and at most {most:,g}.")


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meter:
    """A run and the pictures that it is asked about."""

    recipe: Recipe
    denoiser: NeuralDenoiser
    data: Dataset
    labels: Tensor | None  # (N,) of the run's classes; None: it is told none
    flags: Likelihood
    available: int  # pictures that these were chosen from
    notes: tuple[str, ...]  # what should be known before it begins

    @classmethod
    def of(cls, recipe: Recipe, flags: Likelihood, home: Path) -> Meter:
        """Reads the data. Raises UserError where the two do not go together."""
        denoiser = getattr(recipe, "denoiser", None)
        shape = tuple(recipe.config.shape)
        if not isinstance(denoiser, NeuralDenoiser) or not isinstance(denoiser.process, Affine | CLD):
            raise UserError("likelihood needs a paper that noises pictures themselves: this run's does not.")
        if isinstance(denoiser.process, CLD) and flags.method != "ode":
            raise UserError(
                "this run's pictures have a momentum, and their chain no such bound: leave out --method; the flow of "
                "the two bounds the likelihood by itself."
            )
        refuse_jumps(recipe, "with a likelihood")
        if flags.variance == "learned" and not denoiser.learn_variance:
            raise UserError("this run does not learn its variance: give --variance small or large, or none.")
        if len(shape) != 3 or shape[0] not in COLOURS:
            raise UserError(f"this run makes no pictures but {' x '.join(map(str, shape))}: likelihood reads pictures.")
        whole, notes = _data(recipe, flags, home)
        data = whole.take(_chosen(whole, flags.n, flags.seed))
        labels = _labels(recipe, data, flags.data.labels)
        if recipe.config.classes and labels is None and flags.data.labels != "none":
            notes = (*notes, "note: this data has no classes, and the run knows some: it is told none.")
        return cls(recipe, denoiser, data, labels, flags, len(whole), notes)

    @property
    def levels(self) -> int:
        return int(np.iinfo(self.data.images.dtype).max) + 1

    @property
    def batch(self) -> int:
        return batch_of(self.flags.batch, len(self.data), self.data.shape[1:], AT_ONCE)

    def measured(self) -> Found:
        """What was asked for, of every picture."""
        asked = self.flags.method
        try:
            flow = list(self._each("following the flow", self.flow)) if asked != "bound" else []
            bound = list(self._each("measuring the bound", self.bound)) if asked != "ode" else []
        except ArithmeticError as error:
            raise UserError(f"the flow cannot be followed: {error}; try a larger --rtol or --eps.") from None
        values = torch.cat([of.bits() for of in flow]) + self.offset if flow else None
        return Found(self.data, values, joined(bound), max((of.calls for of in flow), default=0))

    def _each(self, what: str, measure: Callable[[slice, Show], T]) -> Iterator[T]:
        """Batch by batch; progress is counted in pictures."""
        n = len(self.data)
        with Progress(what) as show:
            for first in range(0, n, self.batch):
                part = slice(first, min(first + self.batch, n))
                yield measure(part, partial(_show_share, show, part, n))

    def flow(self, part: slice, show: Show) -> Density:
        """The flow's density of the dequantised pictures; of data that move, the bound that it gives."""
        x = self._stretched(dequantised(self._pictures(part), self._seeds(part, "levels"), levels=self.levels))
        measure = partial(phase_density, rng=self._seeds(part, "momentum")) if self.moving else density
        probes = rademacher(x, self._seeds(part, "probes"), self.flags.probes)
        rtol = self.flags.rtol
        return measure(self._told(part), x, probes=probes, eps=self.start, rtol=rtol, atol=rtol, show=show)

    def bound(self, part: slice, show: Show) -> losses.Bound:
        """The variational bound of the chain, whose x0 is clipped if the run clips it."""
        span = self.recipe.value_range
        denoiser = guidance.clip(self._told(part), *span) if self.clipped else self._told(part)
        steps = torch.linspace(1.0, 0.0, self.steps + 1, dtype=torch.float64)
        x, rng, variance = self._stretched(self._pictures(part)), self._seeds(part, "bound"), self.variance
        return losses.variational_bound(
            denoiser, x, steps, rng=rng, variance=variance, levels=self.levels, span=span, show=show
        )

    @property
    def moving(self) -> bool:
        """Whether the run's data have a momentum."""
        return isinstance(self.denoiser.process, CLD)

    @property
    def start(self) -> float:
        """The t at which the flow begins: as asked, else the least that the run was trained at."""
        least: float | None = getattr(self.recipe, "least", None)
        return self.flags.eps or least or self.denoiser.process.first

    @property
    def offset(self) -> float:
        low, high = self.recipe.value_range
        return offset(levels=self.levels, low=low, high=high)

    @property
    def clipped(self) -> bool:
        return bool(getattr(self.recipe.config, "clip", False))

    @property
    def variance(self) -> Variance:
        own: Variance = getattr(own_sampler(self.recipe), "variance", small)
        return own if self.flags.variance is None else VARIANCES[self.flags.variance]

    @property
    def steps(self) -> int:
        own = own_sampler(self.recipe)
        return self.flags.steps or (1000 if own is None else own.steps)

    def _told(self, part: slice) -> Denoiser:
        """The denoiser with each picture's class, or with the null."""
        label: Any = getattr(self.recipe, "label", None)
        if label is None:
            return self.denoiser
        if self.labels is None:
            return self.denoiser.given(label.null(part.stop - part.start))
        return self.denoiser.given(label(self.labels[part].to(self._device)))

    def _pictures(self, part: slice) -> Tensor:
        x: Tensor = self.data.batch(np.arange(part.start, part.stop))["image"]
        return x.to(self._device)

    def _stretched(self, x: Tensor) -> Tensor:
        """x in [-1, 1] as the run's x0."""
        low, high = self.recipe.value_range
        return x if (low, high) == (-1.0, 1.0) else x.add(1).mul_((high - low) / 2).add_(low)

    def _seeds(self, part: slice, stream: str) -> Seeds:
        """Each picture's own, by its name: whatever else is measured with it."""
        return Seeds.pictures([key("likelihood", self.flags.seed, stream, name) for name in self.data.names[part]])

    @property
    def _device(self) -> torch.device:
        return next(self.recipe.parameters()).device

    def best_threads(self) -> int | None:
        """Timed on one evaluation of the first batch."""
        if self._device.type != "cpu" or torch.get_num_threads() == 1:
            return None
        first = slice(0, self.batch)
        denoiser, x = self._told(first), self._pictures(first)
        xt = self.denoiser.process.noise(x, 0.5, self.denoiser.process.draw(x, self._seeds(first, "time"))).xt
        xt = xt.detach().requires_grad_()
        return choose_threads(lambda: torch.autograd.grad(denoiser(xt, 0.5).eps.sum(), xt))[0]

    # -- what was measured ---------------------------------------------------------------------------------------------

    def about(self, found: Found) -> Rows:
        f, (channels, high, wide) = self.flags, self.data.shape
        share = "" if f.data.holdout is None else f" that training kept aside ({f.data.holdout:g})"
        which = f"{len(self.data):,} of {amount(self.available, 'picture')}{share}"
        out = [("data", f"{f.source}: {which}, read as {wide} x {high}, {COLOURS[channels]}")]
        if getattr(self.recipe, "label", None) is not None:
            out.append(("classes", "the run is told none" if self.labels is None else "the run is told each picture's"))
        out += [] if found.flow is None else [("ode", self._about_flow(found.flow, found.calls))]
        return out if found.bound is None else [*out, ("bound", self._about_bound(found.bound))]

    def _about_flow(self, bits: Tensor, calls: int) -> str:
        f, (low, high) = self.flags, self.recipe.value_range
        wide = f"{high - low:g} (k + u) / {self.levels}".removeprefix("1 ")
        of = "p(x, v) - entropy of v" if self.moving else "p(x)"
        return (
            f"{told(bits.mean(1))}{', an upper bound' if self.moving else ''}\n"
            f"probability flow from t = {self.start:g}, rtol {f.rtol:g}, {amount(f.probes, 'probe')}; at most {calls} "
            "network calls a picture\n"
            f"-log2 {of} + {self.offset:g} of x = {wide}{f' {low:+g}'.replace('-', '- ') if low else ''}, with the "
            "level k and u uniform in [0, 1)"
        )

    def _about_bound(self, of: losses.Bound) -> str:
        variance = getattr(self.variance, "__name__", "own")
        return (
            f"{told(of.total)}\n"
            f"an upper bound, by a chain of {self.steps} steps, {variance} variance"
            f"{', x0 clipped' if self.clipped else ''}; of the {self.levels} levels themselves\n"
            f"prior {float(of.prior.mean()):.4f}, decoder {float(of.steps[-1].mean()):.4f}"
        )


def _show_share(show: Progress, part: slice, n: int, share: float) -> None:
    show(part.start + int(share * (part.stop - part.start)), n)


# -- data --------------------------------------------------------------------------------------------------------------


def _data(recipe: Recipe, flags: Likelihood, home: Path) -> tuple[Dataset, tuple[str, ...]]:
    """The pictures, and what should be known of them."""
    channels, high, wide = recipe.config.shape
    part, told = flags.data, {} if recipe.config.classes else {"labels": "none"}
    options = data_options(part, size=(wide, high), channels=channels, flip="off", captions="none", **told)
    with Progress("reading pictures") as show:
        data = open_data(flags.source, options, show)
    seed, kept = _kept_aside(home, flags.source, len(data))
    if part.holdout is not None:
        return data.split(part.holdout, seed)[1], ()
    note = f"note: the run was trained on this data: --holdout {kept:g} measures only what it kept aside."
    return data, (note,) if kept else ()


def _kept_aside(home: Path, source: str, pictures: int) -> tuple[int, float]:
    """(seed, share) with which a run of this machine split this data in training; (0, 0) where that is not known."""
    private: dict[str, Any] = {}
    with suppress(UserError, OSError):
        private = RunFolder(home).private()
    seed, share = private.get("seed"), private.get("holdout")
    share = (0.02 if pictures >= 100 else 0.0) if share is None else share
    same = private.get("data") in (source, str(Path(source).resolve()))
    return seed if isinstance(seed, int) else 0, share if same and isinstance(share, float) else 0.0


def _chosen(data: Dataset, n: int, seed: int) -> NDArray[np.int64]:
    """n pictures by the hash of their names: a larger n adds to them."""
    luck = np.array([key("likelihood", seed, name) for name in data.names], np.int64)
    return np.sort(np.argsort(luck, kind="stable")[:n])


def _labels(recipe: Recipe, data: Dataset, asked: str) -> Tensor | None:
    """Each picture's class as the run counts them. Raises UserError for one that it does not know."""
    known = tuple(recipe.config.classes)
    if not known or data.labels is None or asked == "none":
        return None
    names = [data.classes[i] for i in data.labels]
    for name in sorted(set(names) - set(known)):
        raise UserError(
            f"the run knows no class '{name}':{nearest(name, known)} Give --labels none to measure without classes."
        )
    return torch.tensor([known.index(name) for name in names])
