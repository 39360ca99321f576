"""Run code in a process of its own, which tells how much memory it took and what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BEFORE = """
import json, os, sys
wrote, said = set(), []
def watch(event, args):
    if event == "open":
        path, mode, flags = args
        if isinstance(path, (str, bytes)) and (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            wrote.add(os.fsdecode(path))
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime"):
        wrote.add(os.fsdecode(args[0]))
    elif event in ("os.rename", "os.link", "os.symlink"):
        wrote.add(os.fsdecode(args[1]))
def peak(anew=False):
    if anew and sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
import numpy, PIL.Image
from sfumato.data import DataError, DataOptions, open_data
def tried(path, **options):
    try:
        data = open_data(path, DataOptions(size=16, **options))
        return {"names": list(data.names), "skipped": [list(entry) for entry in data.skipped]}
    except DataError as error:
        return {"error": str(error)}
for name in ("pyarrow.parquet", "pyarrow.compute"):
    try: __import__(name)
    except ImportError: pass
def become(user):  # modules are imported by now: an ordinary user may not be allowed to read them
    os.seteuid(user)
base = peak()
sys.addaudithook(watch)
"""
AFTER = "\nprint(json.dumps({'said': said, 'megabytes': peak() - base, 'wrote': sorted(wrote)}))"


class Ended(NamedTuple):
    """What `said` held in the end, peak memory above that of the imports, and the paths that were opened to write."""

    said: Any
    megabytes: float
    wrote: list[str]
    err: str


def apart(code: str, *words: str | os.PathLike[str], timeout: float = 120) -> Ended:
    """Runs `code` (sys.argv[1:] are `words`), which fills `said`."""
    run = subprocess.run(
        [sys.executable, "-c", BEFORE + code + AFTER, *map(os.fspath, words)],
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode("utf-8", "replace")
    found = json.loads(run.stdout)
    return Ended(found["said"], found["megabytes"], found["wrote"], run.stderr.decode("utf-8", "replace"))
