"""Conditions and classifier-free guidance."""

import pytest
import torch

from sfumato.core import guidance, parametrisation
from sfumato.core.cond import Cond
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.oracle import Gaussian
from sfumato.core.schedules import VP, Cosine


class Toy(torch.nn.Module):
    """A network that counts its calls and uses its condition."""

    def __init__(self):
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x, time, *, vector=None, tokens=None, mask=None):
        self.calls.append(len(x))
        told = vector[..., None] if vector is not None else (tokens * mask[..., None]).sum(1)[..., None]
        return x * 0.3 + told * torch.sin(x)


def conds(n=3):
    g = torch.Generator().manual_seed(0)
    return (
        Cond(vector=torch.randn(n, 2, generator=g, dtype=torch.float64)),
        Cond(vector=torch.zeros(n, 2, dtype=torch.float64)),
    )


X = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("predict", [parametrisation.eps, parametrisation.x0, parametrisation.v])
def test_one_batched_call_equals_two(predict):
    net = Toy()
    denoiser = NeuralDenoiser(net, VP(), predict)
    told, null = (denoiser.given(c) for c in conds())
    guess = guidance.classifier_free(told, null, 3.0)(X, 0.4)
    assert net.calls == [6]
    for view in ("x0", "eps", "score", "v", "velocity"):
        a, b = getattr(told(X, 0.4), view), getattr(null(X, 0.4), view)
        assert torch.allclose(getattr(guess, view), b + 3.0 * (a - b), atol=1e-11)


def test_scale_one_is_off_and_costs_one_pass():
    denoiser = NeuralDenoiser(net := Toy(), VP(), parametrisation.v)
    told, null = (denoiser.given(c) for c in conds())
    assert torch.equal(guidance.classifier_free(told, null, 1.0)(X, 0.4).x0, told(X, 0.4).x0)
    assert net.calls == [3, 3]


def test_outside_its_interval_guidance_is_off():
    denoiser = NeuralDenoiser(net := Toy(), VP(), parametrisation.v)
    told, null = (denoiser.given(c) for c in conds())
    guided = guidance.classifier_free(told, null, 3.0, interval=(0.2, 0.8))
    assert torch.equal(guided(X, 0.9).x0, told(X, 0.9).x0) and net.calls == [3, 3]
    guided(X, 0.5)
    assert net.calls == [3, 3, 6]
    with pytest.raises(ValueError, match="one t"):
        guided(X, torch.tensor([0.1, 0.5, 0.9]))


def test_two_models_guide_each_other():
    """Autoguidance of two Gaussians with means 1 and 0: eps differs by a constant, which is extrapolated."""
    strong, weak = Gaussian(Cosine(), 1.0, 0.5), Gaussian(Cosine(), 0.0, 0.5)
    guess = guidance.classifier_free(strong, weak, 2.0)(X, 0.5)
    assert torch.allclose(guess.eps, 2 * strong(X, 0.5).eps - weak(X, 0.5).eps, atol=1e-13)
    assert torch.allclose(guess.eps, Gaussian(Cosine(), 2.0, 0.5)(X, 0.5).eps, atol=1e-13)


def test_clip_holds_x0_and_keeps_the_split():
    oracle = Gaussian(VP(), 0.0, 3.0)
    guess = guidance.clip(oracle)(X * 4, 0.3)
    assert float(guess.x0.abs().max()) == 1.0
    assert torch.allclose(guess.point.alpha * guess.x0 + guess.point.sigma * guess.eps, X * 4, atol=1e-12)


def test_drop_replaces_whole_examples():
    told, null = conds()
    keep = torch.tensor([True, False, True])
    dropped = told.drop(null, keep)
    assert torch.equal(dropped.vector[keep], told.vector[keep]) and torch.equal(
        dropped.vector[~keep], null.vector[~keep]
    )


def test_token_rows_of_different_length_are_padded_and_masked():
    short, long = Cond(tokens=torch.ones(2, 3, 5)), Cond(tokens=torch.full((2, 7, 5), 2.0))
    both = Cond.cat(short, long)
    assert both.mask.sum(1).tolist() == [3, 3, 7, 7]
    assert torch.equal((both.tokens * both.mask[..., None]).sum((1, 2)), torch.tensor([15.0, 15.0, 70.0, 70.0]))
    mixed = long.drop(short, torch.tensor([True, False]))
    assert mixed.mask.sum(1).tolist() == [7, 3]


def test_different_kinds_of_condition_are_refused():
    with pytest.raises(ValueError, match="vector"):
        Cond.cat(conds()[0], Cond(tokens=torch.ones(3, 2, 2)))
