"""A small convolutional classifier: reads pictures, and lends its features to a Frechet distance. For benchmarks.

python benchmarks/classifier.py FILE    the Fashion-MNIST classifier as TorchScript: sfumato evaluate --features FILE
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.metrics.features import Extractor, Read, file_digest

FASHION = Path(__file__).parent / "runs" / "fashion_classifier" / "model.safetensors"


class Classifier(nn.Module):
    """(B, 1, S, S) in [-1, 1] -> logits (B, classes); `features` (B, 128) are what the last layer sees."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()

        def block(a: int, b: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        self.body = nn.Sequential(
            block(1, width, 1),
            block(width, width, 2),
            block(width, 2 * width, 1),
            block(2 * width, 2 * width, 2),
            block(2 * width, 4 * width, 1),
            block(4 * width, 4 * width, 2),
        )
        self.last = nn.Linear(4 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(self.features(x), 0.3, self.training))


def augmented(x: Tensor, rng: torch.Generator, shift: int = 2) -> Tensor:
    """Each picture moved by up to `shift` pixels and a little larger or smaller, turned or slanted."""
    n, size = len(x), x.shape[-1]
    r = torch.rand(n, 4, generator=rng) * 2 - 1
    scale, slant, turn = 1 + 0.12 * r[:, 0], 0.15 * r[:, 1], 0.08 * r[:, 2]
    move = (torch.rand(n, 2, generator=rng) * 2 - 1) * 2 * shift / size
    theta = torch.stack(
        [torch.stack([scale, slant - turn, move[:, 0]], 1), torch.stack([turn, scale, move[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def train(
    images: Tensor, labels: Tensor, classes: int, *, epochs: int, batch: int = 128, augment: bool = False, seed: int = 0
) -> Classifier:
    """AdamW with a one-cycle rate; the same seed gives the same classifier."""
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Classifier(classes).to(memory_format=torch.channels_last)
        steps = epochs * (len(images) // batch)
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps + 1)
        for chosen in _batches(len(images), batch, epochs, rng):
            x = images[chosen]
            loss = F.cross_entropy(net(augmented(x, rng) if augment else x), labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def kept(path: Path, make: Callable[[], Classifier], classes: int) -> Classifier:
    """The classifier stored at `path`, or a new one, stored there: figures of different days need the same features."""
    if path.is_file():
        net = Classifier(classes)
        net.load_state_dict(load_file(path))
        return net.eval()
    net = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in net.state_dict().items()}, path)
    return net


def _batches(n: int, batch: int, epochs: int, rng: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(n, generator=rng)[: n // batch * batch].split(batch)


class Eyes(Extractor):
    """The stored Fashion-MNIST classifier as features of gray pictures, 28 x 28: the same digest wherever it is read,
    which an export, with its own file's, has not."""

    def __init__(self, path: Path = FASHION) -> None:
        super().__init__()
        digest = file_digest(path)
        self.net = kept(path, _missing, 10)
        self.describe(path.parent.name, digest, self.net.last.in_features, None, "clean")

    def accept(self, pictures: Tensor) -> Tensor:
        if pictures.shape[1:] != (1, 28, 28):
            raise UserError(f"{self.name} reads gray pictures of 28 x 28, not {tuple(pictures.shape[1:])}.")
        return pictures

    def read(self, x: Tensor) -> Read:
        found = self.net.features(x / 127.5 - 1)
        return Read(found, self.net.last(found))


class Exported(nn.Module):
    """What `--features FILE` asks of a file: float32 (B, 3, H, W) in 0..255 -> (B, 128)."""

    def __init__(self, net: Classifier) -> None:
        super().__init__()
        self.body = net.body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mean(1, keepdim=True) / 127.5 - 1).mean((2, 3))


def export(net: Classifier, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what --features reads
        torch.jit.script(Exported(net).eval()).save(str(path))
    return path


def _missing() -> Classifier:
    raise UserError(f"{FASHION} is not there: benchmarks/fashion.py trains it.")


@torch.no_grad()
def features(net: Classifier, images: Tensor) -> Tensor:
    return torch.cat([net.features(x) for x in images.split(500)]).double()


@torch.no_grad()
def read(net: Classifier, images: Tensor) -> Tensor:
    return torch.cat([net(x).argmax(1) for x in images.split(500)])


def frechet(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) of features (N, D), in float64."""
    difference, (p, q) = a.mean(0) - b.mean(0), (torch.cov(a.T), torch.cov(b.T))
    root = torch.linalg.eigvals(p @ q).sqrt().real.sum()
    return float(difference @ difference + p.trace() + q.trace() - 2 * root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(export(kept(FASHION, _missing, 10), parser.parse_args().file))


if __name__ == "__main__":
    main()
