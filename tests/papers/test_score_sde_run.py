"""Score SDE's likelihood, and the commands that look at a run of ve, whose data lie between 0 and 1."""

import csv
import json
import math

import numpy as np
import pytest
import torch

import sfumato
from sfumato.cli.main import main
from sfumato.core import losses
from sfumato.core.likelihood import density, dequantised, offset, rademacher
from sfumato.core.oracle import Gaussian
from sfumato.core.random import Seeds, key
from sfumato.core.schedules import VE, VP


def test_bits_do_not_depend_on_the_range_of_the_data():
    """The same pictures, in [-1, 1] with 7 bits added and in [0, 1] with 8; but for the mean 1/2 of the latter, which
    the prior N(0, 50^2) has not."""
    z = Seeds(1).normal((8, 1, 2, 2), dtype=torch.float64)
    vp = density(Gaussian(VP(), 0.0, 0.5), 0.5 * z, eps=1e-5).bits() + offset()
    ve = density(Gaussian(VE(), 0.5, 0.25), 0.5 + 0.25 * z, eps=1e-5).bits() + offset(low=0.0, high=1.0)
    exact = 8 + (0.5 * z.square().flatten(1).mean(1) + math.log(0.25 * math.sqrt(2 * math.pi))) / math.log(2)
    assert torch.allclose(vp[:, 0], exact, atol=2e-4) and torch.allclose(ve[:, 0], exact, atol=2e-2)


def test_the_decoder_counts_levels_of_any_range():
    x = torch.randint(256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    guess = x + 0.004 * Seeds(2).normal(x.shape)
    bits = losses.decoder_bits(2 * x - 1, 2 * guess - 1, 4 * 1e-5)
    assert torch.allclose(losses.decoder_bits(x, guess, 1e-5, span=(0.0, 1.0)), bits, atol=2e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of ve on digits, hardly trained."""
    pytest.importorskip("sklearn.datasets")
    root = tmp_path_factory.mktemp("ve")
    words = ("--config.network.widths", 16, "--config.steps", 4, "--batch", 8, "--steps", 3, "--seed", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(root / "cache"))
        quiet = ("--quiet", "--precision", "fp32", "--threads", 1, "--size", 8, "--labels", "none")
        call = ("train", "score_sde", "digits", "--preset", "fashion_ve", *words, *quiet, "--out", root / "run")
        assert main([str(word) for word in call]) == 0
        yield root / "run"


def test_likelihood_of_a_ve_run(run, tmp_path, capsys):
    """In [0, 1]: 8 bits are added, the flow begins at the least t of training, and the bound's levels are there."""
    words = ("--n", 3, "--rtol", 0.05, "--threads", 1, "--method", "both", "--steps", 5, "--out", tmp_path)
    assert main([str(word) for word in ("likelihood", run, "digits", *words)]) == 0
    said = capsys.readouterr().out
    assert "-log2 p(x) + 8 of x = (k + u) / 256, with" in said and "flow from t = 1e-05" in said
    with (tmp_path / "images.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    recipe, data = sfumato.load(run), sfumato.open_data("digits", sfumato.DataOptions(size=8, channels=1, flip="off"))
    name = next(iter(rows))
    image = data.batch(np.array([list(data.names).index(name)]))["image"]

    def seeds(stream):
        return Seeds.pictures([key("likelihood", 0, stream, name)])

    x = (dequantised(image, seeds("levels")) + 1) / 2
    bits = density(recipe.denoiser, x, probes=rademacher(x, seeds("probes")), eps=1e-5, rtol=0.05, atol=0.05).bits() + 8
    assert float(rows[name]["ode"]) == pytest.approx(float(bits), abs=2e-3)
    assert all(math.isfinite(float(row["bound"])) for row in rows.values())


def test_samplers_of_a_ve_run(run, tmp_path, capsys):
    words = ("--samplers", "auto", "pc", "--calls", 4, "--n", 2, "--threads", 1, "--out", tmp_path / "bench")
    assert main([str(word) for word in ("bench", "samplers", run, *words)]) == 0
    found = {row["name"]: row for row in json.loads((tmp_path / "bench" / "samplers.json").read_text())}
    assert 0 < found["auto"]["median"] < 1 and found["pc"]["calls"] == 4
    assert main([str(word) for word in ("sample", run, "--n", 2, "--threads", 1, "--out", tmp_path / "some")]) == 0
    assert "pc in 4 steps" in (said := capsys.readouterr()).out + said.err
