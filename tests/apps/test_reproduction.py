"""What makes our figures incomparable with published ones, and what running costs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sfumato import registry
from sfumato.apps.reproduction import Done, beside, call_seconds, name_of_receipt, same_data, training_cost
from sfumato.metrics.receipt import Figure
from sfumato.recipe import Preset, Published

DDPM = registry.paper("ddpm").presets["cifar10"]
INCEPTION = "inception@299 (2048 features, tf1, 6726825d0af5)"
WHOLE = Done("data/cifar10.npz", (3, 32, 32), {"steps": 800_000, "batch": 128}, "ddpm in 1,000 steps")


def figure(**changes):
    return replace(Figure("fid", 3.2, 50_000, 50_000, INCEPTION), **changes)


def apart(ours, done=WHOLE, preset=DDPM):
    return beside(preset, [ours], done)[0].apart


def test_the_papers_own_protocol_compares():
    assert apart(figure()) == ()


@pytest.mark.parametrize(
    ("ours", "done", "says"),
    [
        (figure(features="lite0@64 (232 features, clean, 1)"), WHOLE, "other features than Inception's (lite0@64)"),
        (figure(n=100), WHOLE, "n = 100, and papers mostly take 50,000"),
        (figure(), replace(WHOLE, data="digits"), "other data than CIFAR-10"),
        (figure(), replace(WHOLE, shape=(1, 8, 8)), "pictures of 8 x 8, gray for 32 x 32, colour"),
        (figure(), replace(WHOLE, training={"steps": 200, "batch": 128}), "200 training steps for 800,000"),
        (figure(), replace(WHOLE, training={"steps": 800_000, "batch": 32}), "32 pictures a step for 128"),
    ],
)
def test_every_departure_is_said(ours, done, says):
    assert apart(ours, done) == (says,)


def test_a_figure_of_a_known_number_of_samples_asks_for_that_number():
    edm = registry.paper("edm").presets["cifar10"]
    done = replace(WHOLE, training={"steps": edm.training.steps, "batch": edm.training.batch})
    assert apart(figure(n=10_000), done, edm) == ("n = 10,000 for 50,000",)
    assert apart(figure(), done, edm) == ()


def test_another_walk_is_said():
    flow = Preset(DDPM.config, DDPM.training, published=(Published("fid", 3.9, "CIFAR-10", None, "x", "ode45"),))
    assert apart(figure(), WHOLE, flow) == ("theirs is by ode45, ours by ddpm in 1,000 steps",)


def test_rows_hold_what_was_published_and_what_was_measured():
    rows = beside(DDPM, [figure(), Figure("kid", 0.1, 50_000)], WHOLE)
    assert [row.published and row.published.metric for row in rows] == ["fid", "is", "bits", None]
    assert [row.ours and row.ours.metric for row in rows] == ["fid", None, None, "kid"]
    assert rows[1].apart == ("not measured here",)


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        ("CIFAR-10", "data/cifar10.npz", True),
        ("CIFAR-10", "hf:uoft-cs/cifar10", True),
        ("CIFAR-10", "cifar100.npz", False),
        ("ImageNet at 64 x 64", "imagenet/train", True),
        ("ImageNet at 64 x 64, with classes", "photos/", False),
        ("CelebA at 64 x 64", "/data/CelebA", True),
    ],
)
def test_a_data_set_is_known_by_its_name(theirs, ours, same):
    assert same_data(theirs, ours) == same


def test_a_sampler_that_is_another_paper_publishes_nothing_of_the_model_it_borrows():
    """dpm_solver, pndm and unipc walk DDIM's model in their own way: its figures are not theirs."""
    for name in ("dpm_solver", "pndm", "unipc"):
        assert not any(preset.published for preset in registry.paper(name).presets.values())


@pytest.mark.parametrize("name", registry.papers())
def test_published_figures_say_where_they_were_read(name):
    for preset in registry.paper(name).presets.values():
        for one in preset.published:
            assert one.source and one.data and one.value > 0 and (one.n is None or one.n >= 1000)
        told = [(one.metric, one.sampler, one.note) for one in preset.published]
        assert len(set(told)) == len(told), "two values of one figure"


def test_the_cost_of_a_call_is_timed_without_a_trace():
    made = registry.build("ddpm", registry.paper("ddpm").presets["tiny"].config).train()
    before, noise = {k: v.clone() for k, v in made.state_dict().items()}, torch.get_rng_state()
    seconds = call_seconds(made, 2)
    assert seconds is not None and 0 < seconds < 5 and made.training
    assert torch.equal(noise, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())


def test_training_costs_what_the_run_says_of_it():
    kept = Path(__file__).parent.parent.parent / "benchmarks" / "runs" / "fashion_edm"
    cost = training_cost(kept)
    assert cost["steps"] == 3000 and cost["images"] == 96_000 and cost["seconds"] > 60


def test_training_that_was_interrupted_is_counted_in_all_its_stretches(tmp_path):
    """Each resumption counts its seconds anew: 20 steps at 100 pictures a second, then 10 at 50."""
    (tmp_path / "config.yaml").write_text("training: {steps: 30}\n")
    lines = [
        {"step": 10, "images": 100, "seconds": 1.0, "rate": 100.0},
        {"step": 20, "images": 200, "seconds": 2.0, "rate": 100.0},
        {"step": 30, "images": 300, "seconds": 2.0, "rate": 50.0},
    ]
    write = lambda these: (tmp_path / "metrics.jsonl").write_text(  # noqa: E731
        "".join(json.dumps(line) + "\n" for line in these) + '{"step": 30, "held/model": 0.1}\n{"step'
    )
    write(lines)
    assert training_cost(tmp_path) == {"steps": 30, "images": 300, "seconds": 4.0}
    write(lines[:2])
    assert training_cost(tmp_path) == {"steps": 20, "images": 200, "seconds": 2.0}
    write([])
    assert training_cost(tmp_path) == {"steps": 30}


def test_a_receipt_is_found_again_by_its_question(tmp_path):
    asked = ("digest", "digits", 100, 0, "lite0", ("fid", "kid"), "ddpm in 100 steps")
    name = name_of_receipt(*asked)
    assert name == name_of_receipt(*asked[:5], ("kid", "fid"), asked[6])
    others = [name_of_receipt(*asked[:i], change, *asked[i + 1 :]) for i, change in enumerate(("d", "x", 9, 1, "own"))]
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"1")
    of_file = name_of_receipt(*asked[:4], str(weights), *asked[5:])
    weights.write_bytes(b"2")
    assert len({name, *others, of_file, name_of_receipt(*asked[:4], str(weights), *asked[5:])}) == 8
