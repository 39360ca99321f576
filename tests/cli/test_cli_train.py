"""`sfumato train`: what it picks and says, and that a run can be lengthened, fine-tuned and interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import sfumato
from sfumato.cli.choose import LARGEST, pick_preset, pick_size
from sfumato.cli.flags import pixels
from sfumato.cli.resume import resumed
from sfumato.cli.show import duration
from sfumato.data import DataOptions
from sfumato.engine import Options, RunFolder
from sfumato.engine.distributed import join
from sfumato.engine.state import averaged, checkpoints


def test_the_plan_tells_the_truth(command, photos, tmp_path, small):
    said = command(
        "train",
        "ddpm",
        photos,
        "--labels",
        "folder",
        "--out",
        tmp_path / "run",
        "--steps",
        "3",
        "--holdout",
        "0.1",
        *small,
    )
    assert said.code == 0
    plan = dict(reversed(re.findall(r"^(\w+) +(.*)$", said.out, re.MULTILINE)))
    recipe = sfumato.load(tmp_path / "run")
    held = int(re.search(r"(\d+) held out", plan["data"])[1])
    assert f"{120 - held} pictures of 16 x 16, gray, 3 classes" in plan["data"]
    assert f"{sum(p.numel() for p in recipe.parameters()):,} parameters" in plan["model"]
    assert plan["training"].startswith(f"3 steps of 16 pictures ({48 / (120 - held):.3g} passes")
    assert plan["machine"] == "cpu, fp32, 1 thread"
    used = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*.safetensors"))
    promised = float(re.search(r"up to ([\d.]+) MB", plan["disk"])[1]) * 1e6
    assert used <= promised <= 4 * used
    assert f"sfumato sample {tmp_path / 'run'}" in said.out
    assert plan["time"] == duration(0) or re.match(r"about \d", plan["time"])


@pytest.mark.parametrize("words", [["--out", "ddim", "ddpm", "PHOTOS"], ["ddpm", "PHOTOS", "--out", "ddim"]])
def test_the_paper_is_the_positional(words, command, photos, tmp_path, monkeypatch, small):
    """`ddim` is a paper too, and here the name of a folder."""
    monkeypatch.chdir(tmp_path)
    named = [str(photos) if word == "PHOTOS" else word for word in words]
    assert command("train", *named, "--steps", "1", "--quiet", *small).code == 0
    assert yaml.safe_load((tmp_path / "ddim" / "config.yaml").read_text())["paper"] == "ddpm"


def test_a_short_run_warms_up_for_a_tenth_unless_told(command, photos, tmp_path, small):
    preset = sfumato.paper("ddpm").presets["tiny"].training.warmup
    for name, words in {"short": [], "told": ["--training.warmup", preset], "other": ["--training.warmup", 1]}.items():
        out = tmp_path / name
        assert (
            command("train", "ddpm", photos, "--out", out, "--preset", "tiny", "--steps", 2, *small, *words).code == 0
        )
    warmups = [RunFolder(tmp_path / name).config()["training"]["warmup"] for name in ("short", "told", "other")]
    assert warmups == [0, preset, 1]


def test_overrides_reach_the_run(command, photos, tmp_path, small):
    out = tmp_path / "run"
    words = [
        "--config.predict",
        "eps",
        "--config.clip",
        "False",
        "--config.schedule",
        "cosine",
        "--training.clip",
        "0.5",
        "--lr",
        "1e-3",
    ]
    assert (
        command(
            "train", "ddpm", photos, "--out", out, "--steps", "2", "--seed", "7", "--flip", "off", *small, *words
        ).code
        == 0
    )
    told = yaml.safe_load((out / "config.yaml").read_text())
    assert (told["config"]["predict"], told["config"]["clip"], told["config"]["schedule"]) == ("eps", False, "cosine")
    assert (told["config"]["network"]["widths"], told["config"]["shape"], told["config"]["classes"]) == (
        [16, 16],
        [1, 16, 16],
        [],
    )
    assert (told["training"]["clip"], told["training"]["lr"], told["training"]["steps"]) == (0.5, 1e-3, 2)
    assert yaml.safe_load((out / "run.yaml").read_text())["seed"] == 7


def test_the_default_folder_is_never_one_that_is_taken(command, photos, tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    for name in ("ddpm-canary-photos", "ddpm-canary-photos-2"):
        assert command("train", "ddpm", photos, "--steps", "1", "--quiet", *small) == (0, "", "")
        assert (tmp_path / "runs" / name / "final").is_dir()


def test_quiet_runs_say_nothing_and_equal_runs_are_equal(command, photos, tmp_path, small):
    for name in "ab":
        assert command("train", "ddpm", photos, "--out", tmp_path / name, "--steps", "3", "--quiet", *small).out == ""
    (_, a), (_, b) = averaged(tmp_path / "a"), averaged(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_resuming_and_lengthening(command, photos, tmp_path, small):
    """A short run, then lengthened: the schedule is constant, so the weights are those of one long run."""
    words = ["--training.decay", "constant", "--training.warmup", "1", *small]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command("train", "ddpm", photos, "--out", whole, "--steps", "8", *words).code == 0
    assert command("train", "ddpm", photos, "--out", parts, "--steps", "5", "--save-every", "2", *words).code == 0
    said = command("train", "--resume", parts, "--steps", "8")
    assert said.code == 0 and "from step 5 of 8" in said.out
    (_, a), (_, b) = averaged(whole), averaged(parts)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [folder.name for folder in checkpoints(RunFolder(parts))] == [
        "step_00000008",
        "step_00000006",
        "step_00000005",
    ]


def going_on(run: Path, *words: str) -> Options:
    """The options of `train --resume run words`."""
    with join("cpu") as world:
        return resumed(["--resume", str(run), *words], world).options


def test_a_resumed_run_keeps_its_options_and_takes_any_value(command, photos, tmp_path, small):
    """Also the value that a new run would have by itself."""
    out, default = tmp_path / "run", Options()
    words = ["--save-every", 7, "--keep", 2, "--device", "cpu", "--quiet", "--steps", 1]
    assert command("train", "ddpm", photos, "--out", out, *small, *words).code == 0
    kept = going_on(out)
    assert (kept.save_every, kept.keep, kept.sample_every, kept.quiet) == (7, 2, 0, True)
    assert (kept.device, kept.precision, kept.training.batch, kept.auto_batch) == ("cpu", "fp32", 16, False)
    assert f"--resume {out}." in command("train", "--resume", out / "final").err
    back = going_on(
        out,
        *("--save-every", str(default.save_every), "--keep", str(default.keep)),
        *("--sample-every", str(default.sample_every), "--no-quiet", "--batch", "auto"),
        *("--device", default.device, "--precision", default.precision),
    )
    assert (back.save_every, back.keep, back.sample_every, back.quiet, back.device, back.precision) == (
        (default.save_every, default.keep, default.sample_every, default.quiet, default.device, default.precision)
    )
    assert (back.training.batch, back.auto_batch) == (16, True)


def test_fine_tuning_starts_from_the_weights_of_the_run(command, run, photos, tmp_path):
    """With a vanishing learning rate the model is the one it started from."""
    out = tmp_path / "tuned"
    words = [
        "--labels",
        "folder",
        "--from",
        run,
        "--steps",
        "1",
        "--lr",
        "1e-12",
        "--sample-every",
        "0",
        "--batch",
        "8",
    ]
    said = command("train", "ddpm", photos, "--out", out, *words)
    assert said.code == 0 and f"from the weights of {run}" in said.out
    (config, before), (_, after) = averaged(run), averaged(out)
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert yaml.safe_load((out / "config.yaml").read_text())["config"] == config["config"]


def test_fine_tuning_keeps_the_preset_of_the_run(command, mistake, run, photos, tmp_path):
    """Its model cannot be another preset's, so its name and training are not either."""
    words = ["train", "ddpm", photos, "--labels", "folder", "--from", run, "--steps", 1, "--sample-every", 0]
    assert "--preset small does not go with --from" in mistake(*words, "--preset", "small", "--out", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    for name, preset in {"same": ["--preset", "tiny"], "none": []}.items():
        said = command(*words, *preset, "--out", tmp_path / name)
        assert said.code == 0 and "ddpm, preset tiny" in said.out
        assert RunFolder(tmp_path / name).config()["preset"] == "tiny"


def test_fine_tuning_twice_does_not_shift_the_schedule_twice(command, photos, tmp_path, small):
    """The shift follows the side of the picture where it is used; configs hold the preset's."""
    words, out = ["train", "ddpm", photos, "--steps", 1, "--quiet", "--batch", 4], tmp_path / "0"
    assert command(*words, "--preset", "tiny", "--size", 64, "--out", out, *small[:3], *small[-4:]).code == 0
    for name in "12":
        assert command(*words, "--from", out, "--out", out := tmp_path / name, "--precision", "fp32").code == 0
    configs = [RunFolder(tmp_path / name).config()["config"] for name in "012"]
    assert configs[0]["shape"] == [1, 64, 64]
    assert {config["shift"] for config in configs} == {sfumato.paper("ddpm").presets["tiny"].config.shift}


def test_fine_tuning_needs_the_same_classes(run, photos, mistake, tmp_path):
    assert "classes" in mistake(
        "train", "ddpm", photos, "--from", run, "--out", tmp_path / "x", "--steps", "1", "--quiet"
    )


def test_size_is_picked_for_the_machine(tmp_path, photos):
    image = pytest.importorskip("PIL.Image")
    for i in range(3):
        image.new("RGB", (400, 300), (i, 0, 0)).save(tmp_path / f"{i}.png")
    cpu = torch.device("cpu")
    assert pick_size(str(tmp_path), DataOptions(), cpu).size == LARGEST["cpu"]
    assert pick_size(str(tmp_path), DataOptions(size=200), cpu).size == 200
    assert pick_size(str(photos), DataOptions(), cpu).size is None  # small already
    assert pick_size("digits", DataOptions(), cpu).size is None


def test_preset_is_picked_for_the_machine():
    ddpm = sfumato.paper("ddpm")
    assert (pick_preset(ddpm, torch.device("cpu")), pick_preset(ddpm, torch.device("cuda"))) == ("tiny", "small")
    assert pick_preset(ddpm._replace(presets={"only": ddpm.presets["tiny"]}), torch.device("cpu")) == "only"


def test_sizes():
    assert (pixels(""), pixels("64"), pixels("96x64"), pixels("96X64")) == (None, 64, (96, 64), (96, 64))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_saves_and_resume_goes_on(photos, tmp_path, command, small):
    env = {**os.environ, "PYTHONPATH": str(Path(sfumato.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "sfumato",
        "train",
        "ddpm",
        str(photos),
        "--out",
        str(out),
        "--steps",
        "100000",
        "--log-every",
        "1",
        *small,
    ]
    with subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        patience = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() and time.monotonic() < patience:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert f"sfumato train --resume {out}" in err
    done = int(checkpoints(RunFolder(out))[0].name[5:])
    said = command("train", "--resume", out, "--steps", done + 1)
    assert said.code == 0 and f"from step {done}" in said.out
    assert (out / "final" / "model.safetensors").exists()


def test_two_processes_share_a_run(photos, tmp_path):
    """Under torchrun: one plan, one run, the same decisions on every rank."""
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(sfumato.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port",
        "0",
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        "localhost:0",
        "-m",
        "sfumato",
        "train",
        "ddpm",
        str(photos),
        "--steps",
        "2",
        "--config.network.widths",
        "16",
        "16",
        "--sample-every",
        "0",
        "--batch",
        "16",
    ]
    said = subprocess.run(launch, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=120, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("\nmodel     ddpm") == 1
    assert "2 processes" in said.stdout
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["ddpm-canary-photos"]
