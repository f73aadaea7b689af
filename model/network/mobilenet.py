"""The trunk of MobileNetV2, with the layers and parameter names of torchvision's.

Importing torchvision takes longer than all the rest of a run's start-up, so the shipped bundle does without it.
"""

from __future__ import annotations

from torch import Tensor, nn

FIRST_CHANNELS = 32
# Table 2 of the paper: expansion factor, output channels, number of blocks, stride of the first block.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Sequential):
    """Images (B, 3, H, W) -> feature map (B, `channels`, H/32, W/32). Sandler et al. 2018, arXiv:1801.04381."""

    channels = 1280

    def __init__(self) -> None:
        layers: list[nn.Module] = [_conv(3, FIRST_CHANNELS, kernel=3, stride=2)]
        channels = FIRST_CHANNELS
        for expansion, width, count, stride in BLOCKS:
            for i in range(count):
                layers.append(InvertedResidual(channels, width, stride if i == 0 else 1, expansion))
                channels = width
        super().__init__(*layers, _conv(channels, self.channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")


class InvertedResidual(nn.Module):
    """1×1 convolution to more channels, 3×3 convolution per channel, 1×1 convolution to fewer; plus the input."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        expand = [_conv(channels, hidden)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


def _conv(channels: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch-norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(inplace=True),
    )
