"""A judge of pictures in training: it knows good from bad, and its floor is what real pictures get."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.apps import judge as module
from sfumato.apps.judge import METRICS, judge, looked_at, reference_of
from sfumato.data import DataOptions, open_data
from sfumato.errors import UserError
from sfumato.metrics.features import Extractor, Read, levels
from sfumato.metrics.frechet import frechet
from sfumato.metrics.kid import kid
from sfumato.metrics.lite0 import Lite0
from sfumato.metrics.statistics import Moments


class Halves(Extractor):
    """Means of 2 x 2 parts of a gray picture, and of their products: quick features whose every number is known."""

    def __init__(self) -> None:
        super().__init__()
        self.describe("halves", "0123456789ab", 20, None, "clean")

    def accept(self, pictures):
        if pictures.shape[1] != 1:
            raise UserError("halves reads gray pictures.")
        return pictures

    def read(self, x):
        means = torch.nn.functional.adaptive_avg_pool2d(x / 255, 2).flatten(1)
        return Read(torch.cat([means, torch.einsum("bi,bj->bij", means, means).flatten(1)], 1))


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn.datasets")
    return open_data("digits", DataOptions()).split(0.4, 0)


def pictures_of(data, count, spoil=lambda x: x):
    """Some at a time, as training hands them out."""
    images = spoil((data.batch(np.arange(count), None)["image"] + 1) / 2)
    return iter(levels(images).split(50))


def test_its_numbers_are_those_of_the_metrics(digits):
    """KID and the Frechet distance of the same rows, and the interface of training: name, error, identity, text."""
    data, held = digits
    look = Halves()
    made = looked_at(look, torch.cat([*pictures_of(data, 200)]))
    assert torch.equal(made, torch.cat([look(some).features for some in pictures_of(data, 200)]))
    for metric in METRICS:
        found = judge(data, held, metric=metric, features=look, n=200)
        verdict = found(pictures_of(data, 200))
        real = looked_at(look, torch.cat([*pictures_of(reference_of(data, held, 200)[0], len(found.real))]))
        assert torch.equal(real, found.real)
        expected = (
            kid(made, real).value if metric == "kid" else frechet(*(Moments.of(x).gaussian() for x in (made, real)))
        )
        assert verdict.value == pytest.approx(expected, rel=1e-9) and verdict.name == metric and verdict.error > 0
        assert verdict.features == f"{look.identity}, {len(held):,} held-out pictures, n 200"
        title = {"kid": "KID", "fid": "Frechet distance"}[metric]
        assert (
            verdict.text.startswith(f"{title} ") and verdict.text.endswith(", halves, n 200)") and "+-" in verdict.text
        )
    look.name = "inception"
    assert found.name == "fid" and found.title == "FID"


@pytest.mark.parametrize("metric", list(METRICS))
def test_the_worse_the_pictures_the_higher(digits, metric):
    data, held = digits
    found = judge(data, held, metric=metric, features=Halves(), n=256)
    noise = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    values = [
        found(pictures_of(data, 256, lambda x, much=much: (x + much * noise).clamp(0, 1))).value
        for much in (0.0, 0.2, 0.5, 2.0)
    ]
    assert values == sorted(values) and values[-1] > 10 * abs(values[0])


def test_the_frechet_distance_with_more_features_than_pictures():
    """As with Inception's 2,048 features: the same number from the rows as from the covariances, and an error that is
    the spread of the distance over draws."""
    rng = torch.Generator().manual_seed(0)

    def draw(n, shift):
        return torch.randn(n, 60, generator=rng) * torch.linspace(0.2, 2, 60) + shift

    real = draw(50, 0.0)
    found = [METRICS["fid"].measure(draw(40, 1.0), real) for _ in range(30)]
    x = draw(40, 1.0)
    exact = frechet(Moments.of(x).gaussian(), Moments.of(real).gaussian())
    assert METRICS["fid"].measure(x, real)[0] == pytest.approx(exact, rel=1e-9)
    values, errors = (np.array(column) for column in zip(*found, strict=True))
    assert 0.5 < np.mean(errors) / np.std(values) < 3  # over draws the real rows are the same; the error counts both
    wide = torch.randn(600, 600, generator=rng)
    assert METRICS["fid"].measure(wide[:520], wide)[1] is None


def test_the_floor_is_what_real_pictures_get(digits):
    """Of many draws of real pictures the spread of KID is within a factor of two of the floor, and the mean of the
    Frechet distance within a fifth."""
    data, held = digits
    look = Halves()
    everything = looked_at(look, torch.cat([*pictures_of(data, len(data))]))
    for metric in METRICS:
        found = judge(data, held, metric=metric, features=look, n=100)
        got = []
        for draw in range(40):
            order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(draw))
            got.append(METRICS[metric].measure(everything[order[:100]], everything[order[100 : 100 + len(held)]])[0])
        typical = float(np.sqrt(np.mean(np.square(got)))) if metric == "kid" else float(np.mean(got))
        assert found.floor == pytest.approx(typical, rel=1.0 if metric == "kid" else 0.2)
        assert found.floor > typical / 2


def test_held_out_pictures_where_there_are_enough(digits):
    data, held = digits
    for n, kind in ((len(held), "held-out"), (len(held) + 1, "training")):
        chosen, what = reference_of(data, held, n)
        assert what == f"{len(chosen):,} {kind} pictures" and len(chosen) == len(set(chosen.names))
        assert set(chosen.names) <= set((held if kind == "held-out" else data).names)
    again, _ = reference_of(data, None, 100)
    assert list(again.names) == list(reference_of(data, None, 100)[0].names) and len(again) == min(1024, len(data))
    with pytest.raises(UserError, match="takes 16 of either side"):
        reference_of(data.take(range(15)), None, 100)
    with pytest.raises(UserError, match="takes 16 of either side"):
        judge(data, held, features=Halves(), n=15)


def test_real_features_and_what_they_cannot_read(digits):
    """lite0 of handwritten digits, and the sentences of what is wrong."""
    data, held = digits
    try:
        look = Lite0()
    except UserError:
        pytest.skip("the package of lite0 is not installed")
    found = judge(data, held, features=look, n=64)
    good, bad = found(pictures_of(data, 64)), found(pictures_of(data, 64, lambda x: 1 - x))
    assert "lite0@64, n 64)" in good.text and good.value + 10 * good.error < bad.value
    with pytest.raises(UserError, match="no judge called 'is'"):
        judge(data, held, metric="is", features=look)
    with pytest.raises(UserError, match="none of lite0"):
        judge(data, held, features="nothing")
    with pytest.raises(UserError, match="no weights file"):
        judge(data, held, features="inception:nowhere.pth")


def test_own_features_train_once(digits, tmp_path, monkeypatch):
    """Kept with the cache, so that a resumed run has the same; a damaged file is trained again."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    trained = []
    monkeypatch.setattr(
        module, "fit", lambda pictures, progress: (trained.append(len(pictures)), fit(pictures, steps=3))[1]
    )
    from sfumato.metrics.own import fit

    data, held = digits
    first = judge(data, held, features="own", n=32)
    second = judge(data, held, features="own", n=32)
    assert trained == [len(data)] and first.extractor.identity == second.extractor.identity
    assert torch.equal(first.real, second.real) and first.features == "own@32"
    kept = next((tmp_path / "own").glob("*.safetensors"))
    kept.write_bytes(b"damaged")
    assert judge(data, held, features="own", n=32).extractor.identity == first.extractor.identity
    assert len(trained) == 2
    other = replace(data.take(range(40)), fingerprint="other")
    judge(other, None, features="own", n=32)
    assert len(trained) == 3
