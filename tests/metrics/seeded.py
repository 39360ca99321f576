"""Features, pictures and weights that a recorder of other people's figures and a test both make from a number."""

import numpy as np
import torch


def rows(seed, n, d, shift=0.0):
    """Features with unequal variances, float32 (n, d)."""
    x = np.random.RandomState(seed).randn(n, d) * np.linspace(0.2, 1.5, d) + shift
    return torch.from_numpy(x.astype(np.float32))


def checker(h, w):
    """Squares of two pixels with a grain, uint8 (h, w, 3)."""
    y, x = np.mgrid[:h, :w]
    squares = 255 * (((y // 2 + x // 2) % 2)[..., None] ^ np.array([0, 1, 0]))
    return np.clip(squares + np.random.RandomState(3).randint(-60, 60, (h, w, 3)), 0, 255).astype(np.uint8)


def filled(state):
    """The same names and shapes with weights that keep signals alive through many layers, each from its place."""
    out = {}
    for i, (name, tensor) in enumerate(sorted(state.items())):
        rng = np.random.RandomState(i)
        if not tensor.is_floating_point():
            out[name] = tensor.clone()
            continue
        if tensor.ndim > 1:
            value = rng.randn(*tensor.shape) * np.sqrt(2 / tensor[0].numel())
        else:
            base = 1.0 if name.endswith(("running_var", "bn.weight")) else 0.0
            value = base + 0.1 * rng.randn(*tensor.shape)
        out[name] = torch.from_numpy(value.astype(np.float32))
    return out


def some(tensor, count=60):
    """Numbers spread over a tensor."""
    flat = torch.as_tensor(tensor).detach().double().flatten()
    return flat[:: max(1, len(flat) // count)].tolist()
