"""A model is assembled around the file's own pages: no second copy, no initialisation, no lost table."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.engine import load, steps
from sfumato.engine.state import _weightless, start_from
from sfumato.errors import UserError
from tests.engine.toy import Config, Pictures, Toy, build_toy, options, toy, train


def test_a_loaded_model_is_the_averaged_one(tmp_path: Path) -> None:
    recipe = toy()
    last = train(recipe, options(tmp_path))[-1]
    for where in (tmp_path, tmp_path / "final", tmp_path / "checkpoints" / "step_00000040"):
        back = load(where, builder=build_toy, verify=True)
        assert not back.training and torch.equal(back.frozen, recipe.frozen) and torch.equal(back.table, recipe.table)
        assert back.seen == 40 and [p.requires_grad for p in back.parameters()] == [
            p.requires_grad for p in recipe.parameters()
        ]
        assert not torch.equal(back.net[0].weight, recipe.net[0].weight)
    assert last.line["ema_lag"] > 0


def test_without_a_final_the_newest_checkpoint_serves(tmp_path: Path) -> None:
    part = steps(toy(), Pictures(), options(tmp_path))
    list(islice(part, 25))
    part.close()
    assert load(tmp_path, builder=build_toy).seen == 20


class Curious(Toy):
    """Looks at its weights while it is built."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.largest = float(self.net[0].weight.abs().max())
        self.register_buffer("shadow", self.net[0].weight.detach().abs(), persistent=False)


class Shadow(Toy):
    """A table of values made from the weights, not saved."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("shadow", self.net[0].weight.detach().abs(), persistent=False)


@pytest.mark.parametrize("kind", [Curious, Shadow])
def test_a_recipe_that_looks_at_its_weights_is_built_in_full(tmp_path: Path, kind: type[Toy]) -> None:
    train(toy(), options(tmp_path))
    back = load(tmp_path, builder=lambda paper, config: kind(build_toy(paper, config).config))
    assert not back.shadow.is_meta and torch.isfinite(back.shadow).all()


def test_building_without_weights_keeps_buffers_and_ties() -> None:
    with _weightless():
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm2d(3), nn.Linear(4, 4))
        net[2].weight = net[0].weight
    assert all(p.is_meta for p in net.parameters()) and net[2].weight is net[0].weight
    assert torch.equal(net[1].running_var, torch.ones(3))
    assert not nn.Linear(2, 2).weight.is_meta


def test_training_a_loaded_model_leaves_the_file_alone(tmp_path: Path) -> None:
    train(toy(), options(tmp_path))
    before = (tmp_path / "final" / "model.safetensors").read_bytes()
    recipe = load(tmp_path, builder=build_toy)
    train(recipe, options(steps=5))
    assert (tmp_path / "final" / "model.safetensors").read_bytes() == before


MEMORY = """
import sys
from pathlib import Path
from sfumato.engine import load
from tests.engine.toy import build_toy
import torch
def peak():     # of this process alone; ru_maxrss begins with the parent's
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
load(sys.argv[2], builder=build_toy)
start = peak()
recipe = load(sys.argv[1], builder=build_toy)
total = sum(float(p.sum()) for p in recipe.parameters())        # every page is touched
print(peak() - start)
"""


def test_loading_takes_the_memory_of_one_copy(tmp_path: Path) -> None:
    """128 MB of weights: the peak grows by them once (file pages, which the system may drop), not twice."""
    train(toy(), options(tmp_path / "small", steps=1))
    recipe = toy(width=1_000_000)
    size = sum(p.numel() * 4 for p in recipe.parameters())
    train(recipe, options(tmp_path / "large", steps=1))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "large", tmp_path / "small"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 1.1 * size


def test_a_longer_run_outgrows_its_final_model(tmp_path: Path) -> None:
    """20 steps, finished; then 40, interrupted: from the first checkpoint beyond 20 on, the old final/ is gone."""
    train(toy(), options(tmp_path, steps=20))
    for more, seen, final in ((5, 20, True), (15, 30, False)):
        part = steps(toy(), Pictures(), options(tmp_path, steps=40), resume=True)
        list(islice(part, more))
        part.close()
        assert load(tmp_path, builder=build_toy).seen == seen and (tmp_path / "final").exists() == final
    train(toy(), options(tmp_path, steps=40), resume=True)
    train(toy(), options(tmp_path / "whole", steps=40))
    ours, theirs = (load(out / "final", builder=build_toy).state_dict() for out in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_that_is_not_beyond_it_leaves_the_final_model(tmp_path: Path) -> None:
    """The newest checkpoint of a finished run is damaged: what is repeated is not newer than final/."""
    train(toy(), options(tmp_path))
    (tmp_path / "checkpoints" / "step_00000040" / "ema.safetensors").unlink()
    part = steps(toy(), Pictures(), options(tmp_path, save_every=5), resume=True)
    assert [step.step for step in islice(part, 7) if step.saved] == [35]
    part.close()
    assert load(tmp_path, builder=build_toy).seen == 40


def test_fine_tuning_on_other_classes_is_refused(tmp_path: Path) -> None:
    train(toy(classes=("a", "b")), options(tmp_path / "base", steps=1))
    many = tuple(f"class {i}" for i in range(30))
    for classes, named in ((("b", "c"), "b, c"), (("b", "a"), "b, a"), (many, "class 7 and 22 more")):
        with pytest.raises(
            UserError, match=rf"classes a, b, and this run has .*{named}: fine-tune on the same classes"
        ):
            train(toy(classes=classes), options(tmp_path / "tuned", init_from=tmp_path / "base"))
        assert not (tmp_path / "tuned" / "config.yaml").exists()
    for classes in ((), ("a", "b")):
        start_from(toy(classes=classes), tmp_path / "base")


def test_what_does_not_fit_is_said_in_one_sentence(tmp_path: Path) -> None:
    train(toy(classes=("a", "b")), options(tmp_path, steps=1))
    for other in ({"width": 9}, {"classes": ("b", "c")}):
        with pytest.raises(UserError, match="fine-tune") as caught:
            start_from(toy(**other), tmp_path)
        assert ". " not in str(caught.value) and str(caught.value).endswith(".")
