"""Augmentation that the network is told about: what is done, how often, and that it is a function of its own draws."""

import math

import numpy as np
import pytest
import torch

from sfumato.conditioning import augment
from sfumato.conditioning.augment import Augment, warp
from sfumato.core.random import Seeds

NONE = torch.zeros(1, 2, dtype=torch.float64)
SAME = torch.eye(2, dtype=torch.float64)[None]


def waves(h, w, place=lambda x, y: (x, y)):
    """A smooth picture whose value is known everywhere; `place` says where each pixel comes from."""
    y, x = torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij")
    x, y = place(x - (w - 1) / 2, y - (h - 1) / 2)
    return (torch.sin(x / 5 + 0.3) * torch.cos(y / 7))[None, None]


def inner(x, edge=4):
    return x[..., edge:-edge, edge:-edge]


def test_an_example_is_augmented_alike_in_every_batch():
    x, pipe = Seeds(0).normal((8, 3, 12, 14)), Augment(0.5, 4)
    before = x.clone()
    whole, done = pipe.pictures(x, Seeds.at(3, range(20, 28)))
    part, told = pipe.pictures(x[2:5], Seeds.at(3, range(22, 25)))
    assert torch.allclose(whole[2:5], part, atol=1e-6) and torch.equal(done[2:5], told) and torch.equal(x, before)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    Augment.pictures(Augment(0.5, 4), torch.zeros(4, 1, 8, 8), Seeds.at(0, range(4)))
    pipe_free = torch.get_rng_state()
    torch.set_rng_state(state)
    Augment(0.5, 4)  # its weights are what was drawn
    assert torch.equal(torch.get_rng_state(), pipe_free)


def test_how_often_each_is_done_and_how_far():
    """Mirrored always with 1/2, upside down with p / 2, the rest with p; numbers as in the paper's label."""
    _, done = Augment(0.12, 4).pictures(torch.zeros(20_000, 1, 4, 4), Seeds.at(0, range(20_000)))
    share = (done != 0).float().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12])
    assert torch.allclose(share, expected, atol=0.012), share
    scale, cos, sin = done[done[:, 2] != 0, 2], done[:, 3] + 1, done[:, 4]
    assert abs(float(scale.std()) - 1) < 0.05 and torch.allclose(cos**2 + sin**2, torch.ones(20_000), atol=1e-6)
    assert float(cos[sin != 0].min()) < -0.99 and abs(float(cos[sin != 0].mean())) < 0.1  # any angle


def test_without_a_chance_pictures_are_only_mirrored_and_that_exactly():
    x = Seeds(1).normal((64, 1, 9, 8))
    out, done = Augment(0.0, 4).pictures(x, Seeds.at(0, range(64)))
    mirrored = done[:, 0] == 1
    assert torch.equal(out[mirrored], x[mirrored].flip(-1)) and torch.equal(out[~mirrored], x[~mirrored])
    assert 20 < int(mirrored.sum()) < 44 and not done[:, 1:].any()


def test_nothing_done_adds_nothing():
    pipe = Augment(0.1, 16)
    assert not pipe(torch.zeros(2, 9)).any() and [name for name, _ in pipe.named_parameters()] == ["linear.weight"]


def test_the_map_is_the_paper_s():
    """S^-1 R(w) R(-r) diag(2^-a, 2^a) R(r), written out with numpy."""
    scale, angle, stretch, axis = (torch.tensor([v], dtype=torch.float64) for v in (0.7, 0.4, -1.1, 2.0))

    def turn(a):
        return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])

    s, a = 2 ** (0.2 * 0.7), 2 ** (0.2 * -1.1)
    expected = np.eye(2) / s @ turn(0.4) @ turn(-2.0) @ np.diag([1 / a, a]) @ turn(2.0)
    assert np.allclose(augment._linear(scale, angle, stretch, axis)[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("angle", [0.3, -1.0, 2.5])
def test_smooth_pictures_are_turned_exactly(angle):
    c, s = math.cos(angle), math.sin(angle)
    found = warp(waves(40, 40), augment._turn(torch.tensor([angle], dtype=torch.float64)), NONE)
    expected = waves(40, 40, lambda x, y: (c * x - s * y, s * x + c * y))
    assert float(inner(found - expected, 10).abs().max()) < 2e-3


def test_scaling_and_shifting():
    found = warp(waves(30, 40), SAME / 1.2, torch.tensor([[0.1, -0.05]], dtype=torch.float64))
    expected = waves(30, 40, lambda x, y: ((x - 4.0) / 1.2, (y + 1.5) / 1.2))
    assert float(inner(found - expected, 6).abs().max()) < 2e-3


def test_a_shift_by_pixels_reflects_at_the_edge():
    x = Seeds(2).normal((1, 2, 12, 16)).cumsum(-1) / 4
    found = warp(x, SAME, torch.tensor([[2 / 16, 0.0]], dtype=torch.float64))
    assert torch.allclose(found[..., 2:], x[..., :-2], atol=0.1) and torch.allclose(found[..., 1], x[..., 1], atol=0.1)


def test_nothing_moves_where_nothing_is_asked():
    x = Seeds(3).normal((2, 1, 16, 16))
    same = warp(x, SAME.expand(2, 2, 2), NONE.expand(2, 2))
    assert float((same - x).std()) < 0.025 * float(x.std())  # white noise, of which the filters lose the most
    flat = warp(torch.full((1, 1, 5, 7), 0.3), augment._turn(torch.tensor([0.7], dtype=torch.float64)), NONE)
    assert torch.allclose(flat, torch.full((1, 1, 5, 7), 0.3), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 2, 5)])
def test_the_smallest_pictures(shape):
    x, rng = Seeds(0).normal(shape), Seeds.at(0, range(shape[0]))
    out, _ = Augment(1.0, 4).pictures(x, rng)
    assert out.shape == x.shape and bool(out.isfinite().all())
