"""The papers' own files: loss against an independent computation, learning, guidance, labels."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

import sfumato
from sfumato.core import parametrisation, times
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.papers import ddim, ddpm
from sfumato.papers.ddpm import DDPM, Config
from sfumato.recipe import Ask, Training, labels_or_spread
from sfumato.samplers.ancestral import DDIM, Ancestral, large, small
from tests.networks.to_diffusers import twin
from tests.papers.tools import NAMES, SMALL, at, loud


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_loss_and_gradient_equal_diffusers(schedule, predict):
    """The same weights, t and noise in UNet2DModel and DDPMScheduler."""
    recipe = loud(DDPM(Config((3, 8, 8), network=SMALL, schedule=schedule, predict=predict)))
    net, x0 = twin(recipe.denoiser.network, 8), Seeds(5).normal((4, 3, 8, 8)).clamp(-1, 1)
    rng = at(range(4)).rng
    k, eps = rng.integers(1000), rng.normal(x0.shape)
    limits = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}.get(schedule, {})
    theirs = DDPMScheduler(1000, beta_schedule={"cosine": "squaredcos_cap_v2"}.get(schedule, schedule), **limits)
    theirs.alphas_cumprod = recipe.denoiser.process.alpha_bar
    target = {"eps": eps, "x0": x0, "v": theirs.get_velocity(x0, eps, k)}[predict]
    expected = (net(theirs.add_noise(x0, eps, k), k).sample - target).square().mean()
    found = recipe.loss({"image": x0}, at(range(4)))
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-5) and torch.equal(
        found.t, (k + 1).double() / 1000
    )
    expected.backward()
    found.value.backward()
    assert torch.allclose(
        recipe.denoiser.network.encoder.stem.weight.grad, net.conv_in.weight.grad, rtol=1e-3, atol=1e-6
    )


def test_an_example_costs_the_same_in_every_batch():
    recipe = loud(DDPM(Config((1, 8, 8), NAMES, SMALL)))
    batch = {"image": Seeds(3).normal((6, 1, 8, 8)), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    whole = recipe.loss(batch, at(range(10, 16))).per_sample
    part = recipe.loss({name: value[2:5] for name, value in batch.items()}, at(range(12, 15))).per_sample
    assert torch.allclose(whole[2:5], part, rtol=1e-5)


def test_labels_are_dropped_as_often_as_asked_and_replaced_by_the_null():
    recipe = loud(DDPM(Config((1, 8, 8), NAMES, SMALL, drop=0.25)))
    seen = []
    recipe.denoiser.network.register_forward_pre_hook(
        lambda net, args, kwargs: seen.append(kwargs["vector"]), with_kwargs=True
    )
    recipe.loss({"image": torch.zeros(400, 1, 8, 8), "label": torch.full((400,), 1)}, at(range(400)))
    null = (seen[0] == recipe.label.embedding.weight[3]).all(1)
    assert torch.equal(~null, (seen[0] == recipe.label.embedding.weight[1]).all(1)) and 70 <= int(null.sum()) <= 130


def test_guidance_costs_two_and_scale_one_costs_one():
    recipe = loud(DDPM(Config((1, 8, 8), NAMES, SMALL)))
    sizes = []
    recipe.denoiser.network.register_forward_pre_hook(lambda net, args: sizes.append(len(args[0])))
    for guidance in (1.0, 2.5):
        list(recipe.sample(Ask(3, labels=(1,), guidance=guidance, sampler=DDIM(2)), rng=Seeds(0)))
    assert sizes == [3, 3, 6, 6]


@pytest.mark.parametrize("sampler", [DDIM(4), DDIM(4, eta=1.0), Ancestral(4)])
def test_a_seed_is_the_same_picture_at_equal_batch_shape(sampler):
    recipe = loud(DDPM(Config((1, 8, 8), NAMES, SMALL)))
    *_, a = recipe.sample(Ask(3, labels=(0, 1, 2), sampler=sampler), rng=Seeds(6))
    *_, b = recipe.sample(Ask(3, labels=(1, 2, 0), sampler=sampler), rng=Seeds.pictures([7, 8, 99]))
    assert torch.equal(a.x[1:3], b.x[:2])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_it_learns_and_samples_in_every_dimension(dims):
    """Two constant pictures, told apart by their label: a few steps suffice to draw the one that is asked for."""
    shape = (1, *(8,) * dims)
    network = UNetConfig(dims=dims, widths=(16, 16), blocks=1, attention=(), attend_middle=False, groups=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = DDPM(
            Config(shape, ("dark", "light"), network, schedule="shifted_cosine", predict="v", variance="small")
        )
    optimiser = torch.optim.Adam(recipe.parameters(), lr=2e-3)
    labels = torch.arange(16) % 2
    x0 = (labels * 1.2 - 0.6).reshape(-1, *(1,) * (dims + 1)).expand(-1, *shape)
    losses = []
    for step in range(120):
        loss = recipe.loss({"image": x0, "label": labels}, at(range(16 * step, 16 * step + 16))).value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    *_, state = recipe.sample(Ask(4, labels=(0, 1, 1, 0), sampler=DDIM(20)), rng=Seeds(0))
    tone = recipe.picture(state).flatten(1).mean(1)
    assert torch.allclose(tone, torch.tensor([0.2, 0.8, 0.8, 0.2]), atol=0.12), tone


@pytest.mark.parametrize("clip", [False, True])
def test_ddim_encodes_and_decodes(clip):
    network = replace(SMALL, groups=0)
    recipe = ddim.DDIM(Config((1, 8, 8), NAMES, network, schedule="shifted_cosine", predict="v", clip=clip))
    with torch.no_grad():
        for i, p in enumerate(recipe.parameters()):
            p.copy_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    x0, ask = 0.8 * Seeds(1).normal((2, 1, 8, 8)).clamp(-1, 1), Ask(2, labels=(2,))
    errors = []
    for steps in (50, 100, 200):
        x1 = sfumato.encode(recipe, (x0 + 1) / 2, replace(ask, sampler=DDIM(steps, times.uniform)))
        denoiser = recipe.denoiser.given(recipe.label(torch.tensor([2, 2])))
        errors.append(float((DDIM(steps)(denoiser, x1) - x0).abs().max()))
    assert errors[2] < 0.6 * errors[1] < 0.4 * errors[0] + 1e-3, errors


def test_the_ddim_code_s_settings():
    preset = ddim.PRESETS["lsun"]
    assert (preset.training.ema, preset.training.ema_rule, preset.config.clip) == (0.999, "constant", False)
    recipe = ddim.DDIM(Config((1, 8, 8), network=SMALL, clip=False))
    assert recipe.sampler() == DDIM(50, times.leading)
    k = (recipe.draw(Seeds.at(0, range(8))) * 1000 - 1).round()
    assert (k[0::2] + k[1::2] == 999).all()


def test_the_papers_presets():
    with torch.device("meta"):
        cifar, lsun, celeba = (
            DDPM(p.config) for p in (ddpm.PRESETS["cifar10"], ddpm.PRESETS["lsun"], ddim.PRESETS["celeba"])
        )
    count = [sum(p.numel() for p in recipe.parameters()) for recipe in (cifar, lsun, celeba)]
    assert count[0] == 35_746_307 and round(count[1] / 1e6, 3) == 113.673 and round(count[2] / 1e6, 3) == 78.701
    assert cifar.sampler() == Ancestral(1000, variance=large) and lsun.sampler() == Ancestral(1000, variance=small)
    assert cifar.denoiser.parametrisation is parametrisation.eps
    assert ddpm.PRESETS["cifar10"].training == Training(
        steps=800_000, batch=128, lr=2e-4, warmup=5_000, ema=0.9999, ema_rule="copy_first"
    )


def test_larger_pictures_get_more_noise():
    """The config keeps the shift of 32 pixels, so that fine-tuning and resuming cannot compound it."""
    config = ddpm.PRESETS["tiny"].config
    shifts = [ddpm.process_of(replace(config, shape=(3, n, n))).shift / config.shift for n in (16, 32, 64, 128)]
    assert shifts == [1, 1, 2, 4]


def test_a_table_that_leaves_a_signal_is_refused():
    with pytest.raises(UserError, match="T = 1000"):
        ddpm.process_of(Config(T=100))
    assert ddpm.process_of(Config(schedule="cosine", T=100)).alpha_bar[-1] < 1e-4


@pytest.mark.parametrize(
    ("ask", "says"),
    [(Ask(2, labels=(3,)), "label 3"), (Ask(2, labels=(-1,)), "label -1"), (Ask(4, labels=(0, 1)), "2 labels for 4")],
)
def test_labels_that_are_not_there_are_refused(ask, says):
    with pytest.raises(UserError, match=says):
        next(DDPM(Config((1, 8, 8), NAMES, SMALL)).sample(ask, rng=Seeds(0)))


def test_a_picture_s_class_is_a_function_of_its_seed():
    assert labels_or_spread(Ask(3), 4, Seeds(5).pictures_of(3)) == (1, 2, 3)
    assert labels_or_spread(Ask(2), 4, Seeds.pictures([9, 6]).pictures_of(2)) == (1, 2)


@pytest.mark.parametrize(("field", "value"), [("drop", 7.0), ("T", 0), ("steps", 0), ("shift", 0.0)])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        replace(Config(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("ema", 1.5), ("betas", (2.0, 3.0)), ("ema_rule", "images"), ("clip", -1.0), ("eps", 0.0)]
)
def test_impossible_training_is_refused(field, value):
    with pytest.raises(UserError, match=field):
        replace(Training(), **{field: value})


@pytest.mark.parametrize("ask", [Ask(2, labels=(1,)), Ask(2, guidance=2.0)])
def test_labels_are_refused_by_a_model_that_has_none(ask):
    with pytest.raises(UserError, match="without labels"):
        next(DDPM(Config((1, 8, 8), network=SMALL)).sample(ask, rng=Seeds(0)))
