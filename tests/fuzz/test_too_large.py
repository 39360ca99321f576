"""What is too large is refused before anything is allocated, in a sentence that says how large it would be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import sfumato
from sfumato.engine.run import as_yaml
from sfumato.registry import outline, paper
from tests.fuzz.bounds import Bounds
from tests.fuzz.conftest import SMALL
from tests.fuzz.hostile import insides, sign

LITTLE = 150_000_000  # bytes that a refusal may take: what torch imports to know shapes without memory


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--config.network.widths", 10**12], "more than 1,152,921,504,606,846,976 parameters"),
        (["--config.network.widths", 8, 10**12], "parameters"),
        (["--config.network.widths", 100_000], "1,520,016,800,004 parameters: to train them takes at least 30.4 TB"),
        (["--config.network.time-width", 10**12], "parameters"),
        (["--config.network.embed", 10**12, "--config.network.fourier", 1], "parameters"),
        (["--config.network.widths", 10**30], "widths is 1000000000000000000000000000000"),
        (["--config.network.blocks", 10**9], "blocks is 1000000000"),
        (["--config.network.widths", *[8] * 17], "16 levels"),
        (["--config.network.groups", 10**12], "groups is 1000000000000"),
        (["--config.T", 10**9, "--config.schedule", "linear"], "T and steps"),
        (["--batch", 10**9], "from 1 on"),
        (["--threads", 10**6], "at most 1024"),
        (["--workers", 10**6], "at most 1024"),
    ],
)
def test_training(options: list[object], told: str, tmp_path: Path, bounds: Bounds) -> None:
    pytest.importorskip("sklearn.datasets")
    words = ["train", "ddpm", "digits", "--preset", "tiny", "--steps", 1, *SMALL, *options, "--out", tmp_path / "run"]
    code, _, err = bounds.command(*words)
    assert code == 2 and told in err and not (tmp_path / "run").exists()
    assert bounds.growth[0] < LITTLE


@pytest.mark.parametrize("widths", [[10**12], [100_000], [3_000, 3_000]])
def test_a_run_that_claims_to_be_large(widths: list[int], spoiled: Callable[[], Path], bounds: Bounds) -> None:
    """Even where the model would fit into memory, its outline is compared with the file first."""
    run = spoiled()
    for folder in (run, *insides(run)):
        facts = yaml.safe_load((folder / "config.yaml").read_text())
        facts["config"]["network"]["widths"] = widths
        (folder / "config.yaml").write_text(as_yaml(facts))
        if folder != run:
            sign(folder)
    assert bounds.call("load", lambda: sfumato.load(run)) is None
    assert bounds.command("sample", run, "--n", 1, "--out", run.parent / "out")[0] == 2
    assert bounds.command("train", "--resume", run, "--steps", 3)[0] == 2
    tuned = ("train", "ddpm", "digits", "--from", run, "--steps", 1, *SMALL, "--out", run.parent / "tuned")
    assert bounds.command(*tuned)[0] == 2 and not (run.parent / "tuned").exists()
    assert bounds.growth[0] < LITTLE, bounds.growth


ALONE = """
import sys
import sfumato
from sfumato.errors import UserError
try:
    sfumato.load(sys.argv[1])
except UserError as error:
    print(error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_process_that_refuses(spoiled: Callable[[], Path]) -> None:
    """The whole process stays under 1 GB, torch and all."""
    run = spoiled()
    facts = yaml.safe_load((run / "final" / "config.yaml").read_text())
    facts["config"]["network"]["widths"] = [8_000, 8_000]
    (run / "final" / "config.yaml").write_text(as_yaml(facts))
    sign(run / "final")
    done = subprocess.run([sys.executable, "-c", ALONE, run], capture_output=True, text=True, check=True)
    said, peak = done.stdout.strip().splitlines()
    assert "does not fit this model" in said and 1024 * int(peak) < 1_000_000_000


def test_an_outline_is_the_model_without_its_memory() -> None:
    """Names, shapes and types as in the model itself; parameters are on no device."""
    preset = paper("ddpm").presets["tiny"].config
    whole, real = outline(lambda: sfumato.build("ddpm", preset)), sfumato.build("ddpm", preset)
    assert whole is not None and all(p.is_meta for p in whole.parameters())
    told = {name: (t.shape, t.dtype) for name, t in whole.state_dict().items()}
    assert told == {name: (t.shape, t.dtype) for name, t in real.state_dict().items()}


def test_a_metrics_file_of_anything(spoiled: Callable[[], Path], bounds: Bounds) -> None:
    """`inspect` and `--resume` read it line by line."""
    lines = [
        "[" * 5000,
        '{"step": 1}',
        "7",
        "null",
        '{"step": 1, "loss": 1e999}',
        '{"step": 9, "loss": NaN, "rate": true}',
    ]
    lines += [
        '{"step": 2, "loss": ' + "9" * 400 + "}",
        '{"step": ' + "9" * 300 + ', "loss": 1}',
        json.dumps({"a": "\x1b[2J"}),
    ]
    for line in lines:
        run = spoiled()
        (run / "metrics.jsonl").write_text(f"{line}\n" * 3)
        bounds.command("inspect", run)
        assert bounds.command("train", "--resume", run, "--steps", 3, "--sample-every", 0, "--quiet")[0] == 0
