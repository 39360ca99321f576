"""Finding a run by what the user typed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sfumato.cli.parse import nearest
from sfumato.engine.judge import best_of
from sfumato.engine.run import RunFolder, read_config
from sfumato.engine.state import Damaged, checkpoints, last_good, load, manifest
from sfumato.errors import UserError
from sfumato.recipe import Recipe

__all__ = [
    "at_checkpoint",
    "described",
    "done",
    "find_run",
    "free_folder",
    "model_hash",
    "opened",
    "refuse_use",
    "writable",
]


def find_run(typed: Path | str, verb: str) -> Path:
    """The folder of a run, or of a model that was shared (its final/). Raises UserError with the nearest name."""
    path = Path(typed)
    if not path.exists():
        beside = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir()) if path.parent.is_dir() else []
        near = nearest(path.name, beside, f" give the folder of a run, as in `sfumato {verb} runs/NAME`.")
        raise UserError(f"there is no run '{typed}':{near}")
    if not path.is_dir():
        raise UserError(f"'{typed}' is a file: give the folder of a run, as in `sfumato {verb} runs/NAME`.")
    if not (path / "config.yaml").exists():
        inside = sorted(entry.parent.name for entry in path.glob("*/config.yaml"))
        hint = f" did you mean '{path / inside[0]}'?" if inside else " `sfumato train PAPER DATA` makes one."
        raise UserError(f"'{typed}' is not the folder of a run (it has no config.yaml):{hint}")
    return path


def at_checkpoint(home: Path, word: str) -> Path:
    """The folder of one model of a run: best, latest, final, step_00001000 or 1000; "" is the run itself, of which
    `load` takes the newest model. Raises UserError with what there is."""
    if not word:
        return home
    if (home / "manifest.json").exists():
        raise UserError(f"'{home}' is one model: --checkpoint chooses among those of a run, so give its folder.")
    run = RunFolder(home)
    saved = {folder.name: folder for folder in checkpoints(run)}
    best = best_of(run)
    there = dict(saved)
    there |= {"latest": next(iter(saved.values()))} if saved else {}
    there |= {"final": run.final} if run.final.is_dir() else {}
    there |= {"best": best[0]} if best else {}
    name = f"step_{int(word):08d}" if word.isdecimal() and len(word) < 19 else word
    if name in there:
        return there[name]
    if name == "best":
        raise UserError(
            f"'{home}' has no best checkpoint, since its pictures were not evaluated (--evaluate kid does that): "
            f"choose {', '.join(there) or 'another run, this one has no model yet'}."
        )
    hint = nearest(name, list(there), f" choose {', '.join(there)}." if there else " it has no model yet.")
    raise UserError(f"'{home}' has no checkpoint '{word}':{hint}")


def described(run: Path) -> dict[str, Any]:
    """config.yaml of a run: paper, preset, config, classes. Raises UserError when it is damaged."""
    facts = read_config(run)
    if not isinstance(facts.get("paper"), str) or not isinstance(facts.get("config"), dict):
        raise UserError(
            f"{run / 'config.yaml'} is damaged: it should name a paper and its config. "
            f"Restore it from {run / 'final'} if that is whole, or train again."
        )
    return facts


def name_of(config: dict[str, Any]) -> str:
    """What a run's model is called: its paper and preset."""
    return "-".join(filter(None, (config["paper"], str(config.get("preset") or ""))))


def opened(run: Path, device: torch.device) -> Recipe:
    """The averaged model of a run. Raises UserError that says where a whole one is."""
    try:
        return load(run, device=device)
    except Damaged as problem:
        good = last_good(RunFolder(_home_of(run)), lambda message: None)
        hint = f"the checkpoint '{good}' is whole: use that instead" if good else "no checkpoint is whole: train again"
        raise UserError(f"{str(problem).rstrip('.')}; {hint}.") from None
    except UserError:
        if not (run / "final").exists() and not checkpoints(RunFolder(run)) and (run / "run.yaml").exists():
            raise UserError(
                f"'{run}' has no model yet: it was stopped before its first checkpoint. Go on with "
                f"`sfumato train --resume {run}`."
            ) from None
        raise


def refuse_use(recipe: Recipe, verb: str) -> None:
    """Raises UserError for a run that makes no pictures by itself."""
    if recipe.use:
        raise UserError(f"{verb} needs a run that makes pictures by itself: {recipe.use}.")


def _home_of(model: Path) -> Path:
    """The run of one of its models."""
    if model.parent.name == "checkpoints":
        return model.parent.parent
    return model.parent if model.name == "final" and (model.parent / "run.yaml").exists() else model


def free_folder(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `-3` ... where that is taken."""
    path, n = wanted, 1
    while path.exists() and any(path.iterdir()):
        n += 1
        path = wanted.with_name(f"{wanted.name}-{n}")
    return path


def model_hash(path: Path) -> str:
    """The first digits of the SHA-256 of the weights that `load(path)` takes; "" where it is not known."""
    for folder in (path, path / "final", *checkpoints(RunFolder(path))[:1]):
        with suppress(Damaged, KeyError):
            written = manifest(folder)
            return str(written.get("ema.safetensors", written["model.safetensors"])["sha256"][:12])
    return ""


def writable(out: Path) -> Path:
    """The folder, made. Raises UserError before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(13, os.strerror(13))
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"'{out}' is a file, or lies below one: give a folder with --out.") from None
    except OSError as error:
        raise UserError(
            f"'{out}' cannot be written ({(error.strerror or '').lower()}): give another folder with --out."
        ) from None
    return out


def done(home: Path) -> int:
    """Steps in the newest checkpoint."""
    saved = checkpoints(RunFolder(home))
    return int(saved[0].name[5:]) if saved else 0
