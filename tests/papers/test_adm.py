"""ADM: its three stages. Losses and gradients by independent computation, exact resume, the posterior, presets."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sfumato.core import guidance
from sfumato.core.oracle import Gaussian, Mixture
from sfumato.core.random import Seeds
from sfumato.engine import load
from sfumato.engine.state import begin
from sfumato.engine.train import fresh, steps
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.noised import Noised, bases, remembered
from sfumato.papers import ddpm, edm, score_sde
from sfumato.papers.adm import ADM, PRESETS, Classifier, Config, Enlarge, Upsampler, cropped
from sfumato.recipe import Ask
from sfumato.registry import config_dict, config_from, paper
from sfumato.samplers.ancestral import DDIM, Ancestral, mean
from tests.engine.compare import same
from tests.engine.toy import Pictures, options, train
from tests.papers.tools import LEAST, NAMES, SMALL, at, loud

TINY = replace(SMALL, groups=0)
READER = UNetConfig(widths=(16, 16), blocks=1, attention=(1,), head_width=8, groups=0)


def config(**more):
    return Config((1, 8, 8), NAMES, TINY, reader=READER, drop=0.0, **more)


def classifier(base=None, **more):
    base = base or ddpm.Config((1, 8, 8), network=LEAST, schedule="linear")
    return loud(ADM(config(stage="classifier", base=remembered(base), **more)))


class Labelled(Pictures):
    """With the prototype of a picture as its class."""

    classes = ("a", "b", "c", "d")

    def batch(self, indices, rng=None):
        return {**super().batch(indices, rng), "label": torch.as_tensor(indices) % 4}


# -- the model ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_code():
    """L_simple plus the unscaled term of the bound in bits, its mean held, on the linear table: written out."""
    recipe = loud(ADM(config())).double()
    x, place = Seeds(5).normal((4, 1, 8, 8), dtype=torch.float64).clamp(-1, 1), at(range(4))
    label = torch.tensor([0, 2, 1, 0])
    t = recipe.draw(place.rng)
    place.rng.uniform()  # whose label is withheld: nobody's
    eps = place.rng.normal(x.shape, dtype=torch.float64)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
    k = (t * 1000).round().long()
    a, before, b = (c.reshape(-1, 1, 1, 1) for c in (bar[k], bar[k - 1], beta[k - 1]))
    xt = a.sqrt() * x + (1 - a).sqrt() * eps
    out, o = recipe.denoiser.network(xt, (k - 1).double(), vector=recipe.label(label).vector).chunk(2, 1)
    truth, held = (
        (before.sqrt() * b * x0 + (1 - b).sqrt() * (1 - before) * xt) / (1 - a)
        for x0 in (x, (xt - (1 - a).sqrt() * out.detach()) / a.sqrt())
    )
    low = b * (1 - before) / (1 - a)
    nu = (o + 1) / 2
    guess = nu * b.log() + (1 - nu) * low.log()
    kl = 0.5 * (guess - low.log() - 1 + (low.log() - guess).exp() + (truth - held).square() / guess.exp())
    assert (k > 1).all()
    expected = (out - eps).square().mean() + kl.mean() / math.log(2)
    found = recipe.loss({"image": x, "label": label}, at(range(4)))
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_config_makes_the_recipe_of_its_stage_and_copies_are_of_it():
    for stage, kind in (("model", ADM), ("upsampler", Upsampler)):
        recipe = ADM(config(stage=stage, factor=2))
        assert type(recipe) is kind and type(copy.deepcopy(recipe)) is kind and recipe.stages == ADM.stages
    assert type(copy.deepcopy(classifier())) is Classifier


def test_guided_steps_of_the_authors_presets_are_the_codes():
    recipe = ADM(config(guide="mean", steps=25))
    own = recipe.sampler()
    assert own.guide is mean
    assert [round(1000 * p.t) - 1 for p in own.points(recipe.table)[:3]] == [999, 957, 916]  # space_timesteps(1000, 25)


# -- the classifier ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["ddpm", "edm"])
def test_the_classifiers_loss_is_cross_entropy_on_noised_pictures(base):
    """Written out for a table, told the index, and for EDM, scaled and told log(sigma) / 4; with the gradient."""
    of = {"ddpm": ddpm.Config((1, 8, 8), network=LEAST, schedule="linear"), "edm": edm.Config((1, 8, 8), network=LEAST)}
    recipe = classifier(of[base])
    x, label, place = Seeds(5).normal((6, 1, 8, 8)).clamp(-1, 1), torch.tensor([0, 2, 1, 0, 1, 2]), at(range(6))
    t = recipe.noised.base.draw(place.rng)
    eps = place.rng.normal(x.shape)
    if base == "ddpm":
        bar = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)
        k = (t * 1000).round().long() - 1
        a = bar[k].float().reshape(-1, 1, 1, 1)
        logits = recipe.network(a.sqrt() * x + (1 - a).sqrt() * eps, k.float())
    else:
        s = (recipe.noised.process.at(t).sigma).float()
        c = s.reshape(-1, 1, 1, 1)
        logits = recipe.network((x + c * eps) / (c**2 + 0.25).sqrt(), s.log() / 4)
    expected = F.cross_entropy(logits, label)
    found = recipe.loss({"image": x, "label": label}, at(range(6)))
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = list(recipe.parameters())
    theirs, ours = torch.autograd.grad(expected, weights), torch.autograd.grad(found.value, weights)
    assert all(torch.allclose(p, q, rtol=1e-3, atol=1e-6) for p, q in zip(ours, theirs, strict=True))
    assert float(found.scalars["accuracy"]) == pytest.approx(float((logits.argmax(1) == label).float().mean()))


def test_the_classifier_is_told_the_original_entry_under_respacing():
    """Its log p and gradient at x_t against the network's own, in 10 steps of 1000 and in DDIM's."""
    recipe, model = classifier(), ADM(config())
    spied, labels = [], torch.tensor([1, 2])
    recipe.network.register_forward_pre_hook(lambda net, args: spied.append(args[1].tolist()))

    class Fixed(torch.nn.Module):
        def forward(self, x, time, **told):
            return torch.cat([0.1 * x, torch.zeros_like(x)], 1)

    model.denoiser.network = Fixed()
    tilted = guidance.tilt(model.denoiser, recipe.log_prob(labels))
    x = Seeds(0).normal((2, 1, 8, 8))
    for walk in (replace(model.sampler(), steps=10), DDIM(10, model.sampler().spacing)):
        spied.clear()
        walk(tilted, x, rng=Seeds(1))
        assert [round(time) for (time,) in spied] == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    point, seen = model.table.at(0.5), x.clone().requires_grad_()
    expected = recipe.network(seen, torch.tensor([499.0])).log_softmax(1)[range(2), labels]
    (gradient,) = torch.autograd.grad(expected.sum(), seen)
    assert torch.allclose(tilted(x, point).pull, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in bases() if name != "adm"])
def test_any_paper_that_makes_pixels_is_a_base(name):
    """Its process, its draws, its range: x_t are those of the base's own loss."""
    preset = paper(name).presets["tiny"].config
    noised = Noised(remembered(replace(preset, shape=(1, 8, 8))))
    own = paper(name).recipe(replace(preset, shape=(1, 8, 8)))
    rng = at(range(5)).rng
    seen = noised.see(Seeds(1).normal((5, 1, 8, 8)).clamp(-1, 1), at(range(5)).rng)
    assert torch.equal(seen.t, own.draw(rng)) and noised.misfit(own) == ""
    x, time = noised.told(seen.x, seen.t)
    reader = replace(READER, channels=noised.channels)
    assert x.shape[1] == reader.channels and time.shape == (5,) and bool(torch.isfinite(x).all())


def test_another_noise_shape_or_range_does_not_fit():
    noised = Noised(remembered(ddpm.Config((1, 8, 8), network=LEAST, schedule="linear")))
    for other, word in (
        (ddpm.Config((1, 8, 8), network=LEAST, schedule="cosine"), "otherwise"),
        (edm.Config((1, 8, 8), network=LEAST), "edm"),
        (ddpm.Config((3, 8, 8), network=LEAST, schedule="linear"), "3 x 8 x 8"),
    ):
        assert word in noised.misfit(paper(type(other).__module__.rpartition(".")[2]).recipe(other))
    ranges = [score_sde.PRESETS["tiny"].config, replace(score_sde.PRESETS["tiny"].config, sde="ve")]
    assert Noised(remembered(ranges[0])).misfit(paper("score_sde").recipe(replace(ranges[1], network=LEAST)))
    with pytest.raises(UserError, match="damaged"):
        Noised("{}")


def test_what_noise_hides_moves_no_score():
    """A cosine walk begins where the signal is nearly 0: there a false slope would be multiplied by a thousand."""
    recipe = classifier(ddpm.Config((1, 8, 8), network=LEAST, schedule="shifted_cosine"))
    process = recipe.noised.process
    assert process.at(recipe.window[1]).ratio == pytest.approx(8.0, rel=1e-6)  # the root of 64 numbers
    oracle = Gaussian(process, 0.0, 0.3)
    tilted = guidance.tilt(oracle, recipe.log_prob([1, 2]), 5.0, interval=recipe.window)
    x = process.prior((2, 1, 8, 8), Seeds(0))
    assert tilted(x, 1.0).pull is None and tilted(x, 0.9).pull is not None
    assert float(DDIM(10)(tilted, x).abs().max()) < 5


def test_crops_are_windows():
    """On a picture that is a ramp, a window is another ramp, of its slope times the side and within its ends."""
    ramp = torch.linspace(-0.9, 0.9, 16).expand(64, 1, 16, 16).contiguous()
    made = cropped(ramp, at(range(64)).rng, 0.8)
    slope = (made[:, 0, 8, 10] - made[:, 0, 8, 5]) / (ramp[0, 0, 8, 10] - ramp[0, 0, 8, 5])
    assert bool(((slope > 0.79) & (slope < 1.01)).all()) and float(slope.std()) > 0.04
    middle = made[:, 0, 8, 7:9].mean(1)
    assert bool((middle.abs() <= 0.9 * (1 - slope) + 1e-2).all()) and float(middle.std()) > 0.02
    assert cropped(ramp, at(range(64)).rng, 1.0) is ramp
    recipe = classifier().eval()
    batch = {"image": ramp[:4, :, :8, :8], "label": torch.zeros(4, dtype=torch.long)}
    assert recipe.loss(batch, at(range(4))).value != recipe.train().loss(batch, at(range(4))).value


class MLP(torch.nn.Module):
    """A small reader of points of the line."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(6, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
        )

    def forward(self, x, time):
        x, u = 2 * x.flatten(1), 2 * (time.expand(len(x)) / 1000)[:, None]
        return self.layers(torch.cat([x, x**2, u, u**2, x * u, x**2 * u], 1))


def test_it_recovers_the_analytic_posterior():
    """Two classes of normal points of the line: after training, p(y | x_t) at every noise level."""
    base = ddpm.Config((1, 1), network=LEAST, schedule="cosine")
    recipe = ADM(Config((1, 1), ("a", "b"), LEAST, stage="classifier", reader=LEAST, base=remembered(base)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe.network = MLP()
    means, stds = torch.tensor([-0.5, 0.4]), torch.tensor([0.3, 0.2])
    optimiser, total, n = torch.optim.AdamW(recipe.parameters(), lr=1e-2, weight_decay=0.05), 500, 128
    for step in range(total):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / total)
        place = at(range(n * step, n * step + n), step, total)
        label = torch.arange(n) % 2
        image = means[label] + stds[label] * Seeds(step).normal((1, n))[0]
        loss = recipe.loss({"image": image.reshape(n, 1, 1), "label": label}, place)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
    process = recipe.noised.process
    oracle = Mixture(process, means[:, None, None], stds, torch.tensor([0.5, 0.5]))
    for t in (0.05, 0.3, 0.6, 0.95):
        point = process.at(t)
        x = point.alpha * means.mean() + torch.linspace(-1.2, 1.2, 41)[:, None, None]
        truth = oracle.responsibilities(x, point)
        found = recipe.logits(x, point).detach().softmax(1)
        near = oracle.log_prob(x, point).exp() > 0.05
        assert float((found - truth).abs()[near].max()) < 0.08, t


# -- the upsampler -----------------------------------------------------------------------------------------------------


def test_the_upsampler_sees_the_mean_of_cells_enlarged():
    """Its loss with the condition written out: 4 x 4 means, bilinear without aligned corners."""
    recipe = loud(ADM(config(stage="upsampler")))
    x, label = Seeds(5).normal((4, 1, 8, 8)).clamp(-1, 1), torch.tensor([0, 2, 1, 0])
    low = x.reshape(4, 1, 2, 4, 2, 4).mean((3, 5))
    rows = torch.tensor([[max(0.0, min(1.0, (i + 0.5) / 4 - 0.5)) for i in range(8)]])
    blend = torch.cat([1 - rows, rows]).T  # (8, 2): weights of the two cells
    expected = blend @ low @ blend.T
    seen = []
    recipe.denoiser.network.register_forward_pre_hook(lambda net, args, named: seen.append(named), with_kwargs=True)
    recipe.loss({"image": x, "label": label}, at(range(4)))
    assert torch.allclose(seen[0]["spatial"], expected, atol=1e-6) and seen[0]["vector"].shape[0] == 4
    low8 = (low * 127.5 + 127.5).round() / 255
    *_, state = recipe.sample(Enlarge(4, (0, 2, 1, 0), low=low8, sampler=DDIM(2)), rng=Seeds(0))
    assert torch.allclose(seen[-1]["spatial"], expected, atol=1 / 127) and recipe.picture(state).shape == (4, 1, 8, 8)


def test_an_upsampler_needs_a_picture_of_its_size_and_its_classes():
    recipe = loud(ADM(config(stage="upsampler")))
    asks = {
        "no picture": Ask(2),
        "must be": Enlarge(2, (0,), low=torch.zeros(1, 1, 4, 4)),
        "always told a class": Enlarge(2, low=torch.zeros(1, 1, 2, 2)),
    }
    for word, ask in asks.items():
        with pytest.raises(UserError, match=word):
            next(iter(recipe.sample(ask, rng=Seeds(0))))
    with pytest.raises(UserError, match="no multiple"):
        config(stage="upsampler", factor=3)


def test_guidance_and_steering_of_an_upsampler():
    """Guided towards a class the small picture is told to both halves; without classes nothing is."""
    recipe, plain = (loud(ADM(replace(config(stage="upsampler"), classes=c, drop=0.2))) for c in (NAMES, ()))
    low = torch.rand(1, 1, 2, 2)
    x = Seeds(3).normal((2, 1, 8, 8))
    spatial = recipe.beside(low * 2 - 1, (8, 8)).expand(2, -1, -1, -1)
    told, null = (
        recipe.denoiser(x, 0.5, replace(c, spatial=spatial))
        for c in (recipe.label(torch.tensor([1, 1])), recipe.label.null(2))
    )
    guided = recipe.towards(Enlarge(2, (1,), 3.0, low=low), torch.tensor([1, 1]))(x, 0.5)
    assert torch.allclose(guided.eps, null.eps + 3 * (told.eps - null.eps), atol=1e-5)
    assert torch.allclose(recipe.towards(Enlarge(2, low=low), torch.tensor([0, 1]))(x, 0.5).eps, null.eps, atol=1e-6)
    assert torch.isfinite(plain.towards(Enlarge(2, low=low), None)(x, 0.5).eps).all()


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["model", "classifier", "upsampler"])
def test_every_stage_resumes_exactly(stage, tmp_path):
    data, of = Labelled(shape=(1, 8, 8)), ddpm.Config((1, 8, 8), network=LEAST)
    more = {}
    made = Config((1, 8, 8), data.classes, LEAST, reader=READER, stage=stage, factor=2, drop=0.1)
    if stage == "classifier":
        train(fresh("ddpm", of, 0), options(tmp_path / "base", steps=2), data=data)
        made, more = ADM.upon(made, of), {"init_from": tmp_path / "base"}
    chosen = {"steps": 8, "save_every": 4, **more}
    train(fresh("adm", made, 0), options(tmp_path / "whole", **chosen), data=data)
    run = steps(fresh("adm", made, 0), data, options(tmp_path / "broken", **chosen))
    for _ in range(5):
        next(run)
    run.close()
    train(fresh("adm", made, 0), options(tmp_path / "broken", **chosen), data=data, resume=True)
    assert same(tmp_path / "whole", tmp_path / "broken")
    final = load(tmp_path / "whole")
    assert final.config == made and type(final).__name__ == {"model": "ADM"}.get(stage, stage.capitalize())
    assert not list((tmp_path / "whole" / "samples").glob("*.png")) or stage == "model"
    if stage != "model":
        with pytest.raises(UserError, match="this run"):
            next(iter(final.sample(Ask(1), rng=Seeds(0))))


def test_a_classifier_is_trained_upon_a_run_that_makes_pictures(tmp_path):
    with pytest.raises(UserError, match="--from RUN"):
        ADM(config(stage="classifier"))
    for classes in ((), ("a",)):
        with pytest.raises(UserError, match="--labels"):
            ADM(replace(config(stage="classifier", base=remembered(ddpm.Config())), classes=classes))
    with pytest.raises(UserError, match="must make pictures"):
        ADM.upon(config(stage="classifier"), config(stage="upsampler"))
    of = edm.Config((1, 8, 8), network=LEAST)
    train(fresh("edm", of, 0), options(tmp_path / "edm", steps=1), data=Pictures(shape=(1, 8, 8)))
    made = ADM.upon(config(stage="classifier"), of)
    assert "Built upon" in begin(fresh("adm", made, 0), tmp_path / "edm")
    with pytest.raises(UserError, match="base must be"):
        begin(fresh("adm", ADM.upon(made, replace(of, low=0.01)), 0), tmp_path / "edm")
    assert ADM.apart(made, replace(of, classes=("x", "y", "z"))) == "classes"


# -- presets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "millions", "reads"),
    [
        ("imagenet64", 1000, 295.904, 65.439),
        ("imagenet128", 1000, 421.530, 42.568),
        ("imagenet256", 1000, 553.838, 54.096),
        ("imagenet256_uncond", 0, 552.814, 0),
        ("imagenet512", 1000, 558.998, 54.448),
        ("lsun", 0, 552.814, 0),
        ("upsample256", 1000, 311.796, 0),
        ("upsample512", 1000, 308.835, 0),
    ],
)
def test_the_authors_presets_have_the_official_parameters(name, classes, millions, reads):
    """Ours has a row more in the table of classes, for "not told"."""
    preset = PRESETS[name]
    made = replace(preset.config, classes=tuple(map(str, range(classes))))
    with torch.device("meta"):
        recipe = ADM(made)
        reader = ADM(replace(made, stage="classifier", base=remembered(made))) if reads else None
    spare = recipe.label.embedding.weight.shape[1] if recipe.label else 0
    assert round((sum(p.numel() for p in recipe.parameters()) - spare) / 1e6, 3) == millions
    if reader is not None:
        assert round(sum(p.numel() for p in reader.parameters()) / 1e6, 3) == reads
        assert (preset.stages["classifier"].weight_decay, preset.stages["classifier"].decay) == (0.05, "linear")
    assert recipe.sampler().steps == (1000 if name == "lsun" else 250) and not preset.config.rescale_bound
    assert isinstance(recipe.sampler(), Ancestral) and preset.config.schedule == (
        "cosine" if name == "imagenet64" else "linear"
    )


def test_configs_are_plain():
    made = config(stage="classifier", base=remembered(edm.Config((1, 8, 8))))
    assert config_from(Config, config_dict(made)) == made
