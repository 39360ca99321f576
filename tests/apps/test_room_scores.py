"""Scores: LAION's predictors from their published layouts, and anyone's own."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sfumato.apps.explorer.query import Query
from sfumato.apps.explorer.scorers import aesthetic, collapsed, safety
from sfumato.errors import UserError
from tests.apps.rooms import QUICK, drawing, folder_of, settled


def unit(n, width, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def improved():
    """The published v2 network, as its repository builds it (dropouts between, no activations)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    ).eval()  # fmt: skip


@pytest.fixture
def second(tmp_path):
    net = improved()
    torch.save({f"layers.{name}": value for name, value in net.state_dict().items()}, tmp_path / "v2.pth")
    return tmp_path / "v2.pth", net


def test_the_second_predictor_is_its_network_and_its_affine_map(second):
    path, net = second
    assert sum(p.numel() for p in net.parameters()) == 927_969
    x, scorer = unit(50, 768), aesthetic(path)
    with torch.no_grad():
        expected = net(torch.from_numpy(x))[:, 0].numpy()
    assert scorer(x) == pytest.approx(expected, abs=1e-6)
    map_ = collapsed(scorer.layers)
    affine = x.astype(np.float64) @ map_.weight.numpy()[0] + map_.bias.item()
    assert scorer(x) == pytest.approx(affine, abs=1e-5)


def test_scores_are_of_vectors_of_length_one(second):
    """A longer vector would get another score without a word: it is refused."""
    scorer, x = aesthetic(second[0]), unit(5, 768)
    map_ = collapsed(scorer.layers)
    far = (10 * x.astype(np.float64)) @ map_.weight.numpy()[0] + map_.bias.item()
    assert np.abs(far - scorer(x)).max() > 0.01
    with pytest.raises(UserError, match="length 1"):
        scorer(10 * x)


@pytest.mark.parametrize("width", [768, 512])
def test_the_first_predictor_is_one_layer(tmp_path, width):
    net = nn.Linear(width, 1)
    torch.save(net.state_dict(), tmp_path / "v1.pth")
    x = unit(20, width)
    with torch.no_grad():
        assert aesthetic(tmp_path / "v1.pth")(x) == pytest.approx(net(torch.from_numpy(x))[:, 0].numpy(), abs=1e-6)


def test_the_safety_predictor_bends_all_but_the_last_two(tmp_path):
    torch.manual_seed(0)
    widths = (1024, 1024, 2048, 1024, 256, 128, 16, 1)
    linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
    layers = [part for i, one in enumerate(linear) for part in ((one, nn.ReLU()) if i < 5 else (one,))]
    net = nn.Sequential(*layers).eval()
    save_file({f"layers.{k}": v for k, v in net.state_dict().items()}, tmp_path / "h14.safetensors")
    x = unit(30, 1024)
    with torch.no_grad():
        expected = net(torch.from_numpy(x))[:, 0].sigmoid().numpy()
    assert safety(tmp_path / "h14.safetensors")(x) == pytest.approx(expected, abs=1e-6)


def test_weights_that_are_others_are_sentences(tmp_path, second):
    with pytest.raises(UserError, match="no weights file"):
        aesthetic(tmp_path / "missing.pth")
    (tmp_path / "damaged.pth").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        aesthetic(tmp_path / "damaged.pth")
    torch.save(nn.Linear(33, 1).state_dict(), tmp_path / "other.pth")
    for read in (aesthetic, safety):
        with pytest.raises(UserError, match="does not hold"):
            read(tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold"):
        safety(second[0])
    with pytest.raises(UserError, match="768 numbers"):
        aesthetic(second[0])(unit(3, 512))


class Brightness:
    """A scorer of somebody's own, that cannot tell for every picture."""

    name, identity, width = "mine", "mine 1", 232

    def __call__(self, vectors):
        return np.where(np.arange(len(vectors)) % 2, np.nan, vectors[:, 0])


def test_anyones_scorer_is_a_column(tmp_path):
    folder = folder_of(tmp_path, {f"{i}.png": drawing(i) for i in range(8)})
    with settled(folder, QUICK, embed=True, scorers=(Brightness(),)) as room:
        rows = room.page(Query(sort="mine", descending=True), 0, 10)["rows"]
        values = [row["mine"] for row in rows]
        assert values[4:] == [None] * 4 and values[:4] == sorted(values[:4], reverse=True)
        facet = room.facets(Query())["mine"]
        assert facet["empty"] == 4 and sum(facet["counts"]) == 4


def test_a_score_for_other_features_is_said_and_the_room_goes_on(tmp_path, second):
    folder = folder_of(tmp_path / "p", {f"{i}.png": drawing(i) for i in range(4)})
    with settled(folder, QUICK, embed=True, aesthetic=second[0]) as room:
        found = room.progress()
        assert found["ready"]["map"] and any("768 numbers" in error["reason"] for error in found["errors"])
