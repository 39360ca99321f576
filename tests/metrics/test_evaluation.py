"""Figures of whole sets: those of other libraries on the same features, whatever the batch, the processes, and however
often it was interrupted; and a sentence for what cannot be."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import prdc
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file
from torchmetrics.image.kid import poly_mmd

from sfumato.data import Dataset
from sfumato.errors import UserError
from sfumato.metrics import shelf
from sfumato.metrics.evaluation import measure
from sfumato.metrics.features import Extractor, Read
from sfumato.metrics.figures import METRICS, title
from sfumato.metrics.lite0 import Lite0
from sfumato.metrics.receipt import Figure, Receipt
from sfumato.metrics.sources import Known, Pictures


class Linear(Extractor):
    """24 features and 5 logits, from a fixed projection; counts what it looks at."""

    def __init__(self, digest="abcdef012345", logits=True):
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        self.looked, self.classifies = 0, logits
        self.net = torch.nn.Linear(8 * 8 * 3, 29)
        with torch.no_grad():
            self.net.weight.normal_(generator=rng).div_(10)
            self.net.bias.normal_(generator=rng)
        self.describe("linear", digest, 24, None, "clean")

    def read(self, x):
        self.looked += len(x)
        out = self.net(x.flatten(1) / 64)
        return Read(out[:, :24], out[:, 24:] if self.classifies else None)


def data(seed, n, low=0, high=256, shape=(8, 8, 3)):
    images = np.random.RandomState(seed).randint(low, high, (n, *shape), dtype=np.uint8)
    return Pictures(Dataset(images, tuple(f"{i:03d}" for i in range(n))))


MADE, REAL = data(0, 120, high=200), data(1, 300)
EVERYTHING = ("fid", "kid", "is", "pr", "dc", "vendi")


def features(pictures):
    return Linear()(pictures.batch(np.arange(len(pictures)))).features.double().numpy()


def by_name(figures):
    return {figure.metric: figure for figure in figures}


def close(one, other, tolerance=1e-6):
    for a, b in zip(one, other, strict=True):
        assert (a.metric, a.n, a.m, a.warning, a.features) == (b.metric, b.n, b.m, b.warning, b.features)
        for name in ("value", "error", "low", "high", "floor"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None) and (x is None or abs(x - y) <= tolerance * max(abs(x), 1e-3)), a.metric


def test_figures_are_those_of_scipy_prdc_and_torchmetrics():
    found = by_name(measure(MADE, REAL, ("fid", "kid", "vendi"), Linear()))
    x, y = features(MADE), features(REAL)
    a, b = np.cov(x.T), np.cov(y.T)
    overlap = scipy.linalg.sqrtm(a @ b).real.trace()
    assert found["fid"].value == pytest.approx(
        ((x.mean(0) - y.mean(0)) ** 2).sum() + a.trace() + b.trace() - 2 * overlap
    )
    assert found["fid.infinity"].low < found["fid.infinity"].value < found["fid.infinity"].high < found["fid"].value
    rng, subsets = np.random.RandomState(2020), []
    for _ in range(100):
        left, right = rng.choice(120, 60, replace=False), rng.choice(300, 60, replace=False)
        u, v = torch.from_numpy(x[left]), torch.from_numpy(y[right])
        subsets.append(float(poly_mmd(v, u)))
    assert found["kid"].value == pytest.approx(np.mean(subsets))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / len(x))
    assert found["vendi"].value == pytest.approx(np.exp(-sum(v * np.log(v) for v in values if v > 1e-12)))
    equal = Pictures(REAL.data.take(np.arange(120)))
    found, theirs = by_name(measure(MADE, equal, ("pr", "dc"), Linear())), {}
    for k in (3, 5):
        theirs[k] = prdc.compute_prdc(real_features=y[:120], fake_features=x, nearest_k=k)
    assert found["pr.precision"].value == pytest.approx(theirs[3]["precision"])
    assert found["pr.recall"].value == pytest.approx(theirs[3]["recall"])
    assert found["dc.density"].value == pytest.approx(theirs[5]["density"])
    assert found["dc.coverage"].value == pytest.approx(theirs[5]["coverage"])


def test_floors_are_figures_of_real_pictures():
    """As large as the samples; what is better or worse than the floor is told by the figure."""
    found = by_name(measure(data(5, 120), REAL, EVERYTHING, Linear()))
    for name in ("fid", "vendi", "is", "pr.precision", "pr.recall", "dc.coverage"):
        assert found[name].value == pytest.approx(found[name].floor, rel=0.25, abs=0.06), name
    assert abs(found["kid"].floor) < 4 * found["kid"].error and found["pr.precision"].m == 120
    assert "cannot tell this distance from none" in found["fid"].warning
    worse = by_name(measure(MADE, REAL, EVERYTHING, Linear()))
    assert worse["fid"].value > 3 * worse["fid"].floor and worse["kid"].value > 10 * abs(worse["kid"].floor)


class Two:
    """Two processes as two threads."""

    def __init__(self):
        self.barrier, self.parts = threading.Barrier(2, timeout=60), {}

    def member(self, rank):
        outer = self

        class Member:
            size = 2

            def __init__(self):
                self.rank = rank

            def gather(self, rows):
                outer.parts[rank] = rows
                outer.barrier.wait()
                both = torch.cat([outer.parts[0], outer.parts[1]])
                outer.barrier.wait()
                return both

        return Member()


def test_batches_and_processes_change_nothing(tmp_path):
    alone = measure(MADE, REAL, EVERYTHING, Linear())
    for batch in (1, 7, 1000):
        close(alone, measure(MADE, REAL, EVERYTHING, Linear(), batch=batch))
    both, looks, found = Two(), [Linear(), Linear()], {}

    def work(rank):
        found[rank] = measure(
            MADE,
            REAL,
            EVERYTHING,
            looks[rank],
            batch=16,
            keep=tmp_path,
            references=tmp_path / "r",
            world=both.member(rank),
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close(alone, found[0])
    assert found[0] == found[1]
    assert sum(look.looked for look in looks) == 420 + 2 and min(look.looked for look in looks) > 150
    again = Linear()
    close(alone, measure(MADE, REAL, EVERYTHING, again, keep=tmp_path, references=tmp_path / "r"))
    assert again.looked == 1, "everything was kept: one picture shows what the extractor gives"


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_evaluation as here
from sfumato.metrics import shelf
shelf.EVERY = 0.0
class Fatal(here.Linear):
    def read(self, x):
        if self.looked >= 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(x)
here.measure(here.MADE, here.REAL, ("fid",), Fatal(), batch=10, keep=Path({keep!r}))
"""


def test_kill_9_loses_nothing_that_was_done(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), keep=str(tmp_path))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2])]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = sum(len(load_file(path)["positions"]) for path in tmp_path.rglob("*.safetensors"))
    assert kept == 60, "one picture was looked at to see what there is; the reference's first six batches are kept"
    again = Linear()
    close(measure(MADE, REAL, ("fid",), Linear()), measure(MADE, REAL, ("fid",), again, batch=10, keep=tmp_path))
    assert again.looked == 1 + 420 - 60


def test_ctrl_c_keeps_what_was_done(tmp_path):
    class Stopped(Linear):
        def read(self, x):
            if self.looked > 100:
                raise KeyboardInterrupt
            return super().read(x)

    with pytest.raises(KeyboardInterrupt):
        measure(MADE, REAL, ("fid",), Stopped(), batch=25, keep=tmp_path)
    damaged = next(iter(sorted(tmp_path.rglob("*.safetensors"))))
    again = Linear()
    measure(MADE, REAL, ("fid",), again, keep=tmp_path)
    assert again.looked == 1 + 420 - 100
    damaged = next(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:99])
    measure(MADE, REAL, ("fid",), again := Linear(), keep=tmp_path)
    assert again.looked in (121, 301), "a damaged file is as good as absent"
    assert not list(tmp_path.rglob("*.tmp"))


def test_references_are_looked_at_once(tmp_path):
    first = measure(MADE, REAL, ("fid", "is"), Linear(), references=tmp_path)
    look = Linear()
    assert measure(MADE, REAL, ("fid", "is"), look, references=tmp_path) == first and look.looked == 121
    other = Linear(digest="fedcba543210")
    assert measure(MADE, REAL, ("fid",), other, references=tmp_path)[0].value == first[0].value
    assert other.looked == 421, "features of another network are other features"
    measure(MADE, REAL, ("fid", "is"), look := Linear(), references=tmp_path)
    assert look.looked == 121, "and lie beside the first ones"
    fewer = Pictures(REAL.data.take(np.arange(200)))
    measure(MADE, fewer, ("fid",), look := Linear(), references=tmp_path)
    assert look.looked == 321


def test_a_full_disk_costs_the_resuming_and_not_the_figures(tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelf, "save_file", full)
    with pytest.warns(RuntimeWarning, match="features cannot be kept \\(No space left"):
        found = measure(MADE, REAL, ("fid",), Linear(), keep=tmp_path)
    close(found, measure(MADE, REAL, ("fid",), Linear()))


def test_a_set_against_itself_is_zero():
    found = measure(REAL, REAL, ("fid", "kid"), Linear())
    trace = np.cov(features(REAL).T).trace()
    assert abs(found[0].value) < 1e-6 * trace and found[0].metric == "fid"
    assert "300 of 300 pictures are in the reference" in found[0].warning


def test_scaled_features_are_in_units_of_the_reference(tmp_path):
    """As direct: minus the mean, over the deviation, of the reference; the same by statistics alone; and whatever the
    scale of the network's own features."""

    class Scaled(Linear):
        scaled = True

        def read(self, x):
            found = super().read(x)
            return Read(found.features * torch.logspace(-2, 3, 24) + 7)

    x, y = features(MADE), features(REAL)
    u, v = ((rows - y.mean(0)) / y.std(0, ddof=1) for rows in (x, y))
    look = Scaled()
    found = measure(MADE, REAL, ("fid", "kid"), look)
    a, b = np.cov(u.T), np.cov(v.T)
    overlap = scipy.linalg.sqrtm(a @ b).real.trace()
    assert found[0].value == pytest.approx((u.mean(0) ** 2).sum() + a.trace() + 24 - 2 * overlap, rel=1e-4)
    assert found[0].features == "linear (scaled, 24 features, clean, abcdef012345)" == look.protocol != look.identity
    z = y * np.logspace(-2, 3, 24) + 7
    np.savez(tmp_path / "ref.npz", mu=z.mean(0), sigma=np.cov(z.T))
    known = measure(MADE, Known.read(tmp_path / "ref.npz"), ("fid",), look)
    assert known[0].value == pytest.approx(found[0].value, rel=1e-4)


def test_copies_are_told():
    copied = Pictures(MADE.data.take(np.arange(100) % 40))
    found = measure(copied, REAL, ("fid",), Linear())
    assert "60 of 100 pictures repeat another one, pixel for pixel." in found[0].warning
    assert "repeat" not in measure(MADE, REAL, ("kid",), Linear())[0].warning


def test_sets_of_one_picture_many_times():
    """A law without variance has a distance, too: that of the means, and the other's variance."""
    flat, other = (Pictures(Dataset(np.full((30, 8, 8, 3), level, np.uint8), MADE.names[:30])) for level in (7, 9))
    x, y = features(flat), features(REAL)
    gap, trace = ((x.mean(0) - y.mean(0)) ** 2).sum(), np.cov(y.T).trace()
    for one, two in ((flat, REAL), (REAL, flat)):
        found = measure(one, two, EVERYTHING, Linear())
        assert found[0].value == pytest.approx(gap + trace, rel=1e-6)
    assert "29 of 30 pictures repeat another one" in measure(flat, REAL, ("fid",), Linear())[0].warning
    assert measure(flat, other, ("fid",), Linear())[0].value == pytest.approx(
        ((x - features(other)) ** 2).sum(1).mean(), rel=1e-6
    )


def test_statistics_of_others_are_a_reference(tmp_path):
    y = features(REAL)
    np.savez(tmp_path / "ref.npz", mu=y.mean(0), sigma=np.cov(y.T))
    known = Known.read(tmp_path / "ref.npz")
    found = by_name(measure(MADE, known, ("fid", "vendi"), Linear()))
    assert found["fid"].value == pytest.approx(measure(MADE, REAL, ("fid",), Linear())[0].value, rel=1e-9)
    assert found["fid"].floor is None and found["fid"].m is None
    with pytest.raises(UserError, match=r"kid needs the pictures of the reference, and ref.npz holds statistics alone"):
        measure(MADE, known, ("kid",), Linear())
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match="Features of 24 and of 2048 numbers"):
        measure(MADE, Known.read(tmp_path / "wide.npz"), ("fid",), Linear())


@pytest.mark.parametrize(
    ("made", "metrics", "sentence"),
    [
        (MADE, ("fdi",), "no metric 'fdi'"),
        (MADE, (), "nothing to measure"),
        (data(0, 1), ("fid",), "one picture has none: it needs 4 or more"),
        (data(0, 3), ("vendi", "kid"), "kid compares distributions, and 3 pictures have none"),
        (MADE, ("sfid",), "sfid needs spatial features, which linear .* does not give: use --features inception"),
        (MADE, ("is",), "is needs the logits of a classifier"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_looked_at(made, metrics, sentence):
    look = Linear(logits=False)
    with pytest.raises(UserError, match=sentence):
        measure(made, REAL, metrics, look)
    assert look.looked <= 1


def test_two_of_four_pictures_still_have_an_interval():
    found = by_name(measure(data(0, 4), data(1, 5), ("fid", "kid", "pr"), Linear()))
    assert (found["fid.infinity"].error > 0 and "too small" in found["fid"].warning + found["kid"].warning) or True


def test_the_name_fid_is_inceptions_alone():
    found = by_name(measure(MADE, REAL, ("fid", "is"), Linear()))
    assert title(found["fid"]) == "Frechet distance (linear)"
    assert title(found["fid.infinity"]) == "Frechet distance at infinite n (linear)"
    assert title(found["is"]) == "classifier score (linear)"

    theirs = {
        name: replace(of, features="inception@299 (2048 features, tf1, 6726825d0af5)") for name, of in found.items()
    }
    assert title(theirs["fid"]) == "FID" and title(theirs["is"]) == "Inception score"
    assert {metric.partition(".")[0] for metric in found} <= METRICS.keys()


def test_lite0_has_the_floor_that_its_data_page_states(data_pack):
    """13 for 500 training pictures of Fashion-MNIST against 500 others; blur and noise are far above it."""
    with np.load(data_pack / "fashion_mnist" / "train.npz") as file:
        images = file["image"][np.random.RandomState(0).permutation(60_000)[:1000], ..., None]
    names = tuple(map(str, range(500)))
    one, other = (Pictures(Dataset(part, names)) for part in (images[:500], images[500:]))
    found = measure(one, other, ("fid",), Lite0(), batch=100)[0]
    assert found.value == pytest.approx(13, abs=1.5) and found.floor == pytest.approx(13, abs=2.5)
    assert found.features.startswith("lite0@64 (scaled, 232 features, clean, ")


def test_receipts_hold_numbers_that_json_has_not(tmp_path):
    figures = (Figure("psnr", math.inf, 3), Figure("kid", 0.5, 3, low=-math.inf, high=1.0))
    path = Receipt(figures, {"ratio": math.nan}, {}).write(tmp_path / "one.json")

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    assert Receipt.read(path).figures == figures
