"""Parts of the report by themselves: markup, embedded pictures, history, shares, the nearest training pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato import registry
from sfumato.apps.report.gather import _network, private_of
from sfumato.apps.report.history import read_history
from sfumato.apps.report.markup import el, sources
from sfumato.apps.report.nearest import nearest_training
from sfumato.apps.report.sections import percent
from sfumato.data import Dataset
from sfumato.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_markup_escapes_by_construction():
    assert el("p", {"title": '"<>'}, "<b>", el("b", None, "&")) == '<p title="&quot;&lt;&gt;">&lt;b&gt;<b>&amp;</b></p>'
    with pytest.raises(ValueError, match="attribute"):
        el("p", {"a onclick": "x"})


def test_large_pictures_stay_within_their_budget():
    noise = np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), np.uint8)
    found = sources(list(noise), 400_000)
    assert sum(map(len, found)) <= 400_000 and len(found) == 16
    (small,) = sources([noise[0, :32, :32]], 1_600_000)
    assert small.startswith("data:image/png"), "small pictures are kept as they are"


def test_time_adds_up_over_sessions(tmp_path):
    rows = [(10, 5.0), (20, 9.0), (30, 2.0), (40, 6.5)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "seconds": t}) + "\n" for s, t in rows))
    assert read_history(path).seconds == 15.5
    assert read_history(tmp_path / "none").seconds == 0.0 and not private_of(tmp_path)


def test_levels_are_named_by_their_range(tmp_path):
    (tmp_path / "m").write_text('{"step": 1, "levels": [1.0, null, 3.0, null]}\n')
    assert [(s.name, s.values) for s in read_history(tmp_path / "m").levels] == [
        ("t 0 to 0.25", (1.0,)),
        ("t 0.5 to 0.75", (3.0,)),
    ]


@pytest.mark.parametrize("share,text", [(1.0, "all"), (0.999999, "99.99 %"), (0.994, "99.40 %"), (0.5, "50 %")])
def test_a_share_is_never_rounded_up_to_all(share, text):
    assert percent(share) == text


# -- memorisation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    pixels = pytest.importorskip("sklearn.datasets").load_digits().images
    images = (pixels * 15.9).astype(np.uint8)[..., None]
    return Dataset(images, tuple(map(str, range(len(images)))), flip=True)


def silent(what, done, total):
    pass


def test_a_planted_copy_is_found_and_others_are_not(digits):
    held, train = digits.take(range(40)), digits.take(range(40, len(digits)))
    honest = np.stack([held.pixels(i) for i in range(40)])
    found = nearest_training(honest, train, silent)
    assert found.copies == 0 and found.of == 40 and found.examples == len(train)
    planted = honest.copy()
    planted[3], planted[11] = train.pixels(500), train.pixels(900)[:, ::-1]
    found = nearest_training(planted, train, silent)
    assert found.copies == 2 and set(found.samples[:2]) == {3, 11}
    best = {i: row[0] for i, row in zip(found.samples, found.matches, strict=True)}
    assert (best[3].index, best[3].mirrored) == (500, False) and (best[11].index, best[11].mirrored) == (900, True)
    assert best[3].distance == pytest.approx(0, abs=1e-6) == best[11].distance and best[3].farther == 1.0
    assert np.array_equal(best[11].pixels, planted[11])


def test_a_flat_picture_is_no_copy(digits):
    """It is near to many faint ones."""
    faint = replace(digits, images=(digits.images // 16).astype(np.uint8), flip=False)
    assert nearest_training(np.full((3, 8, 8, 1), 5, np.uint8), faint, silent).copies == 0


def test_nearest_is_that_of_a_plain_search(digits):
    train = digits.take(range(300, 1500))
    samples = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
    found = nearest_training(samples, train, silent)
    rows = np.stack([train.pixels(i) for i in range(len(train))]).astype(float) / 255
    both = np.stack([rows, rows[:, :, ::-1]])
    for i, matches in zip(found.samples, found.matches, strict=True):
        distance = np.sqrt(((both - samples[i].astype(float) / 255) ** 2).mean((2, 3, 4))).min(0)
        assert [m.index for m in matches] == distance.argsort()[:3].tolist()
        assert [m.distance for m in matches] == pytest.approx(np.sort(distance)[:3].tolist(), abs=1e-7)


def test_the_scale_is_that_of_real_pictures(digits):
    """Distances among training pictures, found by brute force over the same 64."""
    train = digits.take(range(400))
    found = nearest_training(np.stack([train.pixels(0)] * 2), replace(train, flip=False), silent)
    rows = torch.from_numpy(np.stack([train.pixels(i) for i in range(400)])).double().flatten(1) / 255
    distance = torch.cdist(rows, rows) / 8
    distance.fill_diagonal_(torch.inf)
    nearest = distance.min(1).values
    assert nearest.quantile(0.3) < found.own < nearest.quantile(0.7)
    assert nearest.min() <= found.close <= nearest.quantile(0.25)


@pytest.mark.slow
def test_a_planted_copy_is_found_by_features(data_pack):
    lite0 = pytest.importorskip("sfumato.metrics.lite0")
    try:
        looks = lite0.Lite0()
    except UserError:
        pytest.skip("the weights of lite0 are not installed")
    images = np.load(data_pack / "fashion_mnist" / "test.npz")["image"][..., None]
    train = Dataset(images[:2000], tuple(map(str, range(2000))), flip=False)
    planted = images[5000:5012].copy()
    planted[4] = images[1234]
    found = nearest_training(planted, train, silent, extractor=looks)
    assert found.samples[0] == 4 and found.matches[0][0].index == 1234 and found.copies == 1
    assert found.matches[0][0].distance == pytest.approx(0.0, abs=1e-3) and found.measure == "features of lite0"


@pytest.mark.parametrize(
    ("name", "words"),
    [("ddpm", "U-Net, widths 48, 96, 104"), ("dit", "transformer, width 192, 4 layers, 3 heads, patches of 4")],
)
def test_a_network_is_called_what_it_is(name, words):
    config = registry.paper(name).presets["fashion"].config
    assert _network({"config": registry.config_dict(config)}).startswith(words)
