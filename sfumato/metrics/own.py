"""`own`: a small extractor that trains itself on the data it will judge, for whatever no ImageNet network knows: gray
scale, volumes, many channels. Its distances compare models of one data set under one such extractor, no more.

It learns without labels, from two questions: which two of many slightly moved and scaled views are of one example
(InfoNCE, van den Oord et al. 2018, arXiv:1807.03748), and what was done to a spoilt one: noise, blur, lost contrast, a
piece of another example. The first makes it see what there is, the second what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.core.random import key
from sfumato.errors import UserError
from sfumato.metrics.features import Extractor, Read, state_digest
from sfumato.metrics.resize import clean, resize

__all__ = ["Own", "fit", "keep", "kept"]

CONVS: tuple[type[nn.Conv2d] | type[nn.Conv3d], ...] = (nn.Conv2d, nn.Conv3d)
NORMS: tuple[type[nn.BatchNorm2d] | type[nn.BatchNorm3d], ...] = (nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (F.avg_pool2d, F.avg_pool3d)
WIDTHS = {2: 24, 3: 16}  # by dimensions
BATCHES = {2: 32, 3: 16}
MOST = 20_000  # examples that are looked at
TEMPERATURE = 0.2


class Net(nn.Module):
    """(B, C, *S) in [-1, 1] -> features (B, 6 width): means of two stages, the first fine and the second coarse."""

    def __init__(self, channels: int, dims: int, size: int) -> None:
        super().__init__()
        width, stride = WIDTHS[dims], size // 16 if dims == 2 else size // 8
        conv, norm = CONVS[dims - 2], NORMS[dims - 2]

        def layer(inp: int, out: int, kernel: int, step: int, pad: int) -> nn.Sequential:
            return nn.Sequential(conv(inp, out, kernel, step, pad, bias=False), norm(out), nn.ReLU())

        stem = layer(channels, width, 2 * stride, stride, stride // 2)
        self.fine = nn.Sequential(stem, layer(width, 2 * width, 3, 1, 1))
        self.coarse = nn.Sequential(layer(2 * width, 4 * width, 3, 2, 1), layer(4 * width, 4 * width, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        return torch.cat([fine.flatten(2).mean(2), self.coarse(fine).flatten(2).mean(2)], 1)


class Own(Extractor):
    """The trained extractor: made by `fit`, kept by `save`, read by `load`."""

    scaled = True

    def __init__(self, net: Net, channels: int, dims: int, size: int) -> None:
        super().__init__()
        self.net, self.channels, self.dims = net, channels, dims
        self.describe("own", state_digest(net.state_dict()), 6 * WIDTHS[dims], size, "clean")

    def accept(self, pictures: Tensor) -> Tensor:
        found = (pictures.shape[1], pictures.ndim - 2)
        if found != (self.channels, self.dims):
            raise UserError(
                f"This extractor was trained on {self.channels} channels in {self.dims} dimensions and cannot read "
                f"{found[0]} in {found[1]}: let it train on the data that it is to judge."
            )
        return pictures

    def read(self, x: Tensor) -> Read:
        return Read(self.net(x / 127.5 - 1))

    def save(self, path: Path) -> None:
        """Whole or absent."""
        about = {"channels": self.channels, "dims": self.dims, "size": self.size}
        beside = path.with_name(path.name + ".tmp")
        state = {name: tensor.contiguous() for name, tensor in self.net.state_dict().items()}
        save_file(state, beside, metadata={"own": json.dumps(about)})
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Own:
        """Raises UserError for a file that is no such extractor."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["own"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            channels, dims, size = (int(about[name]) for name in ("channels", "dims", "size"))
            net = Net(channels, dims, size)
            net.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError, TypeError):
            raise UserError(f"{path} holds no extractor that was saved here: train it again.") from None
        return cls(net, channels, dims, size)


def kept(path: Path) -> Own | None:
    """What was kept there; a file that is damaged is as good as absent."""
    with suppress(UserError):
        return Own.load(path)
    return None


def keep(own: Own, path: Path) -> None:
    """Save it there; where there is no room for it, it trains again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own.save(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)


def fit(
    pictures: Tensor, *, seed: int = 0, steps: int = 200, progress: Callable[[int, int], None] | None = None
) -> Own:
    """Train on uint8 pictures (N, C, H, W) or volumes (N, C, D, H, W), of which 20,000 are enough. The same pictures,
    seed, steps and threads give the same network; another machine may differ in the last bits, and so in the name."""
    dims = pictures.ndim - 2
    if dims not in WIDTHS or len(pictures) < 2:
        raise UserError(
            f"The features own need two pictures or volumes or more to train on, not {list(pictures.shape)}."
        )
    size = 32 if dims == 3 or min(pictures.shape[2:]) <= 32 else 64
    rng = torch.Generator().manual_seed(key("own", seed))
    if len(pictures) > MOST:
        pictures = pictures[torch.randperm(len(pictures), generator=rng)[:MOST]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key("own net", seed))
        net = Net(pictures.shape[1], dims, size)
        heads = nn.ModuleList([nn.Linear(4 * WIDTHS[dims], 64), nn.Linear(6 * WIDTHS[dims], len(SPOILS) + 1)])
    weights = [*net.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(weights, 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps + 1)
    with torch.enable_grad():
        for step in range(steps):
            chosen = torch.randint(len(pictures), (min(BATCHES[dims], len(pictures)),), generator=rng)
            x = resize(pictures[chosen], size, clean) / 127.5 - 1
            loss = _loss(net, heads, x, rng)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps)
    return Own(net, pictures.shape[1], dims, size)


def _loss(net: Net, heads: nn.ModuleList, x: Tensor, rng: torch.Generator) -> Tensor:
    """Both questions about one batch."""
    n, project, judge = len(x), heads[0], heads[1]
    kind = torch.randint(len(SPOILS) + 1, (n,), generator=rng)
    features = net(torch.cat([_moved(x, rng), _moved(x, rng), _spoilt(x, kind, rng)]))
    views = F.normalize(project(features[: 2 * n, features.shape[1] // 3 :]), dim=1)
    alike = (views @ views.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    pairs = F.cross_entropy(alike, torch.arange(2 * n).roll(n))
    return pairs + F.cross_entropy(judge(features[2 * n :]), kind)


def _moved(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each example shifted by up to an eighth and scaled by up to a fifth."""
    n, dims = len(x), x.ndim - 2
    r = torch.rand(n, dims + 1, generator=rng) * 2 - 1
    scale = (1 + 0.2 * r[:, :1, None]) * torch.eye(dims)
    grid = F.affine_grid(torch.cat([scale, 0.25 * r[:, 1:, None]], 2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _spoilt(x: Tensor, kind: Tensor, rng: torch.Generator) -> Tensor:
    """Example i spoilt in the way kind[i], 0 as it is, by a random amount."""
    x, amount = x.clone(), torch.rand(len(x), generator=rng)
    for number, spoil in enumerate(SPOILS, 1):
        rows = torch.nonzero(kind == number)[:, 0]
        if len(rows):
            much = amount[rows].reshape([-1] + [1] * (x.ndim - 1))
            x[rows] = spoil(x[rows], x[(rows + 1) % len(x)], much, rng)
    return x


def _noise(x: Tensor, _: Tensor, much: Tensor, rng: torch.Generator) -> Tensor:
    return x + (0.01 + 0.3 * much * much) * torch.randn(x.shape, generator=rng)


def _blur(x: Tensor, _: Tensor, much: Tensor, rng: torch.Generator) -> Tensor:
    soft = POOLS[x.ndim - 4](x, 3, 1, 1, count_include_pad=False)
    return x + (0.3 + 0.7 * much) * (soft - x)


def _pale(x: Tensor, _: Tensor, much: Tensor, rng: torch.Generator) -> Tensor:
    mean = x.flatten(1).mean(1).reshape(much.shape)
    return mean + (x - mean) * (0.9 - 0.7 * much)


def _grafted(x: Tensor, other: Tensor, much: Tensor, rng: torch.Generator) -> Tensor:
    """From some line on, another example."""
    place = torch.arange(x.shape[2]).reshape([-1] + [1] * (x.ndim - 3))
    return torch.where(place > (0.25 + 0.5 * much) * x.shape[2], other, x)


SPOILS = (_noise, _blur, _pale, _grafted)
