"""Are two runs the same, to the bit?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.engine import RunFolder
from sfumato.engine.state import checkpoints, read_tensors

TENSORS = ("model", "ema", "optim")


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "rate")} for line in lines]


def content(out: Path) -> dict[str, bytes]:
    """Every byte of the newest checkpoint's tensors and of final/'s, and the state without the machine's part."""
    newest = checkpoints(RunFolder(out))[0]
    files = {f"{name}.safetensors": (newest / f"{name}.safetensors").read_bytes() for name in TENSORS}
    if (out / "final").exists():
        files["final"] = (out / "final" / "model.safetensors").read_bytes()
    return files


def same(a: Path, b: Path) -> bool:
    return content(a) == content(b) and metrics(a) == metrics(b)


def difference(a: Path, b: Path) -> float:
    """The largest absolute difference between the tensors of two newest checkpoints."""
    worst = 0.0
    for name in TENSORS:
        x, y = (read_tensors(checkpoints(RunFolder(out))[0] / f"{name}.safetensors") for out in (a, b))
        assert x.keys() == y.keys()
        worst = max([worst, *(float((x[k].double() - y[k].double()).abs().max()) for k in x)])
    return worst
