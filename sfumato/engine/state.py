"""Checkpoints that are whole or absent, and models loaded from them.

checkpoints/step_00001000/   model, ema, optim .safetensors, state.json, config.yaml, manifest.json (sizes, SHA-256)
final/                       model.safetensors (averaged weights, frozen parts inside), config.yaml, manifest.json
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sfumato.engine import files
from sfumato.engine.run import RunFolder, as_yaml, read_config, read_small, read_yaml, sensible, write_text
from sfumato.engine.tensors import Damaged, compare, read_tensors
from sfumato.errors import UserError
from sfumato.recipe import Recipe
from sfumato.registry import MISFITS, build, outline, reason

__all__ = [
    "FORMAT",
    "Damaged",
    "averaged",
    "begin",
    "check",
    "checkpoints",
    "fitting",
    "infinite",
    "last_good",
    "load",
    "manifest",
    "read_state",
    "read_tensors",
    "refuse_misfit",
    "restore",
    "rotate",
    "save",
    "start_from",
    "write_final",
]

FORMAT = 1
_SMALL = 1 << 20  # bytes: files up to this size are hashed at every opening
_CHECKPOINT = ("model.safetensors", "ema.safetensors", "optim.safetensors", "state.json", "config.yaml")
_FINAL = ("model.safetensors", "config.yaml")


# -- writing -----------------------------------------------------------------------------------------------------------


def _manifest(entries: Mapping[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT, "files": dict(entries)}, separators=(",", ":"), sort_keys=True).encode()


def _write(target: Path, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> None:
    try:
        with files.temporary(target) as folder:
            entries = {
                f"{name}.safetensors": files.write_tensors(folder / f"{name}.safetensors", part)
                for name, part in tensors.items()
            }
            entries |= {name: files.write_bytes(folder / name, text.encode()) for name, text in texts.items()}
            files.write_bytes(folder / "manifest.json", _manifest(entries))
            files.publish(folder, target)
    except OSError as error:
        raise UserError(
            f"{target.name} could not be saved: {error.strerror or error}. Earlier checkpoints are intact: "
            f"make room or mend {target.parent}, then resume."
        ) from error


def save(
    run: RunFolder,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    """Write checkpoint `step`: `tensors` by file name (model, ema, optim). A final/ of fewer steps goes: `load`
    would prefer it. Raises UserError: full, not writable."""
    target = run.checkpoints / f"step_{step:08d}"
    _write(target, tensors, {"state.json": json.dumps(state, allow_nan=False), "config.yaml": as_yaml(config)})
    _outgrow(run, step)
    write_text(run.checkpoints / "latest", target.name + "\n")
    return target


def _outgrow(run: RunFolder, step: int) -> None:
    """Remove a final/ from before `step`. One that cannot be read stays, for `load` to name."""
    with suppress(UserError, KeyError, TypeError):
        if read_yaml(run.final / "config.yaml")["training"]["steps"] < step:
            files.remove(run.final)


def write_final(run: RunFolder, model: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write final/ in place of an older one."""
    _write(run.final, {"model": model}, {"config.yaml": as_yaml(config)})
    return run.final


def suspect(tensors: Sequence[Tensor]) -> Tensor:
    """A flag, on the tensors' device, in one pass over memory: a NaN, an infinity, or numbers whose squares are one."""
    return ~torch.isfinite(torch.stack([n.float() for n in torch._foreach_norm(list(tensors))])).all()


def infinite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with a NaN or an infinity."""
    real = {name: t.detach() for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not real or not suspect(list(real.values())):
        return None
    return next((name for name, t in real.items() if not torch.isfinite(t).all()), None)


def rotate(run: RunFolder, keep: int, spare: str = "") -> None:
    """Delete all but the newest `keep` checkpoints and the one called `spare`; called once the newest is known to be on
    the disk."""
    for old in checkpoints(run)[max(keep, 1) :]:
        if old.name != spare:
            files.remove(old)


# -- checking ----------------------------------------------------------------------------------------------------------


def checkpoints(run: RunFolder) -> list[Path]:
    """Folders of checkpoints, newest first."""
    return sorted(
        (p for p in run.checkpoints.glob("step_*") if p.name[5:].isdigit() and p.is_dir()),
        key=lambda p: int(p.name[5:]),
        reverse=True,
    )


def check(folder: Path, names: tuple[str, ...], *, hashes: bool) -> None:
    """Compare files with their manifest: sizes, and with `hashes` every byte. Raises Damaged with file and reason."""
    listed = manifest(folder)
    if set(listed) != set(names):
        raise Damaged(f"{folder / 'manifest.json'} is damaged: it lists {', '.join(sorted(listed))}.")
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing.")
        size = path.stat().st_size
        if size != entry["size"]:
            raise Damaged(f"{path} is damaged: {size:,} bytes, {entry['size']:,} were written.")
        if (hashes or size <= _SMALL) and files.digest(path) != entry["sha256"]:
            raise Damaged(f"{path} is damaged: its content is not what was written (SHA-256).")


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file that was written. Raises Damaged."""
    path = folder / "manifest.json"
    try:
        content = json.loads(read_small(path, _SMALL))
        version, entries = content["format"], content["files"]
        listed = {
            str(name): {"size": int(entry["size"]), "sha256": str(entry["sha256"])} for name, entry in entries.items()
        }
    except FileNotFoundError:
        raise Damaged(f"{path} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Damaged(f"{path} is damaged: it cannot be read.") from None
    if version != FORMAT:
        raise Damaged(f"{path} has format {str(version)[:20]}, this version reads {FORMAT}: update sfumato.")
    return listed


def last_good(run: RunFolder, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of which every byte is as written; None if none was ever saved. What is wrong with newer
    ones is said. Raises Damaged if all are."""
    saved = checkpoints(run)
    for folder in saved:
        try:
            check(folder, _CHECKPOINT, hashes=True)
            return folder
        except Damaged as problem:
            say(f"{problem} Falling back to the checkpoint before it.")
            last = problem
    if saved:
        raise Damaged(f"None of the {len(saved)} checkpoints in {run.checkpoints} can be read. The oldest: {last}")
    return None


# -- reading -----------------------------------------------------------------------------------------------------------


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises UserError."""
    path = folder / "state.json"
    try:
        return sensible(json.loads(path.read_bytes()), path)
    except (OSError, ValueError, RecursionError):
        raise Damaged(f"{path} is damaged: it cannot be read.") from None


def refuse_misfit(home: Path, recipe: Recipe) -> None:
    """Raises UserError unless a run's newest model that can be opened is one for this recipe. Only headers are read."""
    run, whole = RunFolder(home), recipe.state_dict()
    for folder in (home, run.final, *checkpoints(run)):
        with suppress(Damaged):
            tensors = read_tensors(folder / "model.safetensors")
            compare(tensors, whole if folder.parent == run.checkpoints else _lasting(recipe, whole), folder)
            return


def _lasting(recipe: Recipe, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in recipe.lasting(tensors)}


@torch.no_grad()
def restore(folder: Path, live: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy a checkpoint into the live tensors of a run, all or, with UserError, none."""
    stored = {name: read_tensors(folder / f"{name}.safetensors") for name in live}
    for name, tensors in live.items():
        compare(stored[name], tensors, folder / f"{name}.safetensors")
    for name, tensors in live.items():
        for key, tensor in tensors.items():
            tensor.copy_(stored[name][key])


def _locate(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder to load for a run, a final/ or a checkpoint, and the files it must have."""
    if (path / "manifest.json").exists():
        return path, _CHECKPOINT if (path / "state.json").exists() else _FINAL
    run = RunFolder(path)
    if run.final.exists():
        return run.final, _FINAL
    saved = checkpoints(run)
    if not saved:
        raise UserError(
            f"{path} is not a run: it has neither final/ nor checkpoints/."
            if path.exists()
            else f"There is no run at {path}."
        )
    return saved[0], _CHECKPOINT


def averaged(
    path: Path | str, *, device: torch.device | str = "cpu", verify: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors by name) of the averaged model of a run, a final/ or a checkpoint."""
    folder, names = _locate(Path(path))
    check(folder, names, hashes=verify)
    config = read_config(folder)
    if config.get("format", 0) > FORMAT:
        raise UserError(f"{folder} was written by a newer sfumato ({config.get('version', '?')}): update yours.")
    tensors = read_tensors(folder / "model.safetensors", device)
    if names is _CHECKPOINT:
        tensors |= read_tensors(folder / "ema.safetensors", device)
    return config, tensors


def load(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    verify: bool = False,
    builder: Callable[[str, Mapping[str, Any]], Recipe] = build,
) -> Recipe:
    """The averaged model of a run folder (its final/, else its newest checkpoint), of a final/ or of one checkpoint.

    On the CPU weights of float32 stay in the file, mapped: no second copy. Sizes, headers and shapes are checked, with
    `verify` every byte. `builder(paper, config)` makes the recipe. Raises UserError (Damaged) with file and reason.
    """
    config, tensors = averaged(path, device=device, verify=verify)
    name, settings = config.get("paper"), config.get("config")
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise UserError(f"{path}: config.yaml names no paper and config.")
    try:
        whole = outline(lambda: builder(name, settings).strip())
        if whole is not None:  # before anything is allocated
            tensors = _lasting(whole, tensors)
            compare(tensors, whole.state_dict(), path)
        recipe = _assembled(lambda: builder(name, settings).strip(), tensors, path)
    except MISFITS as error:
        raise UserError(f"{path}: no model can be made with its config: {reason(error)}.") from error
    return recipe.to(device).float().eval()  # a run kept in bfloat16 is computed with in float32


def _assembled(make: Callable[[], Recipe], tensors: Mapping[str, Tensor], where: Path | str) -> Recipe:
    """A recipe around stored weights. Parameters are built without memory or initialisation; a recipe that looks at
    their values while it is built is built in full."""
    try:
        with _weightless():
            recipe = make()
        _adopt(recipe, tensors, where)
        if not any(t.is_meta for t in chain(recipe.parameters(), recipe.buffers())):
            return recipe
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error).lower():
            raise
    recipe = make()
    _adopt(recipe, tensors, where)
    return recipe


def _adopt(recipe: Recipe, tensors: Mapping[str, Tensor], where: Path | str) -> None:
    tensors = _lasting(recipe, tensors)
    compare(tensors, recipe.state_dict(), where)
    recipe.load_state_dict(dict(tensors), assign=True)


@contextmanager
def _weightless() -> Iterator[None]:
    """Parameters registered in this thread go to the meta device; buffers are real, so tables survive."""
    me = threading.get_ident()

    def bare(module: nn.Module, name: str, p: nn.Parameter | None) -> nn.Parameter | None:
        if p is None or p.is_meta or threading.get_ident() != me:
            return None
        return nn.Parameter(p.detach().to("meta"), p.requires_grad)

    handle = register_module_parameter_registration_hook(bare)  # type: ignore[arg-type]  # its None is too narrow
    try:
        yield
    finally:
        handle.remove()


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def fitting(path: Path | str, recipe: Recipe, *, verify: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, averaged tensors) of another run whose model is this recipe's. Raises UserError, for other classes too:
    an embedding is adopted by the number of its class, not by the name."""
    config, tensors = averaged(path, verify=verify)
    theirs, ours = (config.get("config") or {}).get("classes"), getattr(recipe.config, "classes", ())
    if theirs and ours and theirs != list(ours):
        raise UserError(
            f"{path} was trained on the classes {_shortened(theirs)}, and this run has {_shortened(ours)}: fine-tune "
            "on the same classes in the same order, or train anew."
        )
    try:
        compare(_lasting(recipe, tensors), _lasting(recipe, recipe.state_dict()), path)
    except UserError as problem:
        raise UserError(
            f"{str(problem).rstrip('.')}; fine-tune with the paper, preset, size and classes of that run "
            f"({config.get('paper')})."
        ) from None
    return config, tensors


@torch.no_grad()
def start_from(recipe: Recipe, path: Path | str) -> dict[str, Any]:
    """Copy the averaged weights of another run into `recipe`: fine-tuning. Returns its config. Raises UserError."""
    config, tensors = fitting(path, recipe, verify=True)
    for name, tensor in _lasting(recipe, recipe.state_dict()).items():
        tensor.copy_(tensors[name])
    recipe.started()
    return config


def begin(recipe: Recipe, path: Path | None) -> str:
    """Give an untrained recipe what it starts from, if anything: a base to be trained upon, or the weights of a run
    to be fine-tuned. Returns what to say of it. Raises UserError, also without a base that is needed."""
    bases = recipe.base(recipe.config)
    if path is None:
        if bases:
            raise UserError(f"This is trained upon a run of {' or '.join(bases)}: give one with --from RUN.")
        return ""
    if read_config(_locate(path)[0]).get("paper") in bases:
        recipe.adopt(_base(recipe, path))
        return f"Built upon the averaged model of {path}."
    start_from(recipe, path)
    return f"Starting from the averaged weights of {path}."


def _base(recipe: Recipe, path: Path) -> Recipe:
    """The model of a run, one that the recipe was made upon. Raises UserError."""
    base = load(path, verify=True)
    if name := recipe.apart(recipe.config, base.config):
        ours, theirs = getattr(recipe.config, name), getattr(recipe.upon(recipe.config, base.config), name)
        raise UserError(f"This cannot be trained upon {path}: its {name} must be {theirs}, and not {ours}.")
    return base
