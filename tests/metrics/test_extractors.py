"""Extractors: the layouts of others, one identity for each, and features that see what is wrong."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.errors import UserError
from sfumato.metrics.choose import choose
from sfumato.metrics.features import file_digest, levels, rgb
from sfumato.metrics.frechet import frechet
from sfumato.metrics.inception import Inception, InceptionNet
from sfumato.metrics.lite0 import Lite0, wheel
from sfumato.metrics.own import Own, fit, keep, kept
from sfumato.metrics.script import Script, ScriptedInception, is_script
from sfumato.metrics.statistics import Moments
from tests.metrics.seeded import checker, filled, some

RECORDED = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())["inception"]
PICTURE = torch.from_numpy(checker(64, 48)).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    whole = {True: torch.int64, False: torch.float32}
    state = {
        name: torch.zeros(shape, dtype=whole[name.endswith("tracked")]) for name, shape in RECORDED["keys"].items()
    }
    torch.save(filled(state), path)
    return path


def test_inception_is_the_network_of_fid(weights):
    """Layout, pools and resize of torch-fidelity, with the same weights; 2,023 numbers for sFID."""
    assert {name: list(t.shape) for name, t in InceptionNet().state_dict().items()} == RECORDED["keys"]
    extractor = Inception(weights)
    found = extractor(PICTURE)
    assert found.features.shape == (1, 2048) and found.spatial.shape == (1, 2023)
    assert extractor.identity.startswith("inception@299 (2048 features, tf1, ")
    tolerance = 1e-4 * max(map(abs, RECORDED["features"]))
    assert some(found.features) == pytest.approx(RECORDED["features"], rel=1e-3, abs=tolerance)
    tolerance = 1e-4 * max(map(abs, RECORDED["logits"]))
    assert some(found.logits) == pytest.approx(RECORDED["logits"], rel=1e-3, abs=tolerance)
    spatial = found.spatial.reshape(17, 17, 7).permute(2, 0, 1)
    tolerance = 1e-4 * max(map(abs, RECORDED["spatial"]))
    assert some(spatial) == pytest.approx(RECORDED["spatial"], rel=1e-3, abs=tolerance)


def test_weights_are_those_they_are_said_to_be(weights, tmp_path):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert file_digest(weights) == digest
    for name, wrong in ((digest[:8], False), ("6726825d", True)):
        path = shutil.copy(weights, tmp_path / f"pt_inception-2015-12-05-{name}.pth")
        if wrong:
            with pytest.raises(UserError, match="damaged"):
                file_digest(Path(path))
        else:
            assert file_digest(Path(path)) == digest
    with pytest.raises(UserError, match="other names"):
        Inception(wheel())
    (tmp_path / "noise.pth").write_bytes(b"no weights")
    for path in (tmp_path / "absent.pth", tmp_path / "noise.pth"):
        with pytest.raises(UserError):
            Inception(path)


class Mean(torch.nn.Module):
    """Stands for StyleGAN's file: `layers`, and an output with weights."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        self.output = torch.nn.Linear(12, 4)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_files(tmp_path):
    path = tmp_path / "mine.pt"
    torch.jit.script(Mean()).save(path)
    torch.save({"a": torch.ones(1)}, tmp_path / "state.pth")
    assert is_script(path) and not is_script(tmp_path / "state.pth")
    any_file, inception = Script(path), ScriptedInception(path)
    identity = any_file.identity
    assert torch.allclose(any_file(PICTURE).features, Mean().layers(PICTURE.float()))
    assert any_file.identity == identity and identity.startswith("mine (clean, ") and any_file.width == 12
    assert inception(PICTURE).logits.shape == (1, 4)
    with pytest.raises(UserError, match="does not read"):
        any_file(PICTURE[:, :, None].expand(1, 3, 4, 64, 48).to(torch.uint8)[..., None])
    with pytest.raises(UserError, match="not a TorchScript"):
        Script(tmp_path / "state.pth")


@pytest.mark.filterwarnings("ignore")
def test_the_words_of_features(weights, tmp_path):
    torch.jit.script(Mean()).save(tmp_path / "mine.pt")
    made = [Lite0(size=96)]
    assert choose("own", made.pop) and not made
    assert choose("lite0", made.pop).size == 64 and choose("lite0@96", made.pop, "tf1").resize == "tf1"
    assert isinstance(choose(f"inception:{weights}", made.pop), Inception)
    assert isinstance(choose(f"inception:{tmp_path / 'mine.pt'}", made.pop), ScriptedInception)
    assert isinstance(choose(str(tmp_path / "mine.pt"), made.pop), Script)
    for text in ("lite0@", "lite0@8", "inception", "inception:absent.pth", "absent.pt", "own@3", ""):
        with pytest.raises(UserError):
            choose(text, made.pop)


def test_pictures_as_a_png_file_would_hold_them():
    assert levels(torch.tensor([254.6 / 255, 254.4 / 255, -1.0, 2.0])).tolist() == [255, 254, 0, 255]
    clear = torch.tensor([10, 20, 30, 0], dtype=torch.uint8).reshape(1, 4, 1, 1)
    assert rgb(clear, "x").flatten().tolist() == [255, 255, 255]
    assert rgb(clear[:, :1], "x").flatten().tolist() == [10, 10, 10]
    with pytest.raises(UserError, match="features own"):
        rgb(clear[:, :2], "x")
    with pytest.raises(UserError, match="levels"):
        Lite0()(PICTURE.float())


def test_lite0_knows_imagenet(data_pack):
    """True weights in a true network: it names what photographs show far above chance, and any batch gives the same."""
    extractor = Lite0(size=224)
    assert extractor.identity == f"lite0@224 (232 features, clean, {file_digest(wheel())[:12]})"
    sklearn = pytest.importorskip("sklearn.datasets")
    flower = torch.from_numpy(sklearn.load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
    china = torch.from_numpy(sklearn.load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
    found = extractor(torch.cat([flower, china]))
    top = found.logits.topk(5).indices.tolist()
    assert 985 in top[0] or 723 in top[0] or 308 in top[0], top[0]
    assert {663, 698, 832, 483, 538} & set(top[1]), top[1]  # monastery, palace, stupa, castle, dome
    alone = extractor(china)
    assert torch.allclose(alone.features[0], found.features[1], rtol=1e-4, atol=1e-5)


def fashion(data_pack, n, split="train"):
    return torch.from_numpy(np.load(data_pack / "fashion_mnist" / f"{split}.npz")["image"][:n])[:, None]


def distances(extractor, pictures):
    """Frechet distance of half of the pictures to: the other half, it with noise, it blurred, it without variety."""
    half = len(pictures) // 2
    here, there = pictures[:half], pictures[half:]
    noise = torch.randn(there.shape, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.avg_pool2d(there.float(), 3, 1, 1)
    spoilt = [there, (there + 8 * noise).clamp(0, 255).byte(), soft.byte(), there[:20].repeat(half // 20, 1, 1, 1)]

    def seen(x):
        return Moments.of(torch.cat([extractor(part).features for part in x.split(100)])).gaussian()

    first = seen(here)
    return [frechet(first, seen(x)) for x in spoilt]


def test_lite0_sees_what_is_wrong(data_pack):
    floor, *wrong = distances(Lite0(), fashion(data_pack, 200))
    assert min(wrong) > 1.5 * floor, (floor, wrong)


def test_own_trains_itself_and_stays_itself(tmp_path, data_pack):
    """The same for a seed, another for another; kept whole; sees noise, blur and lost variety after few steps."""
    pictures = fashion(data_pack, 300)
    again = [fit(pictures, steps=2, seed=seed).identity for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    one = fit(pictures, steps=12)
    assert one.identity.startswith("own@32 (144 features")
    one.save(tmp_path / "own.safetensors")
    back = Own.load(tmp_path / "own.safetensors")
    assert back.identity == one.identity
    assert torch.equal(back(pictures[:5]).features, one(pictures[:5]).features)
    floor, *wrong = distances(one, pictures)
    assert min(wrong) > 1.5 * floor, (floor, wrong)
    with pytest.raises(UserError, match="trained on 1 channels"):
        one(PICTURE)
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(UserError, match="train it again"):
        Own.load(tmp_path / "bad.safetensors")
    assert kept(tmp_path / "bad.safetensors") is None and kept(tmp_path / "absent.safetensors") is None
    keep(one, tmp_path / "new" / "own.safetensors")
    assert (back := kept(tmp_path / "new" / "own.safetensors")) and back.identity == one.identity
    keep(one, tmp_path / "bad.safetensors" / "own.safetensors")  # no room for it, and no error


def test_own_learns_from_volumes_and_leaves_randomness_alone():
    volumes = torch.randint(0, 256, (6, 2, 12, 20, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    extractor = fit(volumes, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert extractor(volumes).features.shape == (6, 96) and extractor.identity.startswith("own@32 (96 features")
    with pytest.raises(UserError, match="two pictures"):
        fit(volumes[:1])
