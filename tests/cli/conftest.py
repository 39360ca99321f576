"""Commands run in this process on real pictures: handwritten digits as a folder of PNGs, one sub-folder a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sfumato.cli.main import main

SMALL = ("--config.network.widths", "16", "16", "--sample-every", "0", "--batch", "16", "--precision", "fp32")


class Said(NamedTuple):
    """What a command returned and wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(scope="package", autouse=True)
def alone() -> Iterator[None]:
    """One thread (equal threads: equal bits)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a name that must not leak; the decode cache lies beside it."""
    root = tmp_path_factory.mktemp("canary-ward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(root / "cache"))
        patch.delenv("SFUMATO_DEBUG", raising=False)
        yield root


@pytest.fixture(scope="session")
def photos(place: Path) -> Path:
    """120 digits of 16 x 16, gray, in sub-folders named as flowers."""
    datasets = pytest.importorskip("sklearn.datasets")
    image = pytest.importorskip("PIL.Image")
    digits = datasets.load_digits()
    folder = place / "canary-photos"
    for i in [i for i in range(len(digits.target)) if digits.target[i] < 3][:120]:
        home = folder / ("aster", "rose", "tulip")[digits.target[i]]
        home.mkdir(parents=True, exist_ok=True)
        image.fromarray((digits.images[i] * 15.9).astype("uint8")).resize((16, 16)).save(home / f"{i:04d}.png")
    return folder


@pytest.fixture
def small() -> tuple[str, ...]:
    """The options of a model that trains in a second."""
    return SMALL


def quietly(*words: object) -> None:
    """A command that must work, for fixtures that live longer than `capsys`."""
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="session")
def run(place: Path, photos: Path) -> Path:
    """A run that knows classes."""
    out = place / "runs" / "flowers"
    quietly("train", "ddpm", photos, "--labels", "folder", "--out", out, "--steps", 40, *SMALL)
    return out


@pytest.fixture(scope="session")
def plain(place: Path, photos: Path) -> Path:
    """A run that knows none, trained on a table of betas."""
    out = place / "runs" / "plain"
    quietly(
        "train", "ddpm", photos, "--out", out, "--steps", 2, *SMALL, "--config.schedule", "cosine", "--config.T", 50
    )
    return out


@pytest.fixture
def command(place: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("sample", run)` -> Said."""

    def call(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture
def mistake(command: Command) -> Callable[..., str]:
    """A command that must fail as a mistake does: exit code 2 and one sentence. Returns the sentence."""

    def call(*words: object) -> str:
        said = command(*words)
        assert said.code == 2, said
        lines = said.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("sfumato: ") and "Traceback" not in said.err, said.err
        return lines[0]

    return call
