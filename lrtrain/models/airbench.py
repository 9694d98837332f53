"""A small, wide network that learns CIFAR-10 in few epochs."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

# Variance of CIFAR-10's normalised 2x2 patches along each axis of `_patch_axes`: sums, differences across, down and
# diagonal, each in brightness, red against blue, and green against both.
_VARIANCES = {
    1: (10.1, 0.34, 0.40, 0.055),
    3: (10.1, 0.34, 0.40, 0.055, 0.78, 0.0039, 0.0060, 0.0005, 0.18, 0.0017, 0.0024, 0.0005),
}


class _Block(nn.Module):
    """Two 3x3 convolutions with a max-pool between them; both begin as the identity on their first channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, out_channels)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = _norm(out_channels)
        self.conv2 = _convolution(out_channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.pool(self.conv1(x))))
        y: Tensor = self.act(self.norm2(self.conv2(x)))
        return y


class _Head(nn.Module):
    """A linear classifier without bias, whose logits are multiplied by a constant."""

    def __init__(self, channels: int, num_classes: int, logit_scale: float) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x) * self.logit_scale
        return logits


def airbench(num_classes: int, in_channels: int = 3, width: int = 64, logit_scale: float = 1 / 9) -> nn.Module:
    """A fixed layer that whitens 2x2 patches, three blocks of two convolutions, and a linear classifier.

    K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, arXiv:2404.00498 (its whitening is computed
    from the data; here it is that of natural images, whose patches have nearly the same axes everywhere).

    Args:
        num_classes: logits per image.
        in_channels: 3, or 1 for gray; shape (n, in_channels, h, w), normalised, made for 32 px, at least 16 px.
        width: channels of the first block; the other two have four times as many.
        logit_scale: what the logits are multiplied by.
    """
    whiten = nn.Conv2d(in_channels, 8 * in_channels, 2)
    whiten.weight = nn.Parameter(_whitening(in_channels), requires_grad=False)
    nn.init.zeros_(whiten.bias)  # type: ignore[arg-type]
    return nn.Sequential(
        OrderedDict(
            [
                ("whiten", whiten),
                ("act", nn.GELU()),
                ("block1", _Block(8 * in_channels, width)),
                ("block2", _Block(width, 4 * width)),
                ("block3", _Block(4 * width, 4 * width)),
                ("pool", nn.AdaptiveMaxPool2d(1)),
                ("flatten", nn.Flatten()),
                ("head", _Head(4 * width, num_classes, logit_scale)),
            ]
        )
    )


def _whitening(in_channels: int) -> Tensor:
    """The patch axes, each divided by its standard deviation, and their negatives: (8 channels, channels, 2, 2)."""
    axes = _patch_axes(in_channels) / torch.tensor(_VARIANCES[in_channels]).sqrt()[:, None, None, None]
    return torch.cat([axes, -axes])


def _patch_axes(in_channels: int) -> Tensor:
    """Orthonormal axes of 2x2 patches, Haar's in space times opponent colours: (4 channels, channels, 2, 2)."""
    space = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    colour = torch.ones(1, 1)
    if in_channels == 3:
        opponents = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
        colour = opponents / opponents.norm(dim=1, keepdim=True)
    return torch.einsum("ac,bp->abcp", colour, space).reshape(-1, in_channels, 2, 2)


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight[:in_channels])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with a bias and no factor to learn, whose statistics follow quickly."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
