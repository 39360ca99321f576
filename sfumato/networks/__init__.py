"""Networks, in plain torch: they know tensors and nothing of diffusion."""

from sfumato.networks.config import HO_256, HO_CIFAR10, UNetConfig
from sfumato.networks.unet import Features, UNet, UNetDecoder, UNetEncoder

__all__ = ["HO_256", "HO_CIFAR10", "Features", "UNet", "UNetConfig", "UNetDecoder", "UNetEncoder"]
