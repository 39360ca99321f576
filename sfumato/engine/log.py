"""What a run says: on the terminal, in log.txt, in metrics.jsonl, to TensorBoard and its like."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

from sfumato.engine.run import RunFolder
from sfumato.errors import UserError

__all__ = ["Log", "duration"]


class Log:
    """`say` for people, `metrics` for machines, `progress` for the impatient. Only the first process speaks."""

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        total: int,
        batch: int,
        quiet: bool = False,
        main: bool = True,
        report_to: tuple[str, ...] = (),
    ) -> None:
        self.main, self.quiet = main, quiet
        self._folder = folder if main else None
        self._total, self._batch = total, batch
        self._bar = _Bar(total) if main and not quiet and sys.stderr.isatty() else None
        self._said = time.monotonic()
        self._trackers = [_tracker(name, folder) for name in report_to] if main else []

    def note(self, message: str) -> None:
        """For log.txt alone."""
        if self._folder:
            with contextlib.suppress(OSError), self._folder.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def say(self, message: str) -> None:
        self.note(message)
        if self.main and not self.quiet:
            self._bar.say(message) if self._bar else print(message, file=sys.stderr, flush=True)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line of strict JSON: no NaN; null where there is no number."""
        if self._folder:
            text = json.dumps(line, allow_nan=False) + "\n"
            try:
                with self._folder.metrics.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                raise UserError(
                    f"{self._folder.metrics} cannot be written: {error.strerror}. The checkpoints are "
                    "intact: make room, then resume."
                ) from error
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        for tracker in self._trackers:
            tracker.log(numbers, line["step"])

    def progress(self, step: int, loss: float | None, rate: float, figure: str = "") -> None:
        """At most once in a while: step, loss, the newest figure of the pictures, images per second, time left."""
        left = (self._total - step) * self._batch / rate if rate else 0.0
        text = (f"loss {loss:.4f}" if loss is not None else "no loss") + (f"  {figure}" if figure else "")
        if self._bar:
            self._bar.update(step, f"{text}  {rate:,.0f} img/s")
        elif not self.quiet and self.main and (time.monotonic() - self._said > 10 or step == self._total):
            self._said = time.monotonic()
            print(
                f"step {step:,}/{self._total:,}  {text}  {rate:,.0f} img/s  {duration(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def sync(self) -> None:
        """Force the metrics to the disk."""
        if self._folder and self._folder.metrics.exists():
            with self._folder.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        if self._bar:
            self._bar.close()
        for tracker in self._trackers:
            tracker.close()


class _Bar:
    """A rich progress bar: what is done, how fast, what is left."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def say(self, message: str) -> None:
        self._progress.console.print(message, markup=False, highlight=False)

    def update(self, step: int, text: str) -> None:
        self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        self._progress.stop()


def duration(seconds: float) -> str:
    """'2 h 05 min', '3 min 20 s', '8 s'."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {s:02} s" if minutes else f"{s} s"


# -- trackers: imported only when asked for ----------------------------------------------------------------------------


class _Tracker(Protocol):
    def log(self, numbers: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, module: ModuleType, folder: RunFolder | None) -> None:
        self._writer = module.SummaryWriter(str(folder.path / "tensorboard") if folder else None)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """W&B, and trackio, which speaks the same."""

    def __init__(self, module: ModuleType, folder: RunFolder | None) -> None:
        self._module = module
        module.init(project="sfumato", name=folder.path.name if folder else None)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._module.log(dict(numbers), step=step)

    def close(self) -> None:
        self._module.finish()


class _MLflow:
    def __init__(self, module: ModuleType, folder: RunFolder | None) -> None:
        self._module = module
        module.start_run(run_name=folder.path.name if folder else None)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._module.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        self._module.end_run()


_TRACKERS: dict[str, tuple[str, type[Any]]] = {
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "wandb": ("wandb", _Wandb),
    "trackio": ("trackio", _Wandb),
    "mlflow": ("mlflow", _MLflow),
}


def _tracker(name: str, folder: RunFolder | None) -> _Tracker:
    if name not in _TRACKERS:
        raise UserError(f"Cannot report to '{name}': choose among {', '.join(_TRACKERS)}.")
    module, kind = _TRACKERS[name]
    try:
        tracker: _Tracker = kind(importlib.import_module(module), folder)
    except ImportError:
        hint = 'pip install "sfumato[track]"' if name == "tensorboard" else f"pip install {name}"
        raise UserError(f"Reporting to {name} needs a package that is not installed: {hint}") from None
    return tracker
