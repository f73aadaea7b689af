"""CNN encoders: images to a grid of annotation vectors. One registry, one line an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from conf.errors import ConfigError


@dataclass(frozen=True)
class Trunk:
    """How to make an encoder's convolutional part, and how many channels its last feature map has."""

    make: Callable[[], nn.Module]
    channels: int


def _mobilenet_v2() -> nn.Module:
    from torchvision.models import mobilenet_v2  # slow to import, so only when a model is made

    trunk: nn.Module = mobilenet_v2(weights=None).features
    return trunk


ENCODERS: dict[str, Trunk] = {
    "mobilenet_v2": Trunk(_mobilenet_v2, 1280),  # Sandler et al. 2018, arXiv:1801.04381
}


class Encoder(nn.Module):
    """A CNN trunk whose last feature map is read as L = h·w annotation vectors of D channels.

    Batch-norm always uses its stored statistics: batches are small when fine-tuning, and a folded trunk
    has none of its own.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in ENCODERS:
            raise ConfigError(f"unknown encoder {name!r}; known: {', '.join(sorted(ENCODERS))}")
        self.name = name
        self.channels = ENCODERS[name].channels
        self.trunk = ENCODERS[name].make()

    def forward(self, images: Tensor) -> Tensor:
        grid: Tensor = self.trunk(images)  # (B, 3, H, W) -> (B, D, h, w)
        return grid.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, L, D)

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def load_weights(self, path: Path) -> None:
        """Initialise the trunk from a local `.safetensors` or `.pth` (torchvision key names).

        `.pth` files are read with `weights_only=True`: nothing in them is executed.
        """
        if not path.is_file():
            raise ConfigError(f"encoder.weights: there is no file {str(path)!r}")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = {key.removeprefix("features."): value for key, value in state.items()}
        wanted = self.trunk.state_dict()
        missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
        wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
        if missing or wrong:
            raise ConfigError(
                f"{path} does not hold weights for {self.name}: "
                f"{len(missing)} of {len(wanted)} tensors missing, {len(wrong)} of another shape "
                f"(first: {(missing + wrong)[0]})"
            )
        self.trunk.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)


def fold_batch_norm(trunk: nn.Module) -> nn.Module:
    """An inference copy of `trunk` with each batch-norm folded into the convolution before it."""
    from torch.fx.experimental.optimization import fuse

    return fuse(trunk.eval())
