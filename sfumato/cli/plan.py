"""What `sfumato train` says before it starts."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfumato.cli.show import amount, duration, size
from sfumato.data import Dataset
from sfumato.engine import Options
from sfumato.errors import UserError
from sfumato.recipe import Recipe

__all__ = ["Facts", "Rows", "bytes_of", "memory_of", "refuse_if_full", "refuse_if_large", "rows_of"]

Rows = list[tuple[str, str]]
COLOURS = {1: "gray", 3: "colour", 4: "colour and alpha"}


@dataclass(frozen=True)
class Facts:
    """What the plan is made from."""

    source: str
    paper: str
    recipe: Recipe
    data: Dataset
    held: Dataset | None
    options: Options
    device: torch.device
    processes: int
    seconds: float | None  # of a step
    threads: int | None
    shrunk: bool  # the size was picked below the pictures' own
    evaluation: str = ""


def rows_of(f: Facts) -> Rows:
    """Names and values, for `show.rows`."""
    t, disk = f.options.training, bytes_of(f.recipe, f.options)
    passes = t.steps * t.batch / len(f.data)
    machine = [str(f.device), str(f.options.precision)]
    machine += [amount(f.threads, "thread")] if f.threads else []
    machine += [amount(f.processes, "process")] if f.processes > 1 else []
    return [
        ("data", _data(f)),
        ("model", _model(f)),
        (
            "training",
            f"{amount(t.steps, 'step')} of {amount(t.batch, 'picture')} ({passes:,.3g} passes over the data), "
            f"lr {t.lr:g} {t.decay}, seed {f.options.seed}",
        ),
        ("machine", ", ".join(machine)),
        ("time", _time(f)),
        *([("quality", f.evaluation)] if f.evaluation else []),
        ("disk", f"up to {size(disk)}; {size(_free(f.options.out))} are free"),
        ("result", f"{f.options.out}"),
    ]


def _time(f: Facts) -> str:
    if f.seconds is None:
        return "not known before it runs"
    words = duration(f.seconds * f.options.training.steps)
    return words if words.startswith("under") else f"about {words}"


def _data(f: Facts) -> str:
    channels, high, wide = f.data.shape
    words = [f"{amount(len(f.data), 'picture')} of {wide} x {high}, {COLOURS.get(channels, f'{channels} channels')}"]
    words += [amount(len(f.data.classes), "class")] if f.data.classes else []
    words += ["half of them mirrored at random" if f.data.flip else "never mirrored"]
    words += [f"{len(f.held):,} held out"] if f.held is not None else []
    lines = [f"{f.source}: {', '.join(words)}"]
    if f.shrunk:
        lines.append("(the pictures are larger: --size N keeps more of them and takes longer)")
    if f.data.skipped:
        bad, n = f.data.skipped[0], len(f.data.skipped)
        lines.append(f"{amount(n, 'picture')} skipped, as {bad.name} ({bad.reason}); `sfumato data check` lists them")
    return "\n".join([*lines, *f.data.notes])


def _model(f: Facts) -> str:
    sizes = {name: p.numel() for name, p in f.recipe.named_parameters()}
    parameters = sum(sizes[name] for name in f.recipe.lasting(sizes))
    preset = f", preset {f.options.preset}" if f.options.preset else ""
    start = f", from the weights of {f.options.init_from}" if f.options.init_from else ""
    return f"{f.paper}{preset}: {parameters:,} parameters{start}"


def bytes_of(recipe: Recipe, options: Options) -> int:
    """The most that a run keeps at once: checkpoints (weights, average, two moments), the best of them, one being
    written, and final/."""
    every: int = sum(t.numel() * t.element_size() for t in recipe.state_dict().values())
    trained: int = sum(p.numel() * p.element_size() for phase in recipe.phases().values() for p in phase.parameters)
    kept = min(options.keep, options.training.steps // options.save_every + 1 if options.save_every else 1)
    kept += options.judge is not None
    return (kept + 1) * (every + 3 * trained) + every


def refuse_if_full(recipe: Recipe, options: Options) -> None:
    """Raises UserError where not even the first checkpoint would fit."""
    least, free = bytes_of(recipe, replace(options, judge=None)) // (options.keep + 1), _free(options.out)
    if options.out is not None and free < least:
        raise UserError(
            f"the disk of '{options.out}' is nearly full: a checkpoint takes {size(least)}, and "
            f"{size(free)} are free. Free some space, or give another folder with --out."
        )


def refuse_if_large(recipe: Recipe, device: torch.device) -> None:
    """Raises UserError where weights, gradients, two moments and the average do not fit into memory, whatever the
    batch."""
    every: int = sum(t.nbytes for t in recipe.state_dict().values())
    trained: int = sum(p.nbytes for phase in recipe.phases().values() for p in phase.parameters)
    need, there = every + 4 * trained, memory_of(device)
    if need > there:
        raise UserError(
            f"this model has {sum(p.numel() for p in recipe.parameters()):,} parameters: to train them takes at least "
            f"{size(need)}, and this machine has {size(there)} of memory. Give a smaller --preset or --config.FIELD."
        )


def memory_of(device: torch.device) -> float:
    """Bytes that there are in all, as far as that can be known."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")
    with suppress(OSError, ValueError):  # what a container may take
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return float(there)


def _free(out: Path | None) -> int:
    place = (out or Path.cwd()).resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
