"""Pairs by equal names; files of samples and statistics as ADM writes them."""

import math

import numpy as np
import pytest
import torch

from sfumato.data import DataOptions, Dataset, open_data
from sfumato.errors import UserError
from sfumato.metrics.matched import PAIRED, compare, judge, match, mean_figure
from sfumato.metrics.pairs import psnr, ssim
from sfumato.metrics.sources import Clips, Known, Pictures, holds
from sfumato.networks.perceptual import LPIPS


def pictures(seed, names, n=None):
    images = np.random.RandomState(seed).randint(0, 256, (len(names), 24, 20, 3), dtype=np.uint8)
    return Pictures(Dataset(images, names))


def test_names_match_without_their_endings_and_the_others_are_listed():
    pairs = match(("a.png", "sub/b.png", "c.png", "d.png", "d.jpg"), ("c.webp", "d.png", "sub/b.png", "b.png"))
    assert pairs.left.tolist() == [1, 2] and pairs.right.tolist() == [2, 0]
    assert pairs.alone == (("a.png", "d.png", "d.jpg"), ("d.png", "b.png"))
    with pytest.raises(UserError, match=r"no picture of one has the name .* \(such as 'a.png' and 'b.png'\)"):
        match(("a.png",), ("b.png",))


def test_pairs_are_measured_one_by_one(tmp_path):
    """Whatever the order and the batch; kept, so that nothing is measured twice."""
    one, other = pictures(0, ("a.png", "b.png", "c.png")), pictures(1, ("c.png", "x.png", "a.png"))
    pairs, calls = match(one.names, other.names), []
    x, y = one.batch(np.array([0, 2])) / 255, other.batch(np.array([2, 0])) / 255
    found = {}
    for batch in (1, 5):
        found = {f.metric: f for f in compare(one, other, pairs, PAIRED, batch=batch)}
        assert found["ssim"].value == pytest.approx(float(ssim(x, y).mean()), rel=1e-6)
        assert found["psnr"].value == pytest.approx(float(psnr(x, y).mean()), rel=1e-6)
    assert found["ssim"].n == 2 and found["ssim"].low < found["ssim"].value < found["ssim"].high
    counting = {"ssim": PAIRED["ssim"]._replace(measure=lambda x, y: calls.append(1) or PAIRED["ssim"].measure(x, y))}
    for _ in range(2):
        assert compare(one, other, pairs, counting, keep=tmp_path)[0].value == found["ssim"].value
    assert len(calls) == 1


def test_equal_pairs_and_lpips():
    values = torch.tensor([20.0, math.inf, 30.0])
    found = mean_figure("psnr", values)
    assert found.value == 25 and found.n == 2 and "1 of 3 pairs are equal, and psnr infinite there" in found.warning
    assert mean_figure("psnr", values[1:2]).value == math.inf
    torch.manual_seed(0)
    lpips = LPIPS("alex").requires_grad_(False)
    who = judge(lpips, "LPIPS alex (0123)")
    x, y = (torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8) for _ in range(2))
    direct = lpips(*(of.expand(-1, 3, -1, -1) / 127.5 - 1 for of in (x, y)))
    assert (
        torch.allclose(who.measure(x, y), direct, rtol=1e-5) and who.features == "alex (0123)" and who.lower_is_better
    )


def test_files_of_samples_and_statistics_as_adm_writes_them(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", images, np.arange(5))
    data = open_data(str(tmp_path / "samples.npz"), DataOptions(flip="off"))
    assert np.array_equal(Pictures(data).batch(np.arange(5)).permute(0, 2, 3, 1), images) and len(data.classes) == 5
    stats = {"mu": np.ones(3), "sigma": np.eye(3), "mu_s": np.ones(2), "sigma_s": 2 * np.eye(2)}
    np.savez(tmp_path / "ref.npz", arr_0=images, **stats)
    known = Known.read(tmp_path / "ref.npz")
    assert set(known.gaussians) == {"features", "spatial"} and holds(tmp_path / "ref.npz") == {"arr_0", *stats}
    assert holds(tmp_path / "absent.npz") == set()


def test_deep_pictures_and_videos(tmp_path):
    deep = np.random.RandomState(0).randint(0, 65536, (3, 8, 8, 1)).astype(np.uint16)
    made = Pictures(Dataset(deep, ("a", "b", "c"))).batch(np.arange(3))
    assert torch.equal(made[:, 0], torch.from_numpy(np.rint(deep[..., 0] / 257).astype(np.uint8)))
    video = np.random.RandomState(0).randint(0, 256, (4, 3, 8, 6, 1), dtype=np.uint8)
    np.savez(tmp_path / "v.npz", video=video)
    clips = Clips.read(tmp_path / "v.npz")
    assert clips.batch(np.array([2])).shape == (1, 3, 3, 8, 6) and len(clips) == 4
    np.savez(tmp_path / "w.npz", video=video[0])
    (tmp_path / "x.npz").write_text("no")
    for name in ("w", "x", "absent"):
        with pytest.raises(UserError):
            Clips.read(tmp_path / f"{name}.npz")
