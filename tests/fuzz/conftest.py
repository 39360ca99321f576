"""A small trained run that every case spoils a copy of."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sfumato.cli.main import main
from tests.fuzz.bounds import Bounds

SMALL = ("--sample-every", "0", "--batch", "4", "--precision", "fp32", "--threads", "1", "--holdout", "0")


@pytest.fixture(scope="package", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, a cache of its own, no traceback asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SFUMATO_DEBUG", raising=False)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on the digits, with labels."""
    pytest.importorskip("sklearn.datasets")
    out = tmp_path_factory.mktemp("fuzz") / "run"
    words = ["train", "ddpm", "digits", "--out", str(out), "--steps", "2", "--config.network.widths", "8", "8", *SMALL]
    assert main([*words, "--quiet"]) == 0
    return out


@pytest.fixture
def spoiled(trained: Path, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the run at the same place."""

    def copy() -> Path:
        home = tmp_path / "case"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(trained, home)
        return home

    return copy


@pytest.fixture
def bounds(request: pytest.FixtureRequest) -> Iterator[Bounds]:
    made = Bounds()
    yield made
    made.report(request.node.name)
