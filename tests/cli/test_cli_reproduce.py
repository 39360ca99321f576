"""`sfumato reproduce`: a whole run with its figures, interrupted and taken up again, and what it refuses."""

import signal
from dataclasses import replace

import pytest

from sfumato import recipe, registry
from sfumato.cli import reproduce
from sfumato.cli.runs import model_hash
from sfumato.metrics.receipt import Receipt

LITTLE = ("--preset", "tiny", "--steps", 6, "--n", 16, "--labels", "none", "--sampler", "auto", "--sampling-steps", 2,
          "--metrics", "fid", "kid", "--threads", 1, "--precision", "fp32")  # fmt: skip


@pytest.fixture
def begun(place, photos, command, tmp_path):
    """A command that is always the same, in a folder of its own."""
    out = tmp_path / "run"

    def call(*more):
        return command("reproduce", "ddpm", "--data", photos, "--out", out, *LITTLE, *more)

    return out, call


def receipts(out):
    return sorted((out / "evaluation").glob("*.json"))


def trained(out):
    return (out / "metrics.jsonl").read_bytes()


def test_it_trains_samples_measures_and_keeps_a_receipt(begun):
    out, call = begun
    said = call()
    assert said.code == 0, said.err
    for words in ("Frechet distance", "KID", "lite0@64", "No figure is published", "6 steps of training", "16 by auto"):
        assert words in said.out, words
    (path,) = receipts(out)
    receipt = Receipt.read(path)
    assert {figure.metric for figure in receipt.figures} == {"fid", "fid.infinity", "kid"}
    assert all(figure.n == 16 and figure.m == 120 for figure in receipt.figures)  # all pictures, the held-out ones too
    assert receipt.samples["digest"] == model_hash(out) and receipt.samples["seed"] == 0
    assert receipt.cost["training"]["steps"] == 6 and receipt.cost["training"]["seconds"] > 0
    assert "canary-ward" not in path.read_text()  # the name of the data, and no path to it
    before, stamp = trained(out), path.stat().st_mtime_ns
    again = call()
    assert again.code == 0 and "trained already" in again.out
    assert trained(out) == before and [p.stat().st_mtime_ns for p in receipts(out)] == [stamp]
    assert again.out[again.out.index("FIGURE") :] == said.out[said.out.index("FIGURE") :]
    assert call("--seed", 0, "--n", 17).code == 0 and trained(out) == before and len(receipts(out)) == 2


def test_interrupted_training_goes_on_to_the_same_model(begun, command, photos, tmp_path, monkeypatch):
    out, call = begun
    real = reproduce.steps

    def interrupted(*given, **named):
        for step in real(*given, **named):
            if step.step == 3 and not step.stopped:
                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(reproduce, "steps", interrupted)
    said = call()
    assert said.code == 130 and "the same command goes on" in said.err and not (out / "final").exists()
    monkeypatch.setattr(reproduce, "steps", real)
    said = call()
    assert said.code == 0 and "of 6" in said.out and len(receipts(out)) == 1
    whole = tmp_path / "whole"
    assert command("reproduce", "ddpm", "--data", photos, "--out", whole, *LITTLE).code == 0
    assert model_hash(whole) == model_hash(out)
    values = [[figure.value for figure in Receipt.read(*receipts(run)).figures] for run in (whole, out)]
    assert values[0] == values[1]


def test_interrupted_sampling_goes_on(begun, monkeypatch):
    out, call = begun
    real = reproduce.evaluate_run

    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "evaluate_run", interrupted)
    said = call()
    assert said.code == 130 and "interrupted" in said.err and not receipts(out)
    before = trained(out)
    monkeypatch.setattr(reproduce, "evaluate_run", real)
    assert call().code == 0 and trained(out) == before and len(receipts(out)) == 1


def test_published_figures_stand_beside_ours_with_what_sets_them_apart(begun, monkeypatch):
    out, call = begun
    presets = registry.paper("ddpm").presets
    published = recipe.reported({"fid": 3.17, "bits": 3.75}, "CIFAR-10", None, "the test")
    monkeypatch.setitem(presets, "tiny", replace(presets["tiny"], published=published))
    said = call("--size", 16)
    assert said.code == 0, said.err
    row = next(line for line in said.out.splitlines() if line.startswith("FID; ours: Frechet distance ")).split()
    assert row[4] == "3.17" and row[-1] == "lite0@64"  # ours is never called FID
    text = " ".join(said.out.split())
    assert "Ours do not compare with the published" in text
    for why in (
        "pictures of 16 x 16, colour for 32 x 32",
        "other features than Inception's",
        "n = 16",
        "other data than CIFAR-10",
        "6 training steps for 2,000",
    ):
        assert why in text, why
    assert "sfumato likelihood" in text and "published: the test" in text
    words = reproduce._words(  # without --size a paper's model has the paper's size and channels, whatever the data's
        reproduce.Target(registry.paper("ddpm"), "tiny", presets["tiny"], "photos", out), reproduce.Reproduce()
    )
    assert words[words.index("--size") + 1] == "32x32" and words[words.index("--channels") + 1] == "3"


@pytest.mark.slow
def test_more_steps_lengthen_a_run(begun):
    out, call = begun
    assert call().code == 0
    said = call("--steps", 8)
    assert said.code == 0 and "8 steps of training" in said.out and len(receipts(out)) == 2


def test_it_asks_for_what_it_cannot_get(mistake):
    assert "which paper" in mistake("reproduce")
    told = mistake("reproduce", "ddpm")
    assert "cifar10 was trained on CIFAR-10" in told and "--data" in told and "--preset tiny --data digits" in told
    assert "pictures of yours" in mistake("reproduce", "ddpm", "--preset", "fashion")
    assert "did you mean 'cifar10'" in mistake("reproduce", "ddpm", "--preset", "cifar")
    assert "did you mean 'ddpm'" in mistake("reproduce", "dppm")


def test_it_refuses_what_cannot_be(begun, mistake, photos, tmp_path, plain):
    out, _ = begun
    words = ("reproduce", "ddpm", "--data", photos, "--out", out, *LITTLE)
    assert "--n is 1" in mistake(*words, "--n", 1)
    assert "no metric 'fidd'" in mistake(*words, "--metrics", "fidd")
    assert "ssim compares pictures of equal names" in mistake(*words, "--metrics", "ssim")
    assert "fid needs at least 4" in mistake(*words, "--n", 3)
    assert "none of lite0" in mistake(*words, "--features", "lite9")
    assert "nothing is downloaded" in mistake(*words, "--features", "inception:none.pt")
    assert not out.exists()
    assert "nowhere" in mistake("reproduce", "ddpm", "--preset", "tiny", "--data", tmp_path / "nowhere", "--out", out)
    assert not (out / "checkpoints").exists()
    told = mistake(*words[:5], plain, *LITTLE)
    assert "other values than preset tiny" in told and "--out" in told
    told = mistake("reproduce", "ddpm", "--data", "digits", "--out", plain, *LITTLE)
    assert "trained on" in told and "--out" in told
    assert "seed 0" in mistake(*words[:5], plain, *LITTLE, "--seed", 1)


def test_days_are_not_spent_without_a_word(begun, mistake, photos):
    out, _ = begun
    words = ("reproduce", "ddpm", "--data", photos, "--out", out, *LITTLE)
    told = mistake(*words, "--steps", 900_000_000)
    assert "days on this machine" in told and "--yes" in told and "fewer --steps" in told
    assert not list((out / "checkpoints").glob("step_*")) if (out / "checkpoints").exists() else True
