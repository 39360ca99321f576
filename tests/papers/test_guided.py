"""Guidance of a trained model, as it is asked for: intervals, negative labels, weak models, rescaling."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from sfumato.core import guidance
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.papers.ddpm import DDPM, Config
from sfumato.recipe import Ask
from sfumato.samplers.ancestral import DDIM
from tests.papers.tools import NAMES, SMALL, loud


def labelled(**changes):
    config = Config(**({"shape": (3, 8, 8), "classes": NAMES, "network": SMALL, "clip": False} | changes))
    return loud(DDPM(config))


def made(recipe, steps=3, **asked):
    *_, state = recipe.sample(Ask(2, sampler=DDIM(steps), **asked), rng=Seeds(0))
    return state.x


def test_negative_labels_take_the_place_of_none():
    recipe = labelled()
    told = [recipe.denoiser.given(recipe.label(torch.tensor([k, k]))) for k in (0, 2)]
    x = recipe.denoiser.process.prior((2, 3, 8, 8), Seeds(0))
    plain = DDIM(3)(guidance.classifier_free(*told, 4.0), x)
    assert torch.equal(made(recipe, labels=(0,), guidance=4.0, negative=(2,)), plain)
    assert torch.allclose(made(recipe, labels=(0,), guidance=4.0, negative=(0,)), made(recipe, labels=(0,)), atol=1e-4)


def test_a_weak_model_guides_with_and_without_labels():
    recipe, weak = labelled(), labelled()
    with torch.no_grad():
        for p in weak.parameters():
            p.mul_(0.9)
    cond = recipe.label(torch.tensor([1, 1])), weak.label(torch.tensor([1, 1]))
    x = recipe.denoiser.process.prior((2, 3, 8, 8), Seeds(0))
    both = recipe.denoiser.given(cond[0]), weak.denoiser.given(cond[1])
    assert torch.equal(
        made(recipe, labels=(1,), guidance=2.0, weak=weak), DDIM(3)(guidance.classifier_free(*both, 2.0), x)
    )
    plain, poor = labelled(classes=()), labelled(classes=())
    with torch.no_grad():
        for p in poor.parameters():
            p.mul_(0.9)
    assert not torch.equal(made(plain, guidance=2.0, weak=poor), made(plain))
    for other in (labelled(classes=NAMES[:2]), labelled(schedule="cosine")):
        with pytest.raises(UserError, match="process, shape and classes"):
            made(recipe, guidance=2.0, weak=other)


def test_an_interval_is_off_outside_and_rescaling_keeps_the_deviation():
    recipe = labelled()
    assert torch.equal(made(recipe, labels=(1,), guidance=3.0, interval=(0.0, 0.01)), made(recipe, labels=(1,)))
    whole = made(recipe, labels=(1,), guidance=3.0)
    assert torch.equal(made(recipe, labels=(1,), guidance=3.0, interval=(0.0, 1.0)), whole)
    told, null = (recipe.denoiser.given(c) for c in (recipe.label(torch.tensor([1, 1])), recipe.label.null(2)))
    x = recipe.denoiser.process.prior((2, 3, 8, 8), Seeds(0))
    for phi in (0.0, 0.7, 1.0):
        ours = guidance.classifier_free(told, null, 5.0, rescale=phi)(x, 0.5).eps
        theirs = rescale_noise_cfg(
            null(x, 0.5).eps + 5.0 * (told(x, 0.5).eps - null(x, 0.5).eps), told(x, 0.5).eps, phi
        )
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"guidance": float("nan")}, "finite"),
        ({"interval": (0.8, 0.2)}, "the lower first"),
        ({"rescale": 1.5}, "share"),
        ({"negative": (0,), "weak": DDPM(Config(network=SMALL))}, "one of them"),
    ],
)
def test_asked_for_what_no_guidance_is(asked, sentence):
    with pytest.raises(UserError, match=sentence):
        Ask(2, **asked)
