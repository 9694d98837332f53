"""A small convolutional network for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def small_cnn(num_classes: int, in_channels: int = 3, width: int = 32) -> nn.Module:
    """Three 3x3 convolutions, each with BatchNorm and ReLU, and a linear classifier on their global average.

    Args:
        num_classes: logits per image.
        in_channels: channels of the images, shape (n, in_channels, h, w) with h and w at least 4 px.
        width: channels of the first convolution; the others have 2 and 4 times as many.
    """
    layers: list[tuple[str, nn.Module]] = []
    channels = in_channels
    for i, out in enumerate((width, 2 * width, 4 * width), start=1):
        layers += [
            (f"conv{i}", nn.Conv2d(channels, out, 3, padding=1, bias=False)),
            (f"bn{i}", nn.BatchNorm2d(out)),
            (f"relu{i}", nn.ReLU(inplace=True)),
            (f"pool{i}", nn.MaxPool2d(2) if i < 3 else nn.AdaptiveAvgPool2d(1)),
        ]
        channels = out
    layers += [("flatten", nn.Flatten()), ("fc", nn.Linear(channels, num_classes))]
    return nn.Sequential(OrderedDict(layers))
