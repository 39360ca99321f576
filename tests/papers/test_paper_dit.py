"""DiT: its loss, its guidance of three channels, its steps and its presets."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.cli.flags import for_paper
from sfumato.cli.origin import starting_point
from sfumato.cli.parse import parse
from sfumato.core import times
from sfumato.core.posterior import large, learned, small
from sfumato.core.random import Seeds
from sfumato.engine import Options, fresh, load, steps
from sfumato.errors import UserError
from sfumato.networks.dit import DiTConfig
from sfumato.papers import dit
from sfumato.papers.dit import PRESETS, Config, DiT
from sfumato.recipe import Ask, Training
from sfumato.registry import config_from, outline, paper
from sfumato.samplers.ancestral import DDIM, Ancestral
from tests.papers.test_improved_ddpm import Pictures, by_hand
from tests.papers.tools import NAMES, at, loud

SMALL = DiTConfig(patch=2, width=24, depth=2, heads=2)
PUBLISHED = json.loads((Path(__file__).parent.parent / "reference" / "dit.json").read_text())["parameters"]


def recipe_of(**config):
    return loud(DiT(Config((3, 8, 8), network=SMALL, **config)))


class Told(nn.Module):
    """A network that is always told the same."""

    def __init__(self, network, vector):
        super().__init__()
        self.network, self.vector = network, vector

    def forward(self, x, time):
        return self.network(x, time, vector=self.vector)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [(), NAMES])
def test_loss_and_gradient_by_hand(classes):
    """The mean squared error of eps and, not scaled, the bound with the mean held; labels withheld now and then."""
    recipe = recipe_of(classes=classes, drop=0.5).double()
    x0 = (Seeds(5).uniform(8 * 192).reshape(8, 3, 8, 8) * 255).round() / 127.5 - 1
    batch = {"image": x0, "label": torch.arange(8) % 3}
    rng = at(range(8)).rng
    k = (recipe.draw(rng) * 1000).round().long() - 1
    other = DiT(recipe.config).double().eval()
    other.load_state_dict(recipe.state_dict())
    if classes:
        keep = rng.uniform() >= 0.5
        assert 0 < int(keep.sum()) < 8
        told = other.label.embedding(torch.where(keep, batch["label"], 3))
        other.denoiser.network = Told(other.denoiser.network, told)
    noise = rng.normal(x0.shape, dtype=torch.float64)
    expected, found = by_hand(other, x0, k, noise), recipe.loss(batch, at(range(8)))
    assert torch.allclose(found.per_sample, expected, rtol=1e-6)
    wanted = torch.autograd.grad(expected.mean(), list(other.parameters()))
    given = torch.autograd.grad(found.value, list(recipe.parameters()))
    sizes = sorted(g.norm().item() for g in wanted), sorted(g.norm().item() for g in given)
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-6)


def test_a_new_model_is_told_little_and_answers_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = DiT(Config((3, 8, 8), tuple(map(str, range(400))), SMALL))
    assert recipe.label.embedding.weight.detach().std().item() == pytest.approx(0.02, rel=0.03)
    batch = {"image": Seeds(1).normal((256, 3, 8, 8)), "label": torch.arange(256)}
    seen = recipe.loss(batch, at(range(256)))
    assert float(seen.scalars["mse"]) == pytest.approx(1.0, abs=0.02), "the variance of the noise"


def test_it_learns_two_tones():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DiTConfig(patch=4, width=32, depth=2, heads=2)
        recipe = DiT(Config((1, 8, 8), ("dark", "light"), network, predict="v", steps=20))
    optimiser, labels = torch.optim.Adam(recipe.parameters(), lr=3e-3), torch.arange(16) % 2
    x0 = (labels * 1.2 - 0.6).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    for step in range(150):
        value = recipe.loss({"image": x0, "label": labels}, at(range(16 * step, 16 * step + 16))).value
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    *_, state = recipe.sample(Ask(4, labels=(0, 1, 1, 0)), rng=Seeds(0))
    tone = recipe.picture(state).flatten(1).mean(1)
    assert torch.allclose(tone, torch.tensor([0.2, 0.8, 0.8, 0.2]), atol=0.12), tone


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "moved"), [(3, [True, True, True, False]), (0, [True] * 4)])
def test_the_release_guides_three_channels(channels, moved):
    """Its rule: eps of the first three is weak + scale (strong - weak); the fourth and the variance stay the strong
    ones. One call of the network a step."""
    config = Config((4, 8, 8), NAMES, replace(SMALL, channels=4), guided_channels=channels)
    recipe = loud(DiT(config))
    x, t, labels = Seeds(3).normal((2, 4, 8, 8)), 0.5, torch.tensor([0, 2])
    told, null = recipe.label.embedding(labels), recipe.label.embedding(torch.tensor([3, 3]))
    with torch.no_grad():
        strong, weak = (recipe.denoiser.network(x, torch.tensor([499.0]), vector=v) for v in (told, null))
        guess = recipe.guided(Ask(2, labels=(0, 2), guidance=4.0), [0, 1])(x, t)
    full = weak[:, :4] + 4.0 * (strong[:, :4] - weak[:, :4])
    for c, led in enumerate(moved):
        expected = (full if led else strong)[:, c]
        assert torch.allclose(guess.eps[:, c], expected, atol=1e-4 * full.abs().max().item())
        assert not torch.allclose(full[:, c], strong[:, c], atol=1e-2 * full.abs().max().item())
    assert torch.allclose(guess.nu, (strong[:, 4:] + 1) / 2, atol=1e-4)
    calls = []
    recipe.denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    list(recipe.sample(Ask(2, labels=(0, 2), guidance=4.0, sampler=DDIM(3)), rng=Seeds(0)))
    assert len(calls) == 3


def test_the_middle_of_the_learned_range():
    """o = 0: the logarithm of the variance halfway between those of beta and of the posterior."""
    table = DiT(Config((3, 8, 8), network=SMALL)).table
    t, s = table.points([0.7, 0.5])
    middle = float(learned(t, s, torch.full((1,), 0.5).double()))
    assert middle == pytest.approx((float(large(t, s)) * float(small(t, s))) ** 0.5, rel=1e-12)
    new = DiT(Config((3, 8, 8), network=SMALL)).denoiser
    assert new(torch.zeros(1, 3, 8, 8), t).nu.detach().mean().item() == 0.5, "where a new network begins"


def test_steps_and_noise_are_the_codes():
    """250 of 1000 entries, evenly spread with both ends; the betas between them are those of the whole table."""
    recipe = recipe_of()
    assert recipe.sampler() == Ancestral(250, times.strided, variance=learned)
    grid = recipe.sampler().spacing(recipe.table, 250, 1.0, 0.0)
    entries = (grid[:-1] * 1000).round().long() - 1
    assert entries.flip(0).tolist() == [round(i * 999 / 249) for i in range(250)]
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - beta, 0)[entries.flip(0)]
    ours = [float(large(t, s)) for t, s in itertools.pairwise(recipe.table.points(grid))]
    assert ours[::-1][1:] == pytest.approx((1 - kept[1:] / kept[:-1]).tolist(), rel=1e-9)
    assert recipe.table.points([1.0])[0].time == 999.0


def test_seeds_hold_and_sizes_are_free():
    recipe = recipe_of(classes=("a", "b"), steps=5)
    *_, a = recipe.sample(Ask(3, labels=(0, 1, 1), guidance=2.0), rng=Seeds(6))
    *_, b = recipe.sample(Ask(3, labels=(1, 1, 0), guidance=2.0), rng=Seeds.pictures([7, 8, 99]))
    assert torch.allclose(a.x[1:], b.x[:2], atol=1e-5)
    *_, c = recipe.sample(Ask(2, size=(9, 14)), rng=Seeds(6))
    assert c.x.shape == (2, 3, 9, 14) and bool(torch.isfinite(c.x).all())


# -- presets and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 64])
def test_the_released_models(side):
    preset = PRESETS[f"XL/2-{8 * side}"]
    config = replace(preset.config, classes=tuple(f"class {i}" for i in range(1000)))
    recipe = outline(lambda: DiT(config))
    counted = sum(p.numel() for p in recipe.parameters()) + (side // 2) ** 2 * 1152
    assert counted - PUBLISHED["XL/2"] == ((side // 2) ** 2 - 256) * 1152
    assert (config.shape, config.guided_channels, config.clip) == ((4, side, side), 3, False)
    assert [name for name, one in PRESETS.items() if one.config.latent] == ["XL/2-256", "XL/2-512"]
    assert {f.metric: f.value for f in preset.published} == (
        {"fid": 2.27, "is": 278.24} if side == 32 else {"fid": 3.04, "is": 240.82}
    )


def test_the_papers_presets_on_pixels():
    sized = [name for name in PRESETS if "/" in name and "-" not in name]
    assert sorted(sized) == sorted(PUBLISHED)
    for name in sized:
        config, t = PRESETS[name].config, PRESETS[name].training
        assert config.network.patch == int(name[-1]) and config.shape == (3, 64, 64)
        assert (config.schedule, config.T, config.steps, config.loss, config.predict) == (
            "linear",
            1000,
            250,
            "hybrid",
            "eps",
        )
        assert (t.batch, t.lr, t.weight_decay, t.warmup, t.clip) == (256, 1e-4, 0.0, 0, 0.0)
        assert (t.ema, t.ema_rule, config.drop) == (0.9999, "constant", 0.1)


def test_names_with_a_slash_and_options_of_the_network():
    found = paper("dit")
    words = ["dit", "photos/", "--preset", "S/2", "--config.network.depth", "3", "--config.guided-channels", "2"]
    start = starting_point(words, found)
    assert (start.preset, start.config) == ("S/2", PRESETS["S/2"].config)
    config = parse(for_paper(found, start.config, start.training), "train", words).config
    assert config == replace(start.config, network=replace(start.config.network, depth=3), guided_channels=2)
    with pytest.raises(UserError, match="did you mean 'XL/2'"):
        starting_point(["dit", "photos/", "--preset", "XXL/2"], found)


def test_a_run_is_kept_and_opened(tmp_path):
    config = Config((1, 4, 4), network=replace(SMALL, depth=1), steps=4)
    recipe = fresh("dit", config, 0)
    every = {"sample_every": 0, "evaluate_every": 0, "save_every": 0}
    options = Options(
        tmp_path / "run",
        Training(steps=3, batch=9, lr=1e-3, warmup=0, ema=0.5),
        device="cpu",
        precision="fp32",
        threads=1,
        workers=0,
        quiet=True,
        **every,
    )
    losses = [step.loss for step in steps(recipe, Pictures(), options)]
    assert len(losses) == 3
    final = load(tmp_path / "run", verify=True)
    assert isinstance(final, DiT) and final.config == config
    assert torch.isfinite(final.loss(Pictures().batch([0, 1]), at(range(2))).value)
    *_, a = final.sample(Ask(2), rng=Seeds(1))
    *_, b = load(tmp_path / "run").sample(Ask(2), rng=Seeds(1))
    assert torch.equal(a.x, b.x)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="guided_channels"):
        Config((3, 8, 8), guided_channels=4)
    with pytest.raises(UserError, match="widht"):
        config_from(Config, {"network": {"widht": 3}})
    assert dit.SIZES["S"] == Config().network
