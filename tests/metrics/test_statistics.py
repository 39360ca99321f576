"""Statistics merge exactly, repeat nothing, and come back from disk only for what they were kept for."""

import os

import numpy as np
import pytest
import torch

from sfumato.data import DataOptions, open_data
from sfumato.errors import UserError
from sfumato.metrics.reference import References, fingerprint, key, read_npz
from sfumato.metrics.statistics import Moments, Statistics

ROWS = torch.randn(400, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1 + 50


def test_moments_are_numpys_and_shards_are_the_single_pass():
    """An offset of 500 standard deviations, shards of 1, 2 and many rows, in any grouping."""
    whole = Moments.of(ROWS)
    assert np.allclose(whole.cov, np.cov(ROWS.numpy().T), rtol=1e-11, atol=1e-14)
    for sizes in ([400], [1, 2, 97, 300], [133, 133, 134], [399, 1]):
        left, right = Moments(12), Moments(12)
        parts = [Moments.of(part) for part in ROWS.split(sizes)]
        for part in parts:
            left.merge(part)
        for part in reversed(parts):
            right.merge(part)
        for merged in (left, right, Moments.from_state(left.state())):
            assert merged.n == 400
            assert torch.allclose(merged.mean, whole.mean, rtol=1e-12)
            assert torch.allclose(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match="two samples"):
        _ = Moments.of(ROWS[:1]).cov


def filled(positions, keep=True, identity="f"):
    found = Statistics(identity, 12, keep=keep)
    for batch in torch.as_tensor(positions).split(37):
        found.add(ROWS[batch], batch)
    return found


@pytest.mark.parametrize("keep", [True, False])
def test_shards_in_any_order_and_a_resumed_pass_are_the_single_pass(keep):
    whole = filled(range(400), keep)
    odd, even = filled(range(1, 400, 2), keep), filled(range(0, 400, 2), keep)
    odd.merge(even)
    half = Statistics.from_state("f", filled(range(250), keep).state())
    for batch in torch.arange(200, 400).split(50):  # 50 of them were done before the interruption
        half.add(ROWS[batch], batch)
    for other in (odd, half):
        assert len(other) == 400 and torch.equal(other.positions, torch.arange(400))
        assert torch.allclose(other.moments.cov, whole.moments.cov, rtol=1e-9, atol=1e-13)
        assert not keep or torch.equal(other.rows, ROWS.float())
    assert half.add(ROWS[:3], torch.tensor([0, 1, 2])) == 0


def test_what_does_not_fit_is_refused():
    one = filled(range(10))
    with pytest.raises(ValueError, match="5 positions"):
        one.merge(filled(range(5, 20)))
    with pytest.raises(UserError, match="same --features"):
        one.merge(filled(range(20, 30), identity="g"))
    with pytest.raises(UserError, match="not \\(B, 12\\)"):
        one.add(ROWS[:2, :5], torch.tensor([50, 51]))
    with pytest.raises(UserError, match="not finite"):
        one.add(ROWS[:1] * torch.nan, torch.tensor([60]))
    assert len(one) == 10


def test_references_come_back_for_their_settings_alone(tmp_path):
    references, settings = References(tmp_path / "kept"), {"data": "abc", "n": 10, "flip": False}
    assert references.get("f", settings) is None
    path = references.put(filled(range(10)), settings)
    found = references.get("f", settings)
    assert found and torch.equal(found.rows, ROWS[:10].float()) and len(found) == 10
    assert str(tmp_path).encode() not in path.read_bytes() and [path] == list(path.parent.iterdir())
    assert references.get("f", {**settings, "n": 11}) is None and references.get("g", settings) is None
    assert key(settings) == key(dict(reversed(settings.items()))) != key({**settings, "n": 11})
    path.write_bytes(path.read_bytes()[:100])
    assert references.get("f", settings) is None


def test_the_fingerprint_follows_the_pictures(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", image=images)
    data = open_data(str(tmp_path / "a.npz"), DataOptions())
    assert fingerprint(data) == fingerprint(data.take(range(6))) != fingerprint(data.take([0, 1, 2]))
    assert fingerprint(data.take([1, 0])) != fingerprint(data.take([0, 1]))
    (tmp_path / "elsewhere").mkdir()
    np.savez(tmp_path / "elsewhere" / "b.npz", image=images)
    os.utime(tmp_path / "elsewhere" / "b.npz", (1, 1))
    copy = open_data(str(tmp_path / "elsewhere" / "b.npz"), DataOptions())
    assert fingerprint(copy) == fingerprint(data) and copy.fingerprint != data.fingerprint
    images[5, 7, 7, 2] ^= 1
    np.savez(tmp_path / "c.npz", image=images)
    assert fingerprint(open_data(str(tmp_path / "c.npz"), DataOptions())) != fingerprint(data)


def test_statistics_files_of_others(tmp_path):
    cov = np.cov(ROWS.numpy().T)
    np.savez(tmp_path / "adm.npz", mu=ROWS.mean(0), sigma=cov, mu_s=np.zeros(3), sigma_s=np.eye(3), arr_0=np.zeros(2))
    assert np.array_equal(read_npz(tmp_path / "adm.npz").cov, cov)
    assert read_npz(tmp_path / "adm.npz", spatial=True).mean.shape == (3,)
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.eye(4))
    np.savez(tmp_path / "pickled.npz", mu=np.array([object()]), sigma=np.eye(1))
    (tmp_path / "text.npz").write_text("no")
    for name in ("bad", "pickled", "text", "absent"):
        with pytest.raises(UserError):
            read_npz(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match="mu_s"):
        read_npz(tmp_path / "bad.npz", spatial=True)
