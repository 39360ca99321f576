"""From the folder of a run to what a report tells of it: what is missing or cannot be read is said, never raised."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sfumato.apps.report.commands import commands, flat, shown
from sfumato.apps.report.facts import About, Grid, History, Pixels, Rows
from sfumato.apps.report.history import read_history
from sfumato.cli.cite import bibtex
from sfumato.cli.papers import entry
from sfumato.cli.runs import done, model_hash
from sfumato.cli.show import amount, duration
from sfumato.data.options import shortlist
from sfumato.engine.run import read_yaml
from sfumato.errors import UserError
from sfumato.metrics.receipt import Receipt
from sfumato.recipe import Recipe
from sfumato.registry import MISFITS, Paper, build, outline, paper

__all__ = ["about_run", "history_of", "previews", "private_of", "receipts", "run_files"]

GRIDS = 24  # of the previews, evenly over the run
SIDE = 6000  # pixels of a preview, at most
PREVIEWS, CAPTION = 16, 320  # pictures of a preview; the least width of its sheet
PREDICTED = ("eps", "x0", "v", "score", "velocity")
READ = ("size", "channels", "fit", "flip", "labels", "captions", "split")  # of how the data was read


def run_files(home: Path, name: str) -> Path:
    """A file of the run; for a final/ that lies in its run, the run's."""
    inside = home / name
    shared = home.name == "final" and (home.parent / "config.yaml").exists()
    return home.parent / name if shared and not inside.exists() else inside


def private_of(home: Path) -> dict[str, Any]:
    """run.yaml; {} where there is none, or it is damaged."""
    try:
        return read_yaml(run_files(home, "run.yaml"))
    except UserError:
        return {}


def model_of(config: Mapping[str, Any]) -> tuple[Paper | None, Recipe | None]:
    """The paper, and its recipe without weights: None where this sfumato has no such paper or cannot build it."""
    found, recipe = None, None
    with suppress(UserError):
        found = paper(str(config.get("paper")))
    if found is not None:
        with suppress(UserError, *MISFITS):
            recipe = outline(lambda: build(found.name, config.get("config") or {}).strip())
    return found, recipe


def about_run(home: Path, config: Mapping[str, Any], history: History) -> About:
    """What config.yaml, run.yaml and the paper file say."""
    private, (found, recipe) = private_of(home), model_of(config)
    told = entry(str(config.get("paper")))
    name, preset = str(config.get("paper")), str(config.get("preset") or "")
    note = found.presets[preset].note if found and preset in found.presets else ""
    total = _number(_training(config).get("steps"))
    return About(
        name="" if home.resolve().name in ("final", "run", "") else home.resolve().name,
        paper=name,
        title=told.title if told else name,
        authors=told.authors if told else "",
        year=told.year if told else "",
        arxiv=told.arxiv if told else "",
        preset=preset,
        note=note,
        digest=model_hash(home),
        steps=_reached(home, config, history),
        total=total,
        parameters=None if recipe is None else sum(p.numel() for p in recipe.parameters()),
        plan=_plan(config, private, recipe, history),
        data=_data(config, private),
        config=flat(config.get("config") or {}),
        commands=commands(config, private, found),
        versions=_versions(config),
        bibtex=bibtex(told) if told else "",
        steady=getattr(recipe, "steady", True),
    )


def _reached(home: Path, config: Mapping[str, Any], history: History) -> int:
    """Steps done: a final/ has all of its own, a checkpoint those of its name."""
    shared = (home / "manifest.json").is_file()
    if shared and re.fullmatch(r"step_\d{1,15}", home.name):
        return int(home.name[5:])
    known = [history.last, done(home)]
    with suppress(UserError):
        whole = config if shared else read_yaml(home / "final" / "config.yaml")
        known.append(_number(_training(whole).get("steps")) or 0)
    return max(known)


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("training")
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


# -- rows --------------------------------------------------------------------------------------------------------------


def _plan(config: Mapping[str, Any], private: Mapping[str, Any], recipe: Recipe | None, history: History) -> Rows:
    t, decided = _training(config), private.get("decided")
    decided = decided if isinstance(decided, dict) else {}
    predicts = getattr(getattr(getattr(recipe, "denoiser", None), "parametrisation", None), "__name__", "")
    pairs = [
        ("stage", config.get("stage") if config.get("stage") != "model" else ""),
        ("process", _process(config)),
        ("predicts", predicts if predicts in PREDICTED else ""),
        ("network", _network(config)),
        ("steps", _counted(t.get("steps"))),
        ("batch", _counted(t.get("batch"))),
        ("learning rate", f"{shown(t.get('lr'))}, {shown(t.get('decay'))}, warm-up {shown(t.get('warmup'))} steps"),
        ("optimiser", f"AdamW, betas {shown(t.get('betas'))}, weight decay {shown(t.get('weight_decay'))}"),
        ("gradient clip", shown(t.get("clip")) if t.get("clip") else "off"),
        ("EMA", f"{shown(t.get('ema'))}, {shown(t.get('ema_rule'))}"),
        ("precision", decided.get("precision")),
        ("threads", decided.get("threads")),
        ("seed", private.get("seed")),
        ("time", duration(history.seconds) if history.seconds else ""),
    ]
    return tuple((name, shown(value)) for name, value in pairs if value not in (None, "") and (t or name == "network"))


def _process(config: Mapping[str, Any]) -> str:
    """As the process says itself; built for real, since a table of betas is not there in an outline."""
    settings = config.get("config")
    with suppress(UserError, *MISFITS), torch.device("meta"):
        recipe: Any = build(str(config.get("paper")), settings if isinstance(settings, dict) else {})
        process = getattr(getattr(recipe, "denoiser", None), "process", None)  # a classifier has none
        return "" if process is None else str(process)
    return ""


def _network(config: Mapping[str, Any]) -> str:
    net = (config.get("config") or {}).get("network")
    if not isinstance(net, dict):
        return ""
    if "depth" in net:
        width, depth, heads, patch = (shown(net.get(name)) for name in ("width", "depth", "heads", "patch"))
        return f"transformer, width {width}, {depth} layers, {heads} heads, patches of {patch}"
    parts = [f"U-Net, widths {shown(net.get('widths'))}", f"{_blocks(net.get('blocks'))} a level"]
    parts.append(f"attention at levels {shown(net.get('attention'))}" if net.get("attention") else "no attention")
    parts += [f"patches of {net['patch']}"] if net.get("patch", 1) != 1 else []
    parts += [f"dropout {shown(net['dropout'])}"] if net.get("dropout") else []
    return ", ".join(parts)


def _blocks(count: Any) -> str:
    return amount(count, "block") if type(count) is int else f"{shown(count)} blocks"


def _counted(value: Any) -> str:
    return f"{value:,}" if type(value) is int else shown(value)


def _data(config: Mapping[str, Any], private: Mapping[str, Any]) -> Rows:
    """Counts and shapes; of the source its name only where it is one of ours."""
    data, options = config.get("data"), private.get("data_options")
    data, options = data if isinstance(data, dict) else {}, options if isinstance(options, dict) else {}
    shape, source = data.get("shape"), str(private.get("data") or "")
    classes = [str(name) for name in config.get("classes") or ()]
    low_high = config.get("value_range")
    pairs = [
        ("source", source if source.split(":")[0] in ("digits", "glyphs") else ""),
        ("training examples", _counted(data.get("examples")) if data.get("examples") else ""),
        ("shape", " x ".join(map(str, shape)) + " (channels, height, width)" if isinstance(shape, list) else ""),
        ("classes", f"{len(classes):,}: {shortlist(classes, 24)}" if classes else "none"),
        ("held out", _share(private)),
        ("values", f"{shown(low_high)}" if low_high else ""),
        ("roughness", f"{shown(data.get('roughness'))} (white noise is 1)" if data.get("roughness") else ""),
        *((name, options.get(name)) for name in READ),
    ]
    return tuple((name, shown(value)) for name, value in pairs if value not in (None, "", []))


def _share(private: Mapping[str, Any]) -> str:
    if not private:
        return ""
    share = private.get("holdout")
    return "2 % (none below 100 pictures)" if share is None else f"{shown(share)} of the data"


def _versions(config: Mapping[str, Any]) -> Rows:
    from sfumato import __version__

    return (
        ("trained with", f"sfumato {config.get('version', 'of an unknown version')}"),
        ("reported with", f"sfumato {__version__}, torch {torch.__version__}"),
    )


# -- files -------------------------------------------------------------------------------------------------------------


def previews(home: Path, config: Mapping[str, Any]) -> tuple[tuple[Grid, ...], int]:
    """The grids that training wrote, at most GRIDS of them, without the caption below; and how many there are."""
    found = sorted(run_files(home, "samples").glob("step_*.png"))
    found = [path for path in found if path.stem[5:].isdigit()]
    chosen = np.unique(np.linspace(0, len(found) - 1, min(GRIDS, len(found))).round().astype(int)) if found else ()
    grids = []
    for path in (found[i] for i in chosen):
        with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            grids.append(Grid(int(path.stem[5:]), _cut(_pixels(path), (config.get("config") or {}).get("shape"))))
    return tuple(grids), len(found)


def _pixels(path: Path) -> Pixels:
    with Image.open(path) as picture:
        if picture.format != "PNG" or max(picture.size) > SIDE:
            raise ValueError
        return np.asarray(picture.convert("RGB"))


def _cut(sheet: Pixels, shape: Any) -> Pixels:
    """Without the caption, and at the size of its pictures, where it is laid out as `train` lays out its 16."""
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)):
        return sheet
    h, w = shape[1:]
    columns = min(PREVIEWS, math.ceil(math.sqrt(PREVIEWS * h / w)))
    high, wide = math.ceil(PREVIEWS / columns) * (h + 2) - 2, columns * (w + 2) - 2
    factor = max(1, CAPTION // wide)
    if sheet.shape[1] != max(wide * factor, CAPTION) or sheet.shape[0] < high * factor:
        return sheet
    gaps = (np.arange(high) % (h + 2) >= h)[:, None] | (np.arange(wide) % (w + 2) >= w)
    tiles = sheet[: high * factor : factor, : wide * factor : factor]
    return np.dstack([tiles, np.where(gaps, 0, 255).astype(np.uint8)])  # the page shows between them


def receipts(home: Path) -> tuple[tuple[Receipt, ...], int]:
    """The receipts of the run, newest first, and how many files could not be read."""
    found, bad = [], 0
    for path in sorted(run_files(home, "evaluation").glob("*.json"), reverse=True):
        try:
            found.append(_checked(Receipt.read(path)))
        except (UserError, TypeError, ValueError):
            bad += 1
    return tuple(found), bad


def _checked(receipt: Receipt) -> Receipt:
    """Raises TypeError where a receipt holds other kinds of values than figures have."""
    for figure in receipt.figures:
        for field in fields(figure):
            value = getattr(figure, field.name)
            words = field.name in ("metric", "features", "warning")
            if not isinstance(value, str if words else int | float | None):
                raise TypeError(field.name)
    for part in (receipt.samples, receipt.reference, receipt.cost, receipt.made):
        if not isinstance(part, Mapping):
            raise TypeError
    return receipt


def history_of(home: Path) -> History:
    return read_history(run_files(home, "metrics.jsonl"))
