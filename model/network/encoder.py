"""CNN encoders, which turn images into a grid of annotation vectors, and their registry."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from conf.errors import ConfigError
from model.network.mobilenet import MobileNetV2

# The children of torchvision's classification networks that make up the trunk, in order; the last one outputs the
# feature map. The first entry whose children a network has applies to it.
_CUTS = (
    ("features",),  # MobileNet, DenseNet, VGG, EfficientNet, ConvNeXt, SqueezeNet
    ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),  # ResNet and its kin
    ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),  # ShuffleNet
    ("stem", "trunk_output"),  # RegNet
)
_TRIAL = 128  # side in pixels of the image from which the number of channels is computed


def _torchvision(name: str) -> nn.Module:
    from torchvision import models  # slow to import, so only when a model is made

    if name not in models.list_models(module=models):
        raise ConfigError(
            f"unknown encoder {name!r}; known: {', '.join(sorted(ENCODERS))}, and every classification network "
            "of torchvision that ends in a feature map"
        )
    sizes: AbstractContextManager[object] = _NumbersOnCpu() if name.startswith("regnet") else nullcontext()
    with sizes, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of GoogLeNet and Inception, which are refused below
        network = models.get_model(name, weights=None)
    for cut in _CUTS:
        if all(hasattr(network, child) for child in cut):
            break
    else:
        raise ConfigError(f"encoder {name!r} of torchvision has no feature map that Nightcap knows of")
    if len(cut) > 1:
        return nn.Sequential(OrderedDict((child, getattr(network, child)) for child in cut))
    trunk: nn.Module = network.features
    return trunk


class _NumbersOnCpu(TorchFunctionMode):
    """Inside, `torch.arange` and `torch.tensor` make numbers on the CPU, also under the meta device.

    RegNet computes the sizes of its layers with them, and a tensor on the meta device has no values.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        numbers = func in (torch.arange, torch.tensor)
        return func(*args, **({"device": "cpu"} | kwargs if numbers else kwargs))


def _densenet(name: str) -> nn.Module:
    trunk = _torchvision(name)
    trunk.add_module("relu", nn.ReLU(inplace=True))  # torchvision applies it outside of `features`
    return trunk


def _xception(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"encoder {name!r} comes from timm; `pip install nightcap[xception]`") from error
    trunk: nn.Module = timm.create_model("legacy_xception", pretrained=False, num_classes=0, global_pool="")
    return trunk


ENCODERS: dict[str, Callable[[str], nn.Module]] = {
    "mobilenet_v2": lambda _: MobileNetV2(),  # Sandler et al. 2018, arXiv:1801.04381
    "resnet34": _torchvision,  # He et al. 2016, arXiv:1512.03385
    "resnet50": _torchvision,
    "densenet201": _densenet,  # Huang et al. 2017, arXiv:1608.06993
    "xception": _xception,  # Chollet 2017, arXiv:1610.02357
}
"""Name -> function that makes the trunk, with random weights. Other names are looked up in torchvision."""


class Encoder(nn.Module):
    """A CNN trunk: images (B, 3, H, W) -> annotation vectors (B, L, D), one for each of the L = h·w grid places.

    With `pooled` their mean is the only vector, L = 1. Batch-norm uses its stored statistics in training too:
    batches are small in fine-tuning, and a folded trunk has no batch-norm. Raises ConfigError for a `name` that is
    no encoder.
    """

    def __init__(self, name: str, pooled: bool = False) -> None:
        super().__init__()
        self.name, self.pooled = name, pooled
        make = ENCODERS.get(name, _densenet if name.startswith("densenet") else _torchvision)
        self.trunk = make(name)
        self.channels: int = getattr(self.trunk, "channels", 0) or _channels(name, make)

    def forward(self, images: Tensor) -> Tensor:
        grid: Tensor = self.trunk(images)  # (B, 3, H, W) -> (B, D, h, w)
        vectors = grid.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, L, D)
        return vectors.mean(1, keepdim=True) if self.pooled else vectors

    def fold(self) -> None:
        """Replace the trunk by its inference form, see `fold_batch_norm`."""
        self.trunk = fold_batch_norm(self.trunk)

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _channels(name: str, make: Callable[[str], nn.Module]) -> int:
    """D, computed by passing shapes without data through a trunk without weights (the meta device)."""
    with torch.device("meta"):
        grid = make(name).eval()(torch.empty(1, 3, _TRIAL, _TRIAL))
    if grid.ndim != 4 or grid.shape[2] != grid.shape[3]:
        raise ConfigError(f"encoder {name!r} gives {tuple(grid.shape)}, not a map (channels, height, width)")
    return int(grid.shape[1])


def fold_batch_norm(trunk: nn.Module) -> nn.Module:
    """A copy of `trunk` for inference, with each batch-norm folded into the convolution before it.

    A trunk that torch.fx can't trace keeps some of them: it is slower and gives the same results.
    """
    trunk = deepcopy(trunk).eval()
    for sequence in [module for module in trunk.modules() if isinstance(module, nn.Sequential)]:
        for (first, convolution), (second, norm) in pairwise(list(sequence.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(sequence, first, fuse_conv_bn_eval(convolution, norm))
                setattr(sequence, second, nn.Identity())
    if not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules()):
        return trunk
    from torch.fx.experimental.optimization import fuse  # slow to import
    from torch.fx.proxy import TraceError

    try:
        return fuse(trunk)
    except TraceError:
        return trunk
