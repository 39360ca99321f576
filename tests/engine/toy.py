"""Small recipes and data whose training can be followed by hand; `python -m tests.engine.toy` can be killed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.core.random import Seeds
from sfumato.core.schedules import VP
from sfumato.engine import Options, fresh, steps
from sfumato.recipe import Ask, At, Loss, Phase, Recipe, Training
from sfumato.samplers.sampler import State


@dataclass(frozen=True)
class Config:
    shape: tuple[int, ...] = (1, 4, 4)
    classes: tuple[str, ...] = ()
    width: int = 24
    dropout: float = 0.0
    phases: int = 1
    limit: int = 0  # more examples than this at a time: out of memory
    nan: tuple[int, ...] = ()  # steps with a NaN in the loss


class Toy(Recipe):
    """Predicts x0 of x_t = (1 - t) x0 + t eps by two linear layers; counts and remembers in buffers."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        n = int(np.prod(config.shape))
        self.net = nn.Sequential(
            nn.Linear(n + 1, config.width), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(config.width, n)
        )
        self.other = nn.Linear(n, 1)
        self.other.requires_grad_(config.phases > 1)
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("history", torch.zeros(8, dtype=torch.float64))
        self.register_buffer("table", torch.linspace(0, 1, 5), persistent=False)

    def phases(self) -> dict[str, Phase]:
        main = Phase(tuple(self.net.parameters()))
        return (
            {"model": main}
            if self.config.phases == 1
            else {"generator": main, "critic": Phase(tuple(self.other.parameters()), every=2, ema=False, lr=0.5)}
        )

    def predict(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([xt.flatten(1), t.float()[:, None].to(xt.device)], 1)).reshape(xt.shape)

    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        x0 = batch["image"]
        if self.config.limit and len(x0) > self.config.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        t = at.rng.uniform(len(x0))
        eps = at.rng.normal(x0.shape, device=x0.device)
        ts = t.float().to(x0.device).reshape(-1, *[1] * (x0.dim() - 1))
        guess = self.predict((1 - ts) * x0 + ts * eps, t)
        if at.phase == "critic":
            error = (self.other(guess.flatten(1)).float() - 1.0).square().mean(1)
        else:
            error = (guess.float() - x0).square().flatten(1).mean(1) + (
                0.01 * self.other(guess.flatten(1)).float().square().mean(1) if self.config.phases > 1 else 0.0
            )
        value = error.mean()
        if at.step in self.config.nan:
            value = value * float("nan")
        return Loss(value, {"size": error.detach().mean()}, error.detach(), t)

    def after(self, at: At, seen: Loss) -> None:
        self.seen += 1
        self.history.lerp_(torch.full_like(self.history, float(seen.value)), 0.1)

    def sample(self, ask: Ask, *, rng: Seeds) -> Iterator[State]:
        process = VP()
        x = rng.normal((ask.n, *self.config.shape))
        for point in process.points(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))[1:]:
            torch.rand(7)  # a recipe that is careless with the global generator
            x = self.predict(x, torch.full((ask.n,), float(point.t)))
            yield State(x, point)

    def picture(self, state: State, *, quick: bool = False) -> Tensor:
        return (state.x * 0.5 + 0.5).clamp(0, 1)


class Pictures:
    """Pictures that lie near a few prototypes."""

    classes: tuple[str, ...] = ()

    def __init__(self, n: int = 50, shape: tuple[int, ...] = (1, 4, 4)) -> None:
        draw = np.random.default_rng(3)
        kinds = draw.uniform(-1, 1, (4, *shape))
        self.images = (kinds[np.arange(n) % 4] + 0.05 * draw.normal(size=(n, *shape))).astype(np.float32)
        self.names = tuple(f"picture {i}" for i in range(n))
        self.shape = shape

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray, rng: Seeds | None = None) -> dict[str, Any]:
        images = torch.from_numpy(self.images[indices])
        if rng is not None:
            flipped = rng.uniform(len(images)) < 0.5
            images = torch.where(flipped.reshape(-1, *[1] * (images.dim() - 1)), images.flip(-1), images)
        return {"image": images, "index": torch.from_numpy(np.asarray(indices)), "text": [""] * len(indices)}


def build_toy(paper: str, config: Mapping[str, Any]) -> Recipe:
    return Toy(Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}))


def toy(seed: int = 0, **changes: Any) -> Toy:
    recipe = fresh("toy", changes, seed, builder=build_toy)
    assert isinstance(recipe, Toy)
    return recipe


def options(out: Path | None = None, *, steps: int = 40, batch: int = 8, **changes: Any) -> Options:
    training = {k: changes.pop(k) for k in list(changes) if k in Training.__dataclass_fields__}
    given = {
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "workers": 0,
        "save_every": 10,
        "sample_every": 0,
        "log_every": 7,
        "evaluate_every": 0,
        "quiet": True,
    } | changes
    return Options(
        out=out,
        training=Training(**{"steps": steps, "batch": batch, "lr": 3e-3, "warmup": 5, "ema": 0.9} | training),
        **given,
    )


def train(recipe: Recipe, chosen: Options, *, data: Any = None, resume: bool = False, held: Any = None) -> list[Any]:
    return list(steps(recipe, data or Pictures(), chosen, held=held, resume=resume))


def main(out: str, settings: str, told: Callable[[int], object] = print) -> None:
    """A run in a process of its own, told of each step; settings is a Python dict of options, recipe changes under
    "recipe"."""
    import ast

    given = ast.literal_eval(settings)
    seed = given.get("seed", 0)
    recipe = toy(seed, **given.pop("recipe", {}))
    folder = Path(out)
    if seconds := given.pop("slow", 0.0):
        import time

        inner = recipe.after
        recipe.after = lambda at, seen: (time.sleep(seconds), inner(at, seen))[1]  # type: ignore[method-assign]
    last = None
    for last in steps(recipe, Pictures(), options(folder, **given), resume=(folder / "config.yaml").exists()):
        told(last.step)
    if last is not None and last.stopped:
        from sfumato.engine import EXIT_CODES

        sys.exit(EXIT_CODES[last.stopped])


if __name__ == "__main__":
    main(*sys.argv[1:])
