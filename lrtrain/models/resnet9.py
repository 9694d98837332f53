"""ResNet-9, the network that won DAWNBench's CIFAR-10 training race in 2018."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class _Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        return x + y


class _Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def resnet9(num_classes: int, in_channels: int = 3, width: int = 64, logit_scale: float = 0.125) -> nn.Module:
    """Eight 3x3 convolutions, four of them in two residual blocks, and a linear classifier without bias.

    D. Page, "How to Train Your ResNet", 2018, part 4 (ReLU and max-pooling as there).

    Args:
        num_classes: logits per image.
        in_channels: channels of the images, shape (n, in_channels, h, w); made for 32 px, at least 8 px.
        width: channels of the first convolution; the others have 2, 4 and 8 times as many.
        logit_scale: what the logits are multiplied by.
    """
    return nn.Sequential(
        OrderedDict(
            [
                ("stem", _convolution(in_channels, width)),
                ("layer1", nn.Sequential(_convolution(width, 2 * width), nn.MaxPool2d(2), _Residual(2 * width))),
                ("layer2", nn.Sequential(_convolution(2 * width, 4 * width), nn.MaxPool2d(2))),
                ("layer3", nn.Sequential(_convolution(4 * width, 8 * width), nn.MaxPool2d(2), _Residual(8 * width))),
                ("pool", nn.AdaptiveMaxPool2d(1)),
                ("flatten", nn.Flatten()),
                ("fc", nn.Linear(8 * width, num_classes, bias=False)),
                ("scale", _Scale(logit_scale)),
            ]
        )
    )


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
