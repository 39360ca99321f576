"""One x_t in every notation: all views agree, whichever the network predicts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core import parametrisation
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.estimate import Estimate
from sfumato.core.schedules import VP, Cosine, Discrete, betas

PROCESSES = [VP(), Cosine(2.0), Discrete.linear(), Discrete.cosine()]
PREDICT = {"eps": parametrisation.eps, "x0": parametrisation.x0, "v": parametrisation.v}
VIEWS = ("x0", "eps", "score", "v", "velocity")


def pair(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 4, 4, generator=g, dtype=dtype), torch.randn(3, 2, 4, 4, generator=g, dtype=dtype)


def _exact(process, truth, answer, predict):
    """The Estimate of a network that answers `answer`."""

    class Net(torch.nn.Module):
        def forward(self, x, time):
            return answer

    return NeuralDenoiser(Net(), process, PREDICT[predict])(truth.xt, truth.point)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("predict", PREDICT)
@pytest.mark.parametrize("shared", [True, False])
def test_every_view_is_recovered_from_every_prediction(process, predict, shared):
    x0, eps = pair()
    for t in (0.02, 0.3, 0.7, 0.97):
        truth = process.noise(x0, t if shared else torch.full((3,), t, dtype=torch.float64), eps)
        guess = _exact(process, truth, getattr(truth, predict), predict)
        for view in VIEWS:
            a, b = getattr(guess, view), getattr(truth, view)
            assert float((a - b).abs().max() / b.abs().max()) < 2e-11, view


def test_views_are_their_definitions():
    process = VP()
    x0, eps = pair()
    truth = process.noise(x0, 0.4, eps)
    a, s = truth.point.alpha, truth.point.sigma
    da, ds = process.rates(0.4)
    assert torch.allclose(truth.xt, a * x0 + s * eps, atol=1e-14)
    assert torch.allclose(truth.score, -eps / s, atol=1e-13)
    assert torch.allclose(truth.v, a * eps - s * x0, atol=1e-14)
    assert torch.allclose(truth.velocity, da * x0 + ds * eps, atol=1e-12)


def test_nothing_is_lost_near_the_data_in_float32():
    process = Discrete.linear()
    x0, eps = pair(torch.float32)
    truth = process.noise(x0, 1e-6, eps)  # sigma 1e-5: through x0 the noise would drown in rounding
    guess = _exact(process, truth, eps, "eps")
    assert torch.equal(guess.eps, eps) and float((guess.x0 - x0).abs().max()) < 1e-6


@given(st.floats(0.01, 0.99), st.floats(-3, 3), st.floats(-3, 3))
def test_mix_is_any_combination(t, a, b):
    process = VP()
    x0, eps = pair()
    truth = process.noise(x0, t, eps)
    guess = _exact(process, truth, truth.v, "v")
    assert torch.allclose(guess.mix(a, b), a * x0 + b * eps, atol=1e-11)


@pytest.mark.parametrize("predict", PREDICT)
def test_lerp_is_the_same_in_every_view(predict):
    process = Cosine()
    x0, eps = pair()
    truth = process.noise(x0, 0.6, eps)
    other = truth.with_x0(x0 * 0.5 + 0.1)
    one, two = (_exact(process, e, getattr(e, predict), predict) for e in (truth, other))
    for w in (0.0, 0.3, 1.0, -2.0):
        mixed = one.lerp(two, w)
        for view in VIEWS:
            assert torch.allclose(
                getattr(mixed, view), (1 - w) * getattr(one, view) + w * getattr(two, view), atol=1e-10
            ), (view, w)


def test_replacing_one_half_moves_the_other_so_that_the_split_holds():
    process = VP()
    x0, eps = pair()
    truth = process.noise(x0, 0.5, eps)
    for changed in (truth.with_x0(x0.clamp(-0.5, 0.5)), truth.with_eps(eps * 0.9)):
        assert torch.allclose(truth.point.alpha * changed.x0 + truth.point.sigma * changed.eps, truth.xt, atol=1e-13)


def test_mix_never_aliases_what_the_network_gave():
    x0, eps = pair()
    truth = Estimate.exact(VP(), VP().at(0.5), x0, eps)
    truth.mix(1.0, 0.0).zero_(), truth.mix(0.0, 1.0).zero_()
    assert torch.equal(truth.x0, pair()[0]) and torch.equal(truth.eps, pair()[1])


def test_a_table_without_signal_at_its_end():
    process, net = Discrete(betas.jsd(8)), torch.nn.Identity()
    with pytest.raises(ValueError, match="predict x0 or v"):
        NeuralDenoiser(net, process, parametrisation.eps)
    x0, eps = pair()
    for predict in ("x0", "v"):
        truth = process.noise(x0, 1.0, eps)
        guess = _exact(process, truth, getattr(truth, predict), predict)
        assert torch.equal(truth.xt, eps) and torch.allclose(guess.x0, x0) and torch.allclose(guess.eps, eps)
