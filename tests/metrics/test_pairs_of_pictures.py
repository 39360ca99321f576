"""PSNR, SSIM, Dice and LPIPS equal torchmetrics and the package lpips."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.errors import UserError
from sfumato.metrics.pairs import dice, psnr, ssim
from sfumato.metrics.perceptual import open_lpips, packaged_heads
from sfumato.networks.perceptual import LPIPS, TRUNKS
from tests.metrics.seeded import checker, filled

RECORDED = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())["lpips"]


def pair(*shape):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(*shape, generator=g, dtype=torch.float64)
    return x, (x + 0.2 * torch.randn(*shape, generator=g, dtype=torch.float64)).clamp(0, 1)


@pytest.mark.parametrize("shape", [(3, 1, 20, 31), (2, 3, 32, 24), (2, 1, 13, 14, 15)])
@pytest.mark.parametrize("span", [1.0, 2.0, 255.0])
def test_ssim_and_psnr_are_torchmetrics(shape, span):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    x, y = (span * z for z in pair(*shape))
    theirs = structural_similarity_index_measure(x, y, data_range=span, reduction="none")
    assert ssim(x, y, data_range=span).tolist() == pytest.approx(theirs.tolist(), rel=1e-9)
    dims = tuple(range(1, len(shape)))
    theirs = peak_signal_noise_ratio(x, y, data_range=span, dim=dims, reduction="none")  # its logarithm is in float32
    assert psnr(x, y, data_range=span).tolist() == pytest.approx(theirs.tolist(), rel=1e-6)


def test_ssim_and_psnr_at_their_ends():
    x, y = pair(2, 3, 16, 16)
    assert ssim(x, x).tolist() == [1, 1] and psnr(x, x).tolist() == [np.inf, np.inf]
    assert torch.equal(ssim(x, y)[:1], ssim(x[:1], y[:1])), "each pair for itself"
    flat = torch.zeros(1, 1, 16, 16)
    assert psnr(flat, flat + 0.1).item() == pytest.approx(20, rel=1e-6)
    with pytest.raises(UserError, match="more than 5 pixels"):
        ssim(x[..., :5], y[..., :5])
    with pytest.raises(UserError, match="one shape"):
        psnr(x, y[:1])


def test_dice_by_hand():
    x, y = torch.zeros(4, 1, 4, 4), torch.zeros(4, 1, 4, 4)
    x[0, 0, :2], y[0, 0, 1:3] = 1, 1  # 8 and 8, 4 in common
    x[1, 0, 0, 0], y[2, 0, 0, 0] = 1, 1
    assert dice(x, y).tolist() == [0.5, 0, 0, 1] == dice(x > 0.5, y > 0.5).tolist()


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_lpips_is_the_package(trunk, tmp_path):
    """The same trunk weights in torchvision's names; heads that tell every channel from its neighbours."""
    weights = filled({name: torch.empty(shape) for name, shape in RECORDED[trunk]["keys"].items()})
    ours = LPIPS(trunk)
    assert {f"features.{name}" for name in ours.features.state_dict()} == set(RECORDED[trunk]["keys"])
    picture = checker(64, 80)
    x, y = (
        torch.from_numpy(picture[:, :, order].copy()).permute(2, 0, 1)[None] / 127.5 - 1
        for order in ([0, 1, 2], [2, 0, 1])
    )
    heads = {
        f"lin{i}.model.1.weight": torch.linspace(0, 1, len(head)).reshape(1, -1, 1, 1) + i
        for i, head in enumerate(ours.heads)
    }
    torch.save(weights | {"classifier.1.weight": torch.ones(2)}, tmp_path / "trunk.pth")
    torch.save(heads, tmp_path / "heads.pth")
    net, name = open_lpips(trunk, tmp_path / "trunk.pth", tmp_path / "heads.pth")
    assert net(x, y).item() == pytest.approx(RECORDED[trunk]["ramps"], rel=1e-5) and trunk in name
    assert net(x, x).item() == 0 and net(torch.cat([x, y]), torch.cat([y, y]))[1] == 0
    try:
        packaged = packaged_heads(trunk)
    except UserError:
        return
    assert open_lpips(trunk, tmp_path / "trunk.pth", packaged)[0](x, y).item() == pytest.approx(
        RECORDED[trunk]["packaged"], rel=1e-5
    )


def test_lpips_says_what_is_missing(tmp_path):
    torch.save({"features.0.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold"):
        open_lpips("alex", tmp_path / "other.pth", tmp_path / "other.pth")
    with pytest.raises(UserError, match="nothing is downloaded"):
        open_lpips("vgg", tmp_path / "absent.pth")
    with pytest.raises(UserError, match="alex, vgg, squeeze"):
        open_lpips("resnet", tmp_path / "other.pth")
