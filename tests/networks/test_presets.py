"""The published networks have the parameters that the official modules have (counted there)."""

import pytest
import torch

from sfumato.networks import UNet, config

# (name, classes, numbers of an augmentation label, millions): networks, and the tables of what they are told
OFFICIAL = [
    ("HO_CIFAR10", 0, 0, 35.746),
    ("HO_256", 0, 0, 113.673),
    ("HO_CELEBA", 0, 0, 78.701),
    ("IMPROVED_CIFAR10", 0, 0, 52.546),
    ("IMPROVED_64", 0, 0, 121.064),
    ("IMPROVED_64_CLASSES", 1000, 0, 273.049),
    ("IMPROVED_LSUN", 0, 0, 113.677),
    ("ADM_64", 1000, 0, 295.904),
    ("ADM_128", 1000, 0, 421.530),
    ("ADM_256", 1000, 0, 553.838),
    ("ADM_256", 0, 0, 552.814),
    ("ADM_512", 1000, 0, 558.998),
    ("ADM_UP_256", 1000, 0, 311.796),
    ("ADM_UP_512", 1000, 0, 308.835),
    ("SONG_DDPM", 0, 0, 35.219),
    ("DDPMPP", 0, 0, 61.804),
    ("DDPMPP_DEEP", 0, 0, 106.633),
    ("NCSNPP", 0, 0, 62.759),
    ("NCSNPP_DEEP", 0, 0, 107.587),
    ("NCSNPP_256", 0, 0, 65.575),
    ("NCSNPP_1024", 0, 0, 105.786),
    ("CLD_CIFAR10", 0, 0, 107.594),
    ("EDM_DDPMPP", 0, 9, 55.734),
    ("EDM_DDPMPP", 10, 9, 55.735),
    ("EDM_NCSNPP", 0, 9, 56.398),
    ("EDM_DDPMPP_64", 0, 9, 61.806),
    ("EDM_ADM_64", 1000, 0, 295.899),
]


@pytest.mark.parametrize(("name", "classes", "augment", "millions"), OFFICIAL)
def test_parameters(name: str, classes: int, augment: int, millions: float) -> None:
    preset = getattr(config, name)
    with torch.device("meta"):
        net = UNet(preset)
    # the frequencies of Fourier features, a buffer of ours, are parameters in Score-SDE, though never trained
    network = sum(tensor.numel() for tensor in net.state_dict().values())
    bias = bool(classes) and preset.early  # SongUNet's layer of classes has one, which is the row "not told"
    total = network + (classes + bias + augment) * preset.told
    assert round(total / 1e6, 3) == millions
