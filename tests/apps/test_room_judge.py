"""What a run makes of a picture: the bits are those of `sfumato likelihood`, and others' pictures get more of them."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.apps.explorer.query import Options
from sfumato.cli.main import main
from sfumato.errors import UserError
from tests.apps.rooms import QUICK, settled

TINY = ("--config.network.widths", 16, 16, "--sample-every", 0, "--batch", 16, "--precision", "fp32", "--threads", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Sixty digits of 16 x 16, a run of a few steps upon them, and noise among them that it never saw."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    root = tmp_path_factory.mktemp("judge")
    (root / "photos").mkdir()
    for i in range(60):
        image = Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).resize((16, 16))
        image.save(root / "photos" / f"{i:04d}.png")
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(root / "cache"))
        words = ("train", "ddpm", root / "photos", "--labels", "none", "--out", root / "run", "--steps", 60, *TINY)
        assert main([str(word) for word in words]) == 0
        words = ("likelihood", root / "run", root / "photos", "--n", 60, "--out", root / "bits", "--threads", 1)
        assert main([str(word) for word in words]) == 0
    torch.set_num_threads(before)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    Image.fromarray(noise).save(root / "photos" / "noise.png")
    return root


def test_bits_are_those_of_the_command(place):
    with (place / "bits" / "images.csv").open(newline="") as file:
        bits = {row["name"]: float(row["ode"]) for row in csv.DictReader(file)}
    with settled(place / "photos", QUICK, run=place / "run") as room:
        for id in (3, 17):
            found = room.judge(id)
            assert found["bits"] == pytest.approx(bits[room.listed.records.names[id]], abs=5e-3)
            assert found["loss"] > 0 and found == room.judge(id)
        noise = room.judge(room.listed.records.names.index("noise.png"))
        assert noise["bits"] > max(bits.values())
        with pytest.raises(UserError, match="there is no picture"):
            room.judge(61)


def test_without_a_run_there_is_no_judge(place):
    with settled(place / "photos", Options(embed=False)) as room, pytest.raises(UserError, match="--run RUN"):
        room.judge(0)
