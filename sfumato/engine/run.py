"""A run folder: what it holds, who may write to it.

run.yaml        private: where the data lies, options, machine, command, what was decided; never copied out
config.yaml     what the model is: paper, preset, config, training, classes, data in numbers
metrics.jsonl   one strict JSON object a line
log.txt         what was said
samples/        preview grids
checkpoints/    step_00001000/..., latest
final/          the averaged model, whole by itself
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from sfumato.engine import files
from sfumato.errors import UserError

with contextlib.suppress(ImportError):  # no advisory locks on this system
    import fcntl

__all__ = ["RunFolder", "read_yaml"]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that must hold a mapping. Raises UserError."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold 'name: value' lines.")
    return content


class RunFolder:
    """The paths of a run and its small files."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"
        self.samples = self.path / "samples"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.txt"

    @property
    def started(self) -> bool:
        return (self.path / "config.yaml").exists() or self.checkpoints.exists()

    def config(self) -> dict[str, Any]:
        return read_yaml(self.path / "config.yaml")

    def private(self) -> dict[str, Any]:
        """What `train --resume` needs to go on without being told again: data source, options, command."""
        return read_yaml(self.path / "run.yaml")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Only this process writes here. The lock dies with its process, so none is ever stale."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock: IO[str] = (self.path / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"Cannot write to {self.path}: {error.strerror}. Choose another --out.") from None
        with lock:
            self._take(lock)
            for folder in (self.path, self.checkpoints):
                files.sweep(folder)
            yield

    def _take(self, lock: IO[str]) -> None:
        if "fcntl" not in globals():
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise UserError(f"{self.path} is in use by {owner}: wait, stop it, or choose another --out.") from None
        except OSError:  # a file system without locks
            return
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()

    def decided(self) -> dict[str, Any]:
        """What the run chose for itself before its first step, such as precision and threads."""
        return dict(self.private().get("decided") or {}) if (self.path / "run.yaml").exists() else {}

    def describe(self, config: Mapping[str, Any], private: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
        """Write run.yaml, then config.yaml: a run that has begun has both. What run.yaml says already stays unless said
        anew."""
        if not private and (self.path / "run.yaml").exists():
            private = self.private()
        facts: dict[str, Any] = {"decided": dict(decided)}
        facts["machine"] = {"host": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count()}
        for name, content in (("run.yaml", {**private, **facts}), ("config.yaml", dict(config))):
            files.write_text(self.path / name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def cut_metrics(self, step: int) -> None:
        """Forget the lines after `step`, and a last one that was not finished."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text("utf-8", errors="replace").splitlines(keepends=True):
            try:
                late = json.loads(line)["step"] > step
            except (ValueError, KeyError, TypeError):
                break
            if late or not line.endswith("\n"):
                break
            kept.append(line)
        files.write_text(self.metrics, "".join(kept))
