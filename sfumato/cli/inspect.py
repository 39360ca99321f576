"""`sfumato inspect RUN|FILE|PICTURE`: what a run, a .safetensors file or a picture says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from sfumato.cli.parse import nearest, option, parse
from sfumato.cli.runs import at_checkpoint, described, find_run
from sfumato.cli.show import Rows, amount, rows, size, table
from sfumato.data.options import escape, shortlist
from sfumato.data.pictures import read_settings
from sfumato.engine.judge import best_of
from sfumato.engine.run import RunFolder
from sfumato.engine.state import Damaged, check, checkpoints, manifest
from sfumato.engine.tensors import opened
from sfumato.errors import UserError
from sfumato.recipe import Training
from sfumato.registry import config_from

__all__ = ["run"]

LISTED = 40  # tensors, and texts of a header


@dataclass(frozen=True)
class Inspect:
    """Show what a run, a .safetensors file or a PNG says of itself. Every byte of a run's checkpoints is verified."""

    what: Annotated[str, Positional, option("a run's folder, a .safetensors file or a PNG", "RUN|FILE|PICTURE", "")] = (
        ""
    )
    checkpoint: Annotated[str, option("one of a run's models alone", "best|latest|final|step_N", "")] = ""
    all: Annotated[bool, option("every tensor of a file, not only the first 40")] = False


def run(args: list[str]) -> int:
    flags = parse(Inspect, "inspect", args)
    path = Path(flags.what)
    if not flags.what:
        raise UserError("inspect what? Give a run's folder, a .safetensors file or a PNG.")
    if path.is_dir():
        return _run_folder(at_checkpoint(find_run(path, "inspect"), flags.checkpoint))
    if flags.checkpoint:
        raise UserError("--checkpoint chooses among the models of a run: give a run's folder.")
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, beside, " give a run, a .safetensors file or a PNG.")
        raise UserError(f"there is no file or folder '{flags.what}':{hint}")
    if path.suffix == ".safetensors":
        print(_tensors(path, most=None if flags.all else LISTED))
    elif path.suffix.lower() == ".png":
        print(_picture(path))
    else:
        raise UserError(
            f"'{flags.what}' is nothing that inspect can read: give a run's folder, a .safetensors file or a PNG."
        )
    return 0


# -- runs --------------------------------------------------------------------------------------------------------------


def _run_folder(home: Path) -> int:
    """Prints; 2 if something in it is damaged."""
    facts, folder = described(home), RunFolder(home)
    print(rows(_about(facts), indent=""))
    if folder.metrics.is_file() and (told := list(_metrics(folder.metrics))):
        print(rows(told, indent=""))
    if best := best_of(folder):
        print(rows([("best", escape(f"{best[0].name}: {best[1].splitlines()[-1] if best[1] else '?'}"))], indent=""))
    alone = (home / "manifest.json").exists()  # a checkpoint, or a final/ that was shared
    places = [home] if alone else [place for place in (folder.final, *checkpoints(folder)) if place.exists()]
    verdicts = [("weights" if alone else place.name, *_verdict(place)) for place in places]
    listed = [(name, text) for name, text, _ in verdicts]
    print(rows(listed or [("weights", "none yet: no checkpoint has been written")], indent=""))
    return 0 if all(good for *_, good in verdicts) else 2


def _about(facts: Mapping[str, Any]) -> Rows:
    config, training, data = facts["config"], facts.get("training") or {}, facts.get("data") or {}
    classes = [str(name) for name in facts.get("classes") or ()]
    preset = f", preset {facts['preset']}" if facts.get("preset") else ""
    shape = " x ".join(_plain(data.get("shape") or "?").split())
    out = [
        ("paper", f"{facts['paper']}{preset} (sfumato {facts.get('version', '?')})"),
        ("data", f"{_counted(data.get('examples', '?'))} examples of {shape} (channels x height x width)"),
    ]
    if classes:
        out.append(("classes", f"{len(classes)}: {shortlist(classes, 12)}"))
    if training:
        t = config_from(Training, training)
        out.append(("training", f"{t.steps:,} steps of {t.batch}, lr {t.lr:g} {t.decay}, ema {t.ema:g} ({t.ema_rule})"))
    return [*out, ("config", "\n".join(_flat(config)))]


def _counted(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif name != "classes":
            yield f"{prefix}{name} {_plain(value)}"


def _metrics(path: Path) -> Iterator[tuple[str, str]]:
    """The first, best and last of each loss, and the last of what tells of health."""
    lines = [line for line in map(_parsed, path.read_text("utf-8", errors="replace").splitlines()) if line]
    for name in ("loss", "held/model", "kid", "fid"):
        seen = [(line[name], line["step"]) for line in lines if _finite(line.get(name))]
        if seen:
            (best, when), (last, end) = min(seen), seen[-1]
            yield name, f"{seen[0][0]:.4f} at first, {best:.4f} at best (step {when:,}), {last:.4f} at step {end:,}"
    line: dict[str, Any] = next((line for line in reversed(lines) if "rate" in line), {})
    health = {
        "rate": "pictures per second",
        "ema_lag": "lag of the average",
        "skipped": "steps skipped",
        "norm": "gradient norm",
    }
    told = [f"{words} {line[name]:g}" for name, words in health.items() if _finite(line.get(name))]
    if told:
        yield "last line", ", ".join(told)


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else {}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


def _verdict(place: Path) -> tuple[str, bool]:
    """What is in a checkpoint or a final/, every byte compared with the manifest."""
    try:
        listed = manifest(place)
        check(place, tuple(listed), hashes=True)
    except Damaged as problem:
        return f"{problem}", False
    what = ", ".join(name.removesuffix(".safetensors") for name in sorted(listed) if name.endswith(".safetensors"))
    total = sum(entry["size"] for entry in listed.values())
    return f"whole (SHA-256 of {amount(len(listed), 'file')}, {size(total)}): {what}; weights {_digest(listed)}", True


def _digest(listed: Mapping[str, Any]) -> str:
    return str(listed.get("ema.safetensors", listed.get("model.safetensors", {})).get("sha256", ""))[:12]


# -- files -------------------------------------------------------------------------------------------------------------


def _tensors(path: Path, *, most: int | None) -> str:
    """Names, types and shapes of a safetensors file, and the text of its header. Nothing is loaded."""
    try:
        with opened(path) as file:
            names, header = sorted(file.keys()), file.metadata() or {}
            parts = [(name, file.get_slice(name)) for name in names]
            cells = [
                (escape(name), str(part.get_dtype()), " x ".join(map(str, part.get_shape())) or "one number")
                for name, part in parts
            ]
            count = sum(prod(part.get_shape()) for _, part in parts)
    except Damaged as problem:
        said = str(problem).rstrip(".")
        raise UserError(f"this is no whole .safetensors file: {said}; fetch it again, or train it again.") from None
    lines = [f"{escape(path.name)}: {amount(len(names), 'tensor')}, {count:,} numbers, {size(path.stat().st_size)}"]
    lines += [f"  {escape(name)}: {escape(text[:200])}" for name, text in sorted(header.items())[:LISTED]]
    lines += [table(cells[:most])] if cells else []
    left = len(cells) - len(cells[:most])
    return "\n".join([*lines, f"and {left:,} more: --all shows them"] if left else lines)


def _picture(path: Path) -> str:
    """The settings of a PNG: what `--like` would repeat."""
    found = dict(read_settings(path))
    request = dict(found.pop("request", {}))
    seed, n = request.get("seed"), request.get("n")
    if isinstance(seed, int) and isinstance(n, int):
        found["made among"] = f"seeds {seed} to {seed + n - 1}, {request.get('batch', '?')} at once"
    left = {name: value for name, value in request.items() if name not in {*found, "n", "batch", "only"}}
    pairs = [(name, escape(_plain(value))) for name, value in {**found, **left}.items()]
    return f"{escape(path.name)}\n{rows(pairs)}" if pairs else f"{escape(path.name)}: settings without content"


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) or "(none)" if isinstance(value, list | tuple) else str(value)
