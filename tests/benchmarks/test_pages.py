"""The generated pages are what the data and the receipts give; every figure of the field has a source."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from sfumato import registry
from sfumato.metrics.receipt import Figure, Receipt

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def script(monkeypatch):
    """Import a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def get(name):
        sys.modules.pop(name, None)
        return __import__(name)

    return get


def test_the_page_of_the_field_is_made_of_the_data(script):
    field = script("field_page")
    data = field.read(ROOT / "benchmarks" / "field.yaml")  # which refuses rows without a source, a check or a figure
    assert field.page(data) == (ROOT / "docs" / "field.md").read_text(encoding="utf-8")
    assert set(data["sources"]) == {row["source"] for row in data["rows"]}
    assert all(one["url"].startswith("https://") and one["by"] and one["title"] for one in data["sources"].values())


@pytest.mark.parametrize(
    "spoilt",
    [{"source": "hearsay"}, {"checked": "by heart"}, {"figures": {}}, {"figures": {"beauty": 1.0}}],
    ids=["source", "check", "no figure", "no metric"],
)
def test_a_row_without_a_source_is_refused(script, tmp_path, spoilt):
    field = script("field_page")
    data = field.read(ROOT / "benchmarks" / "field.yaml")
    data = {**data, "rows": [data["rows"][0], {**data["rows"][3], **spoilt}]}
    (tmp_path / "field.yaml").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"source|figures"):
        field.read(tmp_path / "field.yaml")


def test_figures_of_different_models_never_share_a_row(script):
    """Improved DDPM's FID of 2.90 is of another model than its 2.94 bits, as Score SDE's 2.41 and 2.99 are of two
    checkpoints."""
    rows = script("field_page").read(ROOT / "benchmarks" / "field.yaml")["rows"]
    together = [set(row["figures"].values()) for row in rows]
    assert not any({2.90, 2.94} <= values or {2.41, 2.99} <= values for values in together)
    assert any(values == {2.90, 3.37} for values in together) and any(values == {11.47, 2.94} for values in together)
    for name in registry.papers():
        for preset in registry.paper(name).presets.values():
            assert not {2.90, 2.94} <= {one.value for one in preset.published}


def test_every_published_figure_of_a_preset_stands_in_the_table_of_the_field(script):
    """What was checked is written down once, in benchmarks/field.yaml, with how."""
    rows = script("field_page").read(ROOT / "benchmarks" / "field.yaml")["rows"]
    known = {(metric.partition(" ")[0].lower(), value) for row in rows for metric, value in row["figures"].items()}
    names = {"bits": "bits/dim", "pr.precision": "precision", "pr.recall": "recall"}
    for name in registry.papers():
        for preset, setting in registry.paper(name).presets.items():
            for one in setting.published:
                figure = (names.get(one.metric, one.metric), one.value)
                assert figure in known, f"{name}, {preset}: check {figure}, and add its row to benchmarks/field.yaml"


def test_the_page_of_receipts_is_made_of_the_receipts(script):
    receipts = script("receipts_page")
    written = (ROOT / "docs" / "receipts.md").read_text(encoding="utf-8")
    assert receipts.page(receipts.kept(ROOT / "benchmarks")) == written


def test_the_tables_of_guidance_are_those_of_the_results(script):
    page = script("guidance_page")
    written = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(written) == written
    assert all(f"<!-- {name} -->" in written for name in ("scales", "discriminator", "backbones", "speed"))


def receipt(value, *, features="lite0@64 (232 features, clean, 579344244)", n=2000, data="train.npz", seed=0):
    distance = Figure("fid", value, n, 60_000, features, floor=0.5)
    endless = Figure("fid.infinity", value - 0.25, n, 60_000, features, low=value - 1, high=value + 0.5)
    recall = Figure("pr.recall", 0.25, n, n, features, floor=0.75, lower_is_better=False)
    return Receipt(
        (distance, endless, recall),
        {"sampler": "heun", "steps": 18, "calls": 35.0, "seed": seed, "digest": "d"},
        {"name": data, "size": 60_000, "pixels": "28 x 28, gray", "fingerprint": data},
        {"sampling": 90.0, "training": {"steps": 3000, "seconds": 1200.0}},
        {"date": "2026-11-22T10:00:00Z", "commit": "abc123def"},
    )


def test_receipts_become_rows_and_seeds_a_spread(script, tmp_path):
    page = script("receipts_page")
    places = {
        "runs/fashion_edm/evaluation/lite0.json": receipt(4.0),
        "receipts/fashion_edm_s1/lite0.json": receipt(5.0),
        "receipts/fashion_edm_s2/lite0.json": receipt(6.0),
        "runs/fashion_edm/evaluation/classifier.json": receipt(40.0, features="classifier (128 features, clean, 1)"),
        "receipts/other/lite0.json": receipt(7.0, data="other.npz"),
    }
    for place, one in places.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        one.write(tmp_path / place)
    text = page.page(page.kept(tmp_path))
    row = next(line for line in text.splitlines() if line.startswith("| fashion_edm_s1"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "fashion_edm_s1", "heun, 18 steps, 35 calls", "5, floor 0.5", "4.75 (4 to 5.5)", "0.25, floor 0.75",
        "2,000", "0", "3,000 steps, 20 min", "1.5 min", "2026-11-22", "abc123def",
    ]  # fmt: skip
    assert text.count("## train.npz") == 1 and text.count("## other.npz") == 1  # one place for each data set
    assert text.count("Features: ") == 3  # never two kinds of features in a table
    spread = text[text.index("## From seed to seed") :]
    assert "| fashion_edm | 3 | heun, 18 steps, 35 calls | 5 ± 1 | 4.75 ± 1 | 0.25 ± 0 | 2,000 |" in spread
    assert "other" not in spread and "classifier" not in spread


def test_of_other_samplers_or_numbers_of_samples_there_is_no_spread(script):
    page = script("receipts_page")
    one, other = page.Kept("a", receipt(4.0)), page.Kept("a_s1", receipt(5.0, n=500))
    assert "seed to seed" not in page.page([one, other])
    walk = dataclasses.replace(receipt(5.0), samples={"sampler": "auto", "steps": 10, "seed": 0})
    assert "seed to seed" not in page.page([one, page.Kept("a_s1", walk)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_classifier_reads_alike_in_python_and_as_an_exported_file(script, tmp_path):
    import torch

    from sfumato.metrics.choose import choose

    classifier = script("classifier")
    eyes = classifier.Eyes()
    path = classifier.export(eyes.net, tmp_path / "eyes.pt")
    pictures = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    of_file = choose(str(path), lambda: eyes)
    assert torch.equal(of_file(pictures).features, eyes(pictures).features)
    assert eyes(pictures).logits.argmax(1).tolist() == classifier.read(eyes.net, pictures / 127.5 - 1).tolist()
    assert eyes.identity.startswith("fashion_classifier (128 features")
    with pytest.raises(Exception, match="28 x 28"):
        eyes(pictures[..., :20])


def test_pictures_of_a_run_are_sampled_once_whatever_interrupts(script, tmp_path):
    """The second features, and a run that goes on, find what is there; only what is missing is sampled."""
    import numpy as np
    import torch

    receipts = script("receipts")

    class Cost:
        pictures = calls = 0
        seconds = 0.0

    class Made:
        fingerprint, names = "f", ("a",) * 6
        recipe = type("R", (), {"config": type("C", (), {"shape": (1, 2, 2)})})

        def __init__(self, fail=False):
            self.cost, self.asked, self.fail = Cost(), [], fail

        def __len__(self):
            return 6

        def batch(self, positions):
            if self.fail and len(self.asked) > 1:
                raise KeyboardInterrupt
            self.asked += positions.tolist()
            self.cost.pictures, self.cost.calls, self.cost.seconds = len(positions), 5 * len(positions), 1.0
            return torch.from_numpy(positions.astype(np.uint8))[:, None, None, None].expand(-1, 1, 2, 2)

    first = receipts.Once(Made(fail=True), tmp_path)
    first.batch(np.array([0, 1]))
    with pytest.raises(KeyboardInterrupt):
        first.batch(np.array([2, 3]))
    again = receipts.Once(made := Made(), tmp_path)
    found = again.batch(np.arange(6))
    assert made.asked == [2, 3, 4, 5] and found[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert again.cost == {"pictures": 6, "seconds": 2.0, "calls": 30}
    third = receipts.Once(made := Made(), tmp_path)
    assert torch.equal(third.batch(np.arange(6)), found) and not made.asked and third.cost == again.cost
