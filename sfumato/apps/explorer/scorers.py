"""Scores of pictures that anyone can plug in, and LAION's two that are read from their published weights.

A scorer is a name and a function of unit vectors (N, D) to numbers (N,). LAION's aesthetic predictors (Schuhmann 2022,
LAION-AI/aesthetic-predictor and christophschuhmann/improved-aesthetic-predictor) look at CLIP L/14 vectors, or B/32 and
B/16 for the linear ones; the safety predictor (LAION-AI/CLIP-based-NSFW-Detector) at H/14 ones. Vectors must be of
length 1: longer ones shift the scores and nothing would tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sfumato.apps.explorer.eyes import Vectors
from sfumato.data.options import escape
from sfumato.errors import UserError
from sfumato.metrics.features import file_digest, read_weights

__all__ = ["Scorer", "Stack", "aesthetic", "collapsed", "safety"]

V2 = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")
V2_WIDTHS = (768, 1024, 128, 64, 16, 1)
SAFETY_WIDTHS = (1024, 1024, 2048, 1024, 256, 128, 16, 1)
LINEAR = (512, 768)  # B/32 and B/16, L/14


class Scorer(Protocol):
    """name: a column of the table. identity: changes with what is computed. width: of the vectors it reads."""

    name: str
    identity: str
    width: int

    def __call__(self, vectors: Vectors) -> NDArray[np.float64]:
        """(N, D) of length 1 to (N,). Raises UserError for other vectors."""


class Layer(NamedTuple):
    """y = x weight^T + bias, then max(y, 0) if it is `bent`."""

    weight: Tensor
    bias: Tensor
    bent: bool = False


class Stack:
    """Layers one after the other, and a logistic end where scores are probabilities."""

    def __init__(self, name: str, identity: str, layers: tuple[Layer, ...], *, probability: bool = False) -> None:
        self.name, self.identity, self.layers, self.probability = name, identity, layers, probability
        self.width = int(layers[0].weight.shape[1])

    @torch.no_grad()
    def __call__(self, vectors: Vectors) -> NDArray[np.float64]:
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise UserError(
                f"the {self.name} score reads vectors of {self.width} numbers, and these have {vectors.shape[-1]}: "
                "give --clip the model that it was made for."
            )
        length = np.linalg.norm(vectors, axis=1)
        if len(length) and not np.allclose(length, 1, atol=1e-3):
            raise UserError(f"the {self.name} score reads vectors of length 1, and these are not: normalise them.")
        x = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        for layer in self.layers:
            x = F.linear(x, layer.weight, layer.bias)
            x = x.relu() if layer.bent else x
        return np.asarray((x.sigmoid() if self.probability else x)[:, 0].double().numpy())


def aesthetic(path: Path) -> Stack:
    """v1: one linear layer; v2: five without activations between them. About 1 to 10. Raises UserError."""
    code, state = file_digest(path), read_weights(path)
    if set(state) == {"weight", "bias"}:
        layers = _layers(path, state, ("",), None)
        if layers[0].weight.shape[0] != 1 or layers[0].weight.shape[1] not in LINEAR:
            raise _other(path, "an aesthetic predictor")
    else:
        layers = _layers(path, state, V2, V2_WIDTHS)
    return Stack("aesthetic", f"aesthetic {code}", layers)


def safety(path: Path) -> Stack:
    """The probability that a picture is not safe to see at work, of H/14: seven layers, bent but for the last two; its
    linear layers are taken in the order of their names. Raises UserError."""
    code, state = file_digest(path), read_weights(path)
    names = sorted({name.rpartition(".")[0] for name in state if name.endswith(".weight")}, key=_numbers)
    linear = tuple(name for name in names if state[f"{name}.weight"].ndim == 2)
    layers = _layers(path, state, linear, SAFETY_WIDTHS)
    bent = tuple(layer._replace(bent=i < len(layers) - 2) for i, layer in enumerate(layers))
    return Stack("unsafe", f"unsafe {code}", bent, probability=True)


def collapsed(layers: tuple[Layer, ...]) -> Layer:
    """What layers without activations come to: one affine map."""
    weight, bias = layers[0].weight.double(), layers[0].bias.double()
    for layer in layers[1:]:
        weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + layer.bias.double()
    return Layer(weight, bias)


def _layers(
    path: Path, state: Mapping[str, Tensor], names: tuple[str, ...], widths: tuple[int, ...] | None
) -> tuple[Layer, ...]:
    try:
        found = tuple(Layer(_part(state, name, "weight"), _part(state, name, "bias")) for name in names)
    except KeyError as error:
        raise _other(path, f"the predictor (it has no {escape(str(error.args[0]))})") from None
    shapes = [tuple(layer.weight.shape) for layer in found]
    wanted = None if widths is None else [(b, a) for a, b in itertools.pairwise(widths)]
    if not found or (wanted is not None and shapes != wanted) or any(len(shape) != 2 for shape in shapes):
        raise _other(path, "the predictor")
    if any(tuple(layer.bias.shape) != (layer.weight.shape[0],) for layer in found):
        raise _other(path, "the predictor")
    return found


def _part(state: Mapping[str, Tensor], layer: str, part: str) -> Tensor:
    return state[f"{layer}.{part}".lstrip(".")].float()


def _other(path: Path, what: str) -> UserError:
    return UserError(f'"{escape(path)}" does not hold the weights of {what}: give the file that LAION published.')


def _numbers(name: str) -> list[tuple[bool, int, str]]:
    """layers.10 after layers.9."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
