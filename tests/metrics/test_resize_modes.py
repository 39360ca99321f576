"""Resize modes equal the resizers they are named after."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import UserError
from sfumato.metrics.resize import MODES, clean, mode, resize
from tests.metrics.seeded import checker, some

RECORDED = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())["resize"]
CLOSE = 2e-6 * 255


@pytest.mark.parametrize("name", sorted(MODES))
@pytest.mark.parametrize("shape", sorted(RECORDED))
def test_recorded_resizers(name, shape):
    """clean-fid, torch-fidelity and torch upon levels 0..255: within 2e-6 of the range, as their float32 sums agree."""
    h, w = map(int, shape.split("x"))
    x = torch.from_numpy(checker(h, w)).permute(2, 0, 1)[None]
    assert some(resize(x, 299, MODES[name])[0], 149) == pytest.approx(RECORDED[shape][name], abs=CLOSE)


def test_pillow_pixel_by_pixel():
    for h, w, size in ((20, 31, 64), (90, 70, 32)):
        picture = checker(h, w)
        planes = [Image.fromarray(picture[..., c].astype(np.float32)).resize((size, size), 3) for c in range(3)]
        theirs = np.stack([np.asarray(plane) for plane in planes]).clip(0, 255)
        ours = resize(torch.from_numpy(picture).permute(2, 0, 1)[None], size, clean)[0]
        assert np.abs(ours.numpy() - theirs).max() < 1e-4


def test_torch_pixel_by_pixel():
    x = torch.from_numpy(checker(41, 33)).permute(2, 0, 1)[None].float()
    for name, antialiased in (("bilinear", False), ("antialias", True)):
        for size in ((57, 80), (16, 11)):
            theirs = torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=antialiased)
            assert (resize(x, size, MODES[name]) - theirs).abs().max() < CLOSE


def test_modes_differ_and_volumes_work():
    x = torch.from_numpy(checker(32, 32)).permute(2, 0, 1)[None]
    results = [resize(x, 48, way) for way in MODES.values()]
    assert all((a - b).abs().max() > 1 for i, a in enumerate(results[:3]) for b in results[:i])
    ramp = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 6, 5) * 20
    for way in MODES.values():
        assert resize(ramp, (16, 9, 10), way).shape == (1, 1, 16, 9, 10)
    middle = resize(ramp, (16, 6, 5), MODES["bilinear"])[0, 0, 4:12, 0, 0]
    assert torch.allclose(middle, (torch.arange(4, 12) + 0.5) * 10 - 10, atol=1e-4)
    assert resize(x, 32, clean).equal(x.float())
    with pytest.raises(UserError, match="clean, tf1"):
        mode("nearest")
