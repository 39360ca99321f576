"""`sfumato demo`: train on the letters of 22 fonts for some minutes, then write a word in letters that no font has.

The model is DDPM's preset `letters`: it is told which letter to draw, and equal starting noise along a row makes the
row look like one typeface. A second word takes seconds, since the trained run is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.apps import poster
from sfumato.apps.report import Wanted, write_report
from sfumato.core.random import Seeds, key
from sfumato.data import DataOptions, Dataset, open_data
from sfumato.data.glyphs import LETTERS
from sfumato.engine.options import Options
from sfumato.engine.plan import choose_precision
from sfumato.engine.state import load
from sfumato.engine.train import fresh, steps
from sfumato.errors import UserError
from sfumato.papers.ddpm import DDPM, PRESETS
from sfumato.recipe import Ask
from sfumato.samplers.ancestral import DDIM

__all__ = ["Demo", "main"]

LONGEST = 12


@dataclass(frozen=True)
class Demo:
    """What to write, and where."""

    word: str = "sfumato"  # a-z, A-Z, 0-9, up to 12 letters
    out: Path = Path("demo")  # the run and the picture
    rows: int = 5  # one invented typeface each
    guidance: float = 3.0
    sampling_steps: int = 50
    steps: int = 2_100  # of training
    seed: int = 0

    def __post_init__(self) -> None:
        strange = [c for c in self.word if c not in LETTERS]
        if not self.word or strange:
            what = f"'{strange[0]}' is not one of them" if strange else "the word is empty"
            raise UserError(
                f"The demo writes the letters a-z, A-Z and the digits 0-9, and {what}: choose another --word."
            )
        if len(self.word) > LONGEST:
            raise UserError(
                f"'{self.word}' has {len(self.word)} letters; the demo has room for {LONGEST}: choose a shorter --word."
            )
        if not 1 <= self.rows <= 12 or self.steps < 1 or self.sampling_steps < 1:
            raise UserError("The demo needs --rows of 1 to 12, and at least one step of training and of sampling.")


def main(demo: Demo = Demo()) -> Path:
    """Train unless the run is there, write the word and a report of the run, and return the path of the picture."""
    run = demo.out / "run"
    if (run / "final").is_dir():
        print(f"Using the model in {run} as it is; another --out trains a new one.")
    else:
        _train(demo, run)
    recipe = load(run)
    assert isinstance(recipe, DDPM)
    started = time.perf_counter()
    noise, letters = write(recipe, demo)
    print(f"Wrote '{demo.word}' {demo.rows} times in {time.perf_counter() - started:.1f} s.")
    facts = poster.Facts(demo.word, sum(p.numel() for p in recipe.parameters()), *poster.history(run / "metrics.jsonl"))
    path = demo.out / f"{demo.word}.png"
    poster.draw(letters, noise, facts).save(path)
    print(f"The picture is {path}. Another word takes seconds: sfumato demo --word hello")
    _report(demo, run)
    return path


def _report(demo: Demo, run: Path) -> None:
    """Once for each model: letters with as much guidance, in few steps."""
    page, model = demo.out / "report.html", run / "final" / "manifest.json"
    if not page.is_file() or page.stat().st_mtime < model.stat().st_mtime:
        sampler = DDIM(min(demo.sampling_steps, 20))
        wanted = Wanted(36, demo.seed, sampler, demo.guidance, data=_letters(), features=False)
        write_report(run, page, wanted)
    print(f"How it was made, with the fonts' letters nearest to what it draws: open {page} in a browser.")


def _letters() -> Dataset:
    return open_data("glyphs", DataOptions(size=32))


def _train(demo: Demo, run: Path) -> None:
    """A run that was cut short is taken up again."""
    data = _letters()
    preset = PRESETS["letters"]
    config = replace(preset.config, shape=data.shape, classes=data.classes)
    options = Options(
        out=run,
        training=replace(preset.training, steps=demo.steps),
        seed=demo.seed,
        preset="letters",
        save_every=500,
        sample_every=0,
        evaluate_every=0,
        log_every=20,
    )
    print(f"Training a model of letters on {len(data):,} glyphs that matplotlib ships. Ctrl-C keeps what is done.")
    for step in steps(fresh("ddpm", config, demo.seed), data, options, resume=(run / "config.yaml").is_file()):
        if step.stopped:
            raise KeyboardInterrupt


def write(recipe: DDPM, demo: Demo) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The word on its way out of the noise, (moments, letters, H, W), and the finished rows, (rows, letters, H, W),
    ink in [0, 1]."""
    alphabet, n = recipe.config.classes, len(demo.word)
    ask = Ask(
        n=n * demo.rows,
        labels=tuple(alphabet.index(c) for c in demo.word) * demo.rows,
        guidance=demo.guidance,
        sampler=DDIM(demo.sampling_steps),
    )
    faces = [key(demo.seed, "face", row) % 2**31 for row in range(demo.rows) for _ in demo.word]
    moments = list(_moments(recipe, ask, Seeds.pictures(faces)))
    shown = ((1 - np.linspace(1, 0, 8) ** 1.6) * (len(moments) - 1)).round().astype(int)
    strip = np.stack([moments[i][:n] for i in shown])
    return strip, moments[-1].reshape(demo.rows, n, *moments[-1].shape[1:])


def _moments(recipe: DDPM, ask: Ask, rng: Seeds) -> Iterator[NDArray[np.float32]]:
    dtype = choose_precision("auto", torch.device("cpu"))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for state in recipe.sample(ask, rng=rng):
            yield (1.0 - recipe.picture(state)[:, 0]).numpy()
