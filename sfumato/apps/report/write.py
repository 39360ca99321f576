"""From a run's folder to its report: everything that can be found out, then one file, whole or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.apps.report.facts import Facts, Nearest, Samples
from sfumato.apps.report.gather import about_run, history_of, previews, private_of, receipts, run_files
from sfumato.apps.report.history import read_warnings
from sfumato.apps.report.making import fresh_samples
from sfumato.apps.report.nearest import nearest_training
from sfumato.apps.report.page import page
from sfumato.cli.runs import described, opened, writable
from sfumato.data import DataOptions, Dataset, open_data
from sfumato.engine.plan import choose_device, out_of_memory
from sfumato.errors import UserError
from sfumato.metrics.features import Extractor
from sfumato.metrics.lite0 import Lite0
from sfumato.recipe import Recipe
from sfumato.registry import config_from
from sfumato.samplers.sampler import Sampler

__all__ = ["Wanted", "check_place", "write_report"]

Show = Callable[[str, int, int], object]
FEWEST = 100  # examples from which on training keeps some aside by default
SHARE = 0.02


def _quiet(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Wanted:
    """How a report is made.

    n, seed   fresh samples, picture i with the seed `seed + i`; n = 0: none
    sampler   None: the run's own, or a shorter walk where that is long
    data      training pictures: a Dataset, what open_data reads, "" for what run.yaml names, "none" for none
    features  order the nearest training pictures by lite0 where its weights are installed
    """

    n: int = 64
    seed: int = 0
    sampler: Sampler | None = None
    guidance: float = 1.0
    data: Dataset | str = ""
    features: bool = True
    device: str = "auto"


def write_report(home: Path, out: Path, wanted: Wanted = Wanted(), *, show: Show = _quiet) -> Path:
    """Writes the report of the run in `home` to the file `out` and returns it. Raises UserError where the run's
    config.yaml cannot be read or `out` cannot be written; all else that is missing is said in the report."""
    check_place(out)
    facts, there = gathered(home, wanted, show)
    _replace(out, page(facts, previews=there))
    return out


def gathered(home: Path, wanted: Wanted, show: Show = _quiet) -> tuple[Facts, int]:
    """Everything on the page, and how many previews there are."""
    config, history = described(home), history_of(home)
    missing: dict[str, str] = {}
    samples, recipe = _samples(home, wanted, missing, show)
    grids, there = previews(home, config)
    found, bad = receipts(home)
    if bad:
        missing["figures"] = f"{bad} of the files in evaluation/ could not be read as receipts."
    elif not found:
        missing["figures"] = "Nothing was measured yet: `sfumato evaluate RUN DATA` adds figures with their receipts."
    if not history.series:
        missing["curves"] = "The numbers of the training are not there (metrics.jsonl)."
    facts = Facts(
        about_run(home, config, history),
        history,
        read_warnings(run_files(home, "log.txt")),
        grids,
        samples,
        _nearest(home, recipe, samples, wanted, missing, show),
        found,
        missing,
    )
    return facts, there


# -- samples -----------------------------------------------------------------------------------------------------------


def _samples(home: Path, wanted: Wanted, missing: dict[str, str], show: Show) -> tuple[Samples | None, Recipe | None]:
    if wanted.n == 0:
        return None, None
    try:
        recipe = opened(home, choose_device(wanted.device)).requires_grad_(False).eval()
    except UserError:
        missing["samples"] = "There are no weights that can be opened, so there are no samples: the run is before its "
        missing["samples"] += "first checkpoint, or its files are damaged (`sfumato inspect RUN` says which)."
        return None, None
    if recipe.use:
        missing["samples"] = f"No samples by itself: {recipe.use}."
        return None, None
    try:
        walked = {"sampler": wanted.sampler, "guidance": wanted.guidance}
        return fresh_samples(recipe, wanted.n, wanted.seed, show, **walked), recipe  # type: ignore[arg-type]
    except ArithmeticError as error:
        missing["samples"] = f"No samples: {error}."
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        missing["samples"] = "No samples: they do not fit into memory (a smaller --n may)."
    return None, None


# -- training pictures -------------------------------------------------------------------------------------------------


def _nearest(
    home: Path,
    recipe: Recipe | None,
    samples: Samples | None,
    wanted: Wanted,
    missing: dict[str, str],
    show: Show,
) -> Nearest | None:
    if samples is None or recipe is None or wanted.data == "none":
        return None
    shape = tuple(recipe.config.shape)
    if len(shape) != 3:
        missing["nearest"] = "The training data of this run are no pictures, so none are compared."
        return None
    examples = (described(home).get("data") or {}).get("examples")
    data = _training_data(home, shape, examples, wanted.data, missing, show)
    if data is None:
        return None
    try:
        if data.shape != shape or samples.pixels.shape[3] != shape[0]:
            missing["nearest"] = "The data given are of another size or other colours than the run's pictures."
            return None
        found = nearest_training(samples.pixels, data, show, extractor=_extractor(wanted), seed=wanted.seed)
        return found and replace(found, exact=examples in (None, len(data)))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        missing["nearest"] = "The training pictures were not compared: memory was short."
    return None


def _training_data(
    home: Path, shape: tuple[int, ...], examples: Any, given: Dataset | str, missing: dict[str, str], show: Show
) -> Dataset | None:
    """What the run was trained on, without what it held out. Where the user names data that cannot be read, that is an
    error; where run.yaml does, they are missing."""
    if isinstance(given, Dataset):
        return given
    private = private_of(home)
    source = given or str(private.get("data") or "")
    if not source:
        missing["nearest"] = (
            "Where the training pictures lie is not recorded with this model: give them with --data to see the "
            "nearest of them beside the samples."
        )
        return None
    try:
        data = _read(source, _options(private, shape), partial(_reading, show))
        return _trained_on(data, private, examples)
    except UserError:
        if given:
            raise
        missing["nearest"] = "The training pictures are no longer where they were: give them with --data."
    return None


def _reading(show: Show, done: int, total: int) -> None:
    show("reading pictures", done, total)


def _options(private: dict[str, Any], shape: tuple[int, ...]) -> DataOptions:
    """As training read them, at the run's size and in its colours."""
    told = private.get("data_options")
    base = DataOptions()
    with suppress(UserError):
        base = config_from(DataOptions, told) if isinstance(told, dict) else base
    channels: Any = shape[0] if shape[0] in (1, 3, 4) else None
    given = {"size": (shape[2], shape[1]), "channels": channels, "strict": False}
    return DataOptions(**{**{name: getattr(base, name) for name in base.__dataclass_fields__}, **given})


def _read(source: str, options: DataOptions, show: Callable[[int, int], None]) -> Dataset:
    """With the labels, captions and split of the run; other data may have none of them."""
    try:
        return open_data(source, options, show)
    except UserError:
        return open_data(source, replace(options, labels=None, captions="none", split=None), show)


def _trained_on(data: Dataset, private: dict[str, Any], examples: Any) -> Dataset:
    """Without what the run held out, where the rest is as many as it trained on; else all."""
    share, seed = private.get("holdout"), private.get("seed")
    if share is None:
        share = SHARE if len(data) >= FEWEST else 0.0
    with suppress(UserError, TypeError):
        train = data.split(share, seed if type(seed) is int else 0)[0] if share else data
        if examples is None or len(train) == examples:
            return train
    return data


def _extractor(wanted: Wanted) -> Extractor | None:
    if wanted.features:
        with suppress(UserError):
            return Lite0()
    return None


# -- the file ----------------------------------------------------------------------------------------------------------


def check_place(out: Path) -> None:
    """Raises UserError where `out` can be no file, before any work is done."""
    if out.is_dir():
        raise UserError(f"'{out}' is a folder: give a file with --out, as report.html.")
    if out.exists() and not out.is_file():  # a device or a pipe, which a file would take the place of
        raise UserError(f"'{out}' is no ordinary file: give another with --out.")
    writable(out.parent)


def _replace(out: Path, text: str) -> None:
    """Whole or not at all. Raises OSError."""
    beside = out.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        with beside.open("x", encoding="utf8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
