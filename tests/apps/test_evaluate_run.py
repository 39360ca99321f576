"""A run measured: the pictures are those that `sample` makes of the seeds, made once, and the receipt says what they
cost; videos, captions and pairs by their own judges."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sfumato
from sfumato.apps.evaluation import Sampling, evaluate_run
from sfumato.apps.evaluation_sets import evaluate_sets
from sfumato.apps.sampled import planned
from sfumato.errors import UserError
from sfumato.metrics.features import Extractor, Read, levels
from sfumato.metrics.frechet import frechet
from sfumato.metrics.receipt import Receipt
from sfumato.metrics.sources import Pictures
from sfumato.metrics.statistics import Moments

LETTERS = Path(__file__).parents[2] / "benchmarks" / "runs" / "letters"
SAMPLER = sfumato.DDIM(2)


class Pixels(Extractor):
    """Means of sixteen tiles."""

    def __init__(self):
        super().__init__()
        self.looked = 0
        self.describe("tiles", "0123456789abcdef", 16, None, "clean")

    def accept(self, pictures):
        return pictures

    def read(self, x):
        self.looked += len(x)
        return Read(nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1))


@pytest.fixture(scope="module")
def recipe():
    return sfumato.load(LETTERS)


@pytest.fixture
def reference(recipe):
    _, high, wide = recipe.config.shape
    return sfumato.open_data("digits", sfumato.DataOptions(size=(wide, high), flip="off", labels="none"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evaluated(reference, look, n, **more):
    more = {"metrics": ("fid",), "sampling": Sampling(seed=7, sampler=SAMPLER), "device": "cpu", **more}
    return evaluate_run(LETTERS, reference, features=look, n=n, **more)


def test_samples_are_those_of_their_seeds_and_made_once(recipe, reference, tmp_path):
    """Raising n goes on from what there is, and the receipt counts what all of it cost."""
    look, out = Pixels(), tmp_path / "r.json"
    first = evaluated(reference, look, 8, batch=4, out=out)
    *_, state = recipe.sample(sfumato.Ask(n=8, sampler=SAMPLER), rng=sfumato.Seeds(7))
    with torch.no_grad():
        made = levels(recipe.picture(state))
    known = Moments.of(Pixels()(made).features).gaussian()
    real = Pictures(reference)
    other = Moments.of(Pixels()(real.batch(np.arange(len(real)))).features).gaussian()
    assert first.figures[0].value == pytest.approx(frechet(known, other), rel=1e-3)  # a level of a pixel may differ
    assert first.samples["calls"] == 2 and first.samples["steps"] == 2 and first.samples["seed"] == 7
    assert first.samples["labels"].startswith("evenly: ") and first.samples["weights"] == "averaged"
    assert Receipt.read(out).figures == first.figures and str(tmp_path) not in out.read_text()
    assert look.looked == 8 + len(reference) + 1
    again = evaluated(reference, look := Pixels(), 12, batch=4, out=out)
    assert look.looked == 4 + 1 and again.figures[0].n == 12 and again.samples["calls"] == 2
    assert again.cost["sampling"] >= first.cost["sampling"] > 0
    fewer = evaluated(reference, look := Pixels(), 8, out=out)
    assert fewer.figures == first.figures and look.looked == 1
    for changed in (Sampling(8, SAMPLER), Sampling(7, sfumato.DDIM(3)), Sampling(7, SAMPLER, guidance=2.0)):
        evaluated(reference, look := Pixels(), 4, out=out, sampling=changed)
        assert look.looked == 5, "other pictures"
    evaluated(reference, look := Pixels(), 4, out=out, cache=False)
    assert look.looked == 4 + len(reference) + 1


def test_classes_evenly_in_turn_or_as_in_the_data(recipe):
    known = recipe.config.classes
    even, words = planned(recipe, Sampling(), None)
    assert [even(i, 5 + i) for i in range(3)] == [5, 6, 7] and words == f"evenly: {len(known)} in turn"
    turn, _ = planned(recipe, Sampling(labels=(known[4], known[1])), None)
    assert [turn(i, 0) for i in range(3)] == [4, 1, 4]
    labels = np.array([0] * 700 + [2] * 300)
    images = np.zeros((1000, 2, 2, 1), np.uint8)
    data = sfumato.data.Dataset(images, tuple(map(str, range(1000))), labels, known[:3])
    drawn, words = planned(recipe, Sampling(classes="data"), data)
    found = np.bincount([drawn(0, seed) for seed in range(2000)], minlength=3) / 2000
    assert np.allclose(found, [0.7, 0, 0.3], atol=0.03) and words.startswith(f"as in the data: {known[0]} 0.7, ")
    with pytest.raises(UserError, match="knows no class 'zebra' of the reference"):
        planned(recipe, Sampling(classes="data"), replace(data, classes=("zebra", *known[1:3])))


class Motion(nn.Module):
    """Stands for an I3D file: flags as StyleGAN-V's has them."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        if rescale:
            x = 2 * x / 255 - 1
        out = torch.cat([x.mean(4).mean(3).flatten(1), x.diff(dim=2).abs().mean(4).mean(3).flatten(1)], 1)
        return out if return_features else out[:, :1]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_fvd_is_the_frechet_distance_of_videos(tmp_path):
    rng = np.random.RandomState(0)
    videos = [rng.randint(0, top, (40, 4, 8, 8, 3)).astype(np.uint8) for top in (256, 200)]
    for name, video in zip("ab", videos, strict=True):
        np.savez(tmp_path / f"{name}.npz", video=video)
    torch.jit.script(Motion()).save(tmp_path / "my_i3d.pt")
    files = [str(tmp_path / f"{name}.npz") for name in "ab"]
    receipt = evaluate_sets(*files, metrics=("fvd",), features=str(tmp_path / "my_i3d.pt"))

    def seen(video):
        x = torch.from_numpy(video).permute(0, 4, 1, 2, 3).float()
        return Moments.of(Motion()(x, True, True, True)).gaussian()

    fvd = receipt.figures[0]
    assert fvd.value == pytest.approx(frechet(seen(videos[0]), seen(videos[1])), rel=1e-5)
    assert fvd.metric == "fvd" and fvd.features.startswith("my_i3d (rescale, resize, return_features, ")
    np.savez(tmp_path / "c.npz", video=videos[0][:, :3])
    with pytest.raises(UserError, match="videos of 4 x 8 x 8 cannot be compared with videos of 3 x 8 x 8"):
        evaluate_sets(files[0], str(tmp_path / "c.npz"), metrics=("fvd",), features=str(tmp_path / "my_i3d.pt"))


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP of two small layers whose words are letters."""
    transformers = pytest.importorskip("transformers")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": len(words) - 1}
    text |= {"bos_token_id": len(words) - 2, "pad_token_id": len(words) - 1}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=8
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_the_clip_score_is_that_of_transformers(clip_folder, tmp_path):
    from sfumato.metrics.clip import Clip, clip_score

    transformers = pytest.importorskip("transformers")
    images = np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    texts = ["a cat", "dogs", "", "the sea at night and far beyond the sea", "b"]
    made = Pictures(sfumato.data.Dataset(images, tuple("abcde"), captions=texts))
    found = clip_score(made, texts, Clip(clip_folder), batch=2)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    words = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    told = words([t for t in texts if t], padding=True, truncation=True, max_length=12, return_tensors="pt")
    x = torch.from_numpy(images[[0, 1, 3, 4]]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        out = model(pixel_values=(x - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1), **told)
    theirs = 100 * (out.image_embeds * out.text_embeds).sum(1)
    assert found.value == pytest.approx(float(theirs.clamp(min=0).mean()), rel=1e-5) and found.n == 4
    assert found.features.startswith("clip (")
    with pytest.raises(UserError, match="these have none: give --captions"):
        clip_score(made, [""] * 5, Clip(clip_folder))
