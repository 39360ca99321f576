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
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from sfumato.engine import files
from sfumato.errors import UserError

with contextlib.suppress(ImportError):  # no advisory locks on this system
    import fcntl

__all__ = ["THREADS", "RunFolder", "as_yaml", "read_config", "read_small", "read_yaml", "sensible", "write_text"]


YAML = 4 << 20  # bytes: a hundred thousand classes
THREADS = 1024  # of a CPU, at most
KINDS: dict[str, type] = {
    **dict.fromkeys(("paper", "preset", "stage", "version"), str),
    **dict.fromkeys(("config", "training", "data"), dict),
    "classes": list,
    "format": int,
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C parser is ten times faster
    """Refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if twice := next((key for key, n in Counter(keys).items() if n > 1), None):
            raise ValueError(f"'{twice}' is there twice")
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def read_small(path: Path, most: int) -> bytes:
    """The bytes of a file that should have few. Raises OSError with a reason, FileNotFoundError where there is none."""
    if path.exists() and not path.is_file():  # a pipe would never end
        raise OSError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it is larger than {most:,} bytes")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that must hold a mapping of plain values, as this program writes it. Raises UserError."""
    try:
        text = read_small(path, YAML).decode()
        _refuse_bombs(text)
        content = yaml.load(text, _Loader)  # it is a SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {(str(error).splitlines() or ['?'])[0]}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold 'name: value' lines.")
    if not _plain(content):
        raise UserError(f"{path} is damaged: it holds more than names, texts, lists and numbers of 64 bits.")
    return content


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader would take for the end of a line, and never makes an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)


def as_yaml(content: Mapping[str, Any]) -> str:
    """Plain values as `read_yaml` reads them back."""
    text: str = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def read_config(folder: Path) -> dict[str, Any]:
    """config.yaml of a run, a checkpoint or a final/. Raises UserError, also for an entry of the wrong kind."""
    facts = read_yaml(folder / "config.yaml")
    for name, kind in KINDS.items():
        if not isinstance(facts.get(name, kind()), kind):
            raise UserError(f"{folder / 'config.yaml'} is damaged: its {name} is not what a run writes.")
    return facts


def _refuse_bombs(text: str, *, deepest: int = 32, most: int = 300_000, longest: int = 1 << 16) -> None:
    """Raises ValueError for what takes time or memory out of proportion to its size; nothing is built to find out."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, _Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise ValueError("it has an alias or a tag")
        if depth > deepest or count > most or len(getattr(event, "value", "")) > longest:
            raise ValueError("it is nested too deeply, or has too many or too long entries")


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**63)


def sensible(decided: Any, where: Path) -> dict[str, Any]:
    """What a run chose for this machine, as it was read. Raises UserError for what no run chooses."""
    found: dict[str, Any] = decided if isinstance(decided, dict) else {"decided": decided}
    threads, parts = found.get("threads"), found.get("accumulate")
    fine = isinstance(decided, dict) and found.get("precision") in (None, "fp32", "bf16")
    if not (fine and _count(threads, THREADS) and _count(parts, 2**31)):
        raise UserError(f"{where} is damaged: no run decides on precision, threads or accumulate like this.")
    return found


def _count(value: Any, most: int) -> bool:
    return value is None or (type(value) is int and 1 <= value <= most)


def write_text(path: Path, text: str) -> None:
    """Replace a small file by a whole new one. Raises UserError."""
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}. The checkpoints are intact: make room or mend {path.parent}, "
            "then resume."
        ) from error


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
        return (self.path / "config.yaml").exists() or any(self.checkpoints.glob("step_*"))

    def config(self) -> dict[str, Any]:
        return read_config(self.path)

    def private(self) -> dict[str, Any]:
        """What `train --resume` needs to go on without being told again: data source, options, command."""
        return read_yaml(self.path / "run.yaml")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Only this process writes here. The lock dies with its process, so none is ever stale."""
        try:
            for folder in (self.path, self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
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
        if not (self.path / "run.yaml").exists():
            return {}
        return sensible(self.private().get("decided") or {}, self.path / "run.yaml")

    def describe(self, config: Mapping[str, Any], private: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
        """Write run.yaml, then config.yaml: a run that has begun has both. What run.yaml says already stays unless said
        anew."""
        if not private and (self.path / "run.yaml").exists():
            private = self.private()
        facts: dict[str, Any] = {"decided": dict(decided)}
        facts["machine"] = {"host": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count()}
        for name, content in (("run.yaml", {**private, **facts}), ("config.yaml", dict(config))):
            write_text(self.path / name, as_yaml(content))

    def cut_metrics(self, step: int, *, held: bool = True) -> None:
        """Forget the lines after `step`, without `held` also the held-out loss of `step`, and a line not finished."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text("utf-8", errors="replace").splitlines(keepends=True):
            try:
                found = json.loads(line)
                late = found["step"] > step or (not held and found["step"] == step and "lr" not in found)
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            if late or not line.endswith("\n"):
                break
            kept.append(line)
        write_text(self.metrics, "".join(kept))

    def newest_line(self) -> dict[str, Any]:
        """The last line of numbers in metrics.jsonl; {} if there is none."""
        lines = self.metrics.read_text("utf-8").splitlines() if self.metrics.exists() else []
        return next((found for line in reversed(lines) if "lr" in (found := json.loads(line))), {})
