"""A run as a set of pictures: picture i is sampled when it is asked for, from the seed `seed + i`, as 8 bits."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.cli.parse import nearest
from sfumato.cli.request import refuse_labels
from sfumato.cli.samplers import facts, length, own_sampler
from sfumato.core.random import Seeds, key
from sfumato.data import Dataset
from sfumato.errors import UserError
from sfumato.metrics.features import levels, state_digest
from sfumato.metrics.shelf import Ints
from sfumato.recipe import Ask, Recipe
from sfumato.samplers.sampler import Sampler

__all__ = ["Cost", "Sampled", "Sampling", "facts_of", "planned"]

Plan = Callable[[int, int], int]  # (position, seed) of a picture to its class


@dataclass(frozen=True)
class Sampling:
    """How a run is sampled: picture i has the seed `seed + i`.

    sampler    None: the run's own
    labels     names of classes, in turn; (): all that the run knows
    classes    even: each class as often, in turn; data: as often as in the reference, drawn by the picture's seed
    """

    seed: int = 0
    sampler: Sampler | None = None
    guidance: float = 1.0
    labels: tuple[str, ...] = ()
    classes: Literal["even", "data"] = "even"
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass
class Cost:
    """What sampling took here: pictures, seconds, and calls of the network (a call for two pictures is two)."""

    pictures: int = 0
    seconds: float = 0.0
    calls: int = 0

    def counted(self, network: nn.Module) -> Any:
        """A hook that counts."""

        def count(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            self.calls += len(given[0]) if given and isinstance(given[0], Tensor) else 1

        return network.register_forward_hook(count)


@dataclass(frozen=True, eq=False)
class Sampled:
    """n pictures of a recipe (its averaged weights)."""

    recipe: Recipe
    sampling: Sampling
    n: int
    plan: Plan | None = None  # None: the run knows no classes
    planned: str = ""  # the plan in words
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        """Raises UserError for a sampler that cannot walk this recipe's process."""
        if self.sampler is not None:
            length(self.sampler, self.recipe)

    def __len__(self) -> int:
        return self.n

    @property
    def names(self) -> Sequence[str]:
        return [f"seed {self.sampling.seed + i}" for i in range(self.n)]

    @property
    def sampler(self) -> Sampler | None:
        return self.sampling.sampler or own_sampler(self.recipe)

    @property
    def fingerprint(self) -> str:
        """Of all that decides the pictures but their number, and so the same when there are to be more."""
        s, sampler = self.sampling, self.sampler
        told = {
            "weights": state_digest(self.recipe.state_dict()),
            "config": repr(self.recipe.config),
            "sampler": None if sampler is None else _whole_facts(sampler),
            "classes": self.planned,
            **{name: getattr(s, name) for name in ("seed", "guidance", "precision")},
        }
        return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()

    def batch(self, positions: Ints) -> Tensor:
        """uint8 (B, C, *S)."""
        s, at = self.sampling, positions.tolist()
        labels = None if self.plan is None else tuple(self.plan(i, s.seed + i) for i in at)
        ask = Ask(n=len(at), labels=labels, guidance=s.guidance, sampler=s.sampler)
        with self._timed(len(at)), torch.no_grad(), self._autocast():
            state = None
            for state in self.recipe.sample(ask, rng=Seeds.pictures([s.seed + i for i in at])):  # noqa: B007
                pass
            if state is None:
                raise UserError("this run's sampler makes no step: give --steps of 1 or more.")
            return levels(self.recipe.picture(state)).cpu()

    def _autocast(self) -> Any:
        device = next(self.recipe.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.sampling.precision == "bf16" else nullcontext()

    @contextmanager
    def _timed(self, pictures: int) -> Iterator[None]:
        start, hooks = time.monotonic(), [self.cost.counted(network) for network in self.recipe.networks()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.cost.seconds += time.monotonic() - start
        self.cost.pictures += pictures


def planned(recipe: Recipe, sampling: Sampling, reference: Dataset | None) -> tuple[Plan | None, str]:
    """Which class each picture has, and that in words. Raises UserError for classes that the run does not know, and
    for `data` where the reference has none."""
    known: tuple[str, ...] = tuple(recipe.config.classes)
    refuse_labels(sampling.labels, sampling.guidance, known)
    if not known:
        return None, ""
    if sampling.labels:
        numbers = [known.index(name) for name in sampling.labels]
        return (lambda i, seed: numbers[i % len(numbers)]), f"in turn: {', '.join(sampling.labels)}"
    if sampling.classes == "data":
        return _frequencies(known, reference)
    return (lambda i, seed: seed % len(known)), f"evenly: {len(known)} in turn"


def _frequencies(known: tuple[str, ...], reference: Dataset | None) -> tuple[Plan, str]:
    """Each class as often as in the reference: the quantile at a number drawn by the picture's seed."""
    if reference is None or reference.labels is None:
        raise UserError(
            "the reference has no classes to count: say where they are (--labels folder or COLUMN), or use --classes "
            "even."
        )
    counts = Counter(reference.classes[i] for i in reference.labels)
    for name in sorted(counts.keys() - set(known)):
        raise UserError(f"the run knows no class '{name}' of the reference:{nearest(name, known)} Use --classes even.")
    ends = np.cumsum([counts[name] for name in known]) / len(reference.labels)
    share = ", ".join(f"{name} {counts[name] / len(reference.labels):.4g}" for name in known)
    at = lambda i, seed: int(np.searchsorted(ends, key("class", seed) / 2.0**63, "right"))  # noqa: E731
    return at, f"as in the data: {share}"


def _whole_facts(sampler: Sampler) -> dict[str, Any]:
    """Every field of a sampler as plain values, functions by their names."""

    def plain(value: Any) -> Any:
        return value if isinstance(value, int | float | str | None) else getattr(value, "__name__", None) or repr(value)

    return {"kind": type(sampler).__name__, **{one.name: plain(getattr(sampler, one.name)) for one in fields(sampler)}}


def facts_of(sampled: Sampled, model: str, digest: str, calls: float | None) -> dict[str, Any]:
    """What a receipt says of the samples. `calls` of the network a picture, where they were counted."""
    s, sampler = sampled.sampling, sampled.sampler
    told: dict[str, Any] = {"model": model, "digest": digest, **({} if sampler is None else facts(sampler))}
    told |= {"guidance": s.guidance, "labels": sampled.planned, "seed": s.seed, "precision": s.precision}
    shape = list(sampled.recipe.config.shape)
    told |= {"size": " x ".join(map(str, shape[:0:-1])), "weights": "averaged", "n": sampled.n}
    return told if calls is None else told | {"calls": calls}
