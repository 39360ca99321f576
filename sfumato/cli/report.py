"""`sfumato report RUN`: everything there is to know of a run, in one HTML file that loads nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from sfumato.apps.report import Wanted, check_place, write_report
from sfumato.cli.parse import option, parse
from sfumato.cli.progress import Progress
from sfumato.cli.request import refuse_numbers
from sfumato.cli.runs import find_run, opened
from sfumato.cli.samplers import SAMPLERS, chosen, length, own_sampler
from sfumato.cli.show import duration, printable, size
from sfumato.engine.plan import choose_device, using_threads
from sfumato.errors import UserError
from sfumato.samplers.sampler import Sampler

__all__ = ["run"]

MOST = 400  # samples on a page
EXAMPLES = """\
examples
  sfumato report runs/photos                            writes runs/photos/report.html
  sfumato report runs/photos --data none                without training pictures, for others to see
  sfumato report shared/model --data photos/ --n 100    of a model that came without its data"""


@dataclass(frozen=True)
class Report:
    """One HTML file that shows a run: plan, curves, health, fresh samples, figures with receipts, and the training
    pictures nearest to the samples.

    The file loads nothing, and names no paths, hosts or users. It does hold pictures: --data none leaves those of the
    training data out.
    """

    run: Annotated[str, Positional, option("a run's folder, or the final/ of one", "RUN", "")] = ""
    out: Annotated[Path | None, option("the file", "FILE.html", "RUN/report.html")] = None
    data: Annotated[
        str, option("training pictures, to look for copies among them; none: leave them out", "DATA|none", "the run's")
    ] = ""
    n: Annotated[int, option("samples; 0: none", "N")] = 64
    seed: Annotated[int, option("of the first sample", "N")] = 0
    sampler: Annotated[
        str | None, option("how to walk", "|".join(SAMPLERS), "the run's own; a shorter one above 100 network calls")
    ] = None
    steps: Annotated[int | None, option("of the sampler", "N", "the sampler's")] = None
    guidance: Annotated[float, option("how strongly the class is meant; 1 is off", "SCALE")] = 1.0
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "all")] = None


def run(args: list[str]) -> int:
    flags = parse(Report, "report", args, examples=EXAMPLES)
    if not flags.run:
        raise UserError("report needs the folder of a run, as in `sfumato report runs/NAME`.")
    refuse_numbers({**vars(flags), "n": flags.n or None})
    if flags.n > MOST:
        raise UserError(f"--n is {flags.n}: a report shows at most {MOST} samples; `sfumato sample` makes more.")
    home = find_run(flags.run, "report")
    out = flags.out or home / "report.html"
    check_place(out)
    start = time.monotonic()
    with using_threads(flags.threads), Stages() as stages:
        wanted = Wanted(flags.n, flags.seed, _sampler(flags, home), flags.guidance, flags.data, device=flags.device)
        write_report(home, out, wanted, show=stages)
    print(
        printable(f"{out}: {size(out.stat().st_size)}, in {duration(time.monotonic() - start)}. Open it in a browser.")
    )
    return 0


def _sampler(flags: Report, home: Path) -> Sampler | None:
    """What was asked for. Raises UserError for what the run cannot walk."""
    if flags.sampler is None and flags.steps is None and flags.guidance == 1.0:
        return None
    recipe = opened(home, choose_device("cpu"))
    if flags.guidance != 1.0 and not recipe.config.classes:
        raise UserError("this run knows no classes, so --guidance means nothing to it: leave it out.")
    own = own_sampler(recipe)
    if own is None or (flags.sampler is None and flags.steps is None):
        return None
    found = chosen(own, flags.sampler, steps=flags.steps)
    length(found, recipe)
    return found


class Stages:
    """A progress bar for each part of the work."""

    def __init__(self) -> None:
        self.bar: Progress | None = None

    def __enter__(self) -> Stages:
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.bar is None or self.bar.what != what:
            self.__exit__()
            self.bar = Progress(what)
        self.bar(done, total)

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
