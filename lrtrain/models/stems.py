"""The first layers of a network made to fit its images: small ones, and ones without colour."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from lrtrain import lookup
from lrtrain.errors import ConfigError


def small_stem(module: nn.Module, where: str) -> str:
    """Give a torchvision ResNet a 3x3 stride-1 first convolution and no max-pool (He et al. 2016, CIFAR).

    Returns:
        What was done, in words.

    Raises:
        ConfigError: the network is not of the ResNet family.
    """
    from torchvision.models import ResNet

    if not isinstance(module, ResNet):
        takes = [name for name in lookup.names("model") if re.match(r"(wide_)?res(net|next)\d", name)]
        takes = [name for name in takes if name not in lookup.ours("model")]
        raise ConfigError(
            "`stem: small` needs a network of torchvision's ResNet family",
            where,
            f"leave out `stem`, or take one of {', '.join(takes)}",
        )
    old = module.conv1
    module.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(module.conv1.weight, mode="fan_out", nonlinearity="relu")
    module.maxpool = nn.Identity()  # type: ignore[assignment,unused-ignore]
    return "small stem: conv1 is 3x3 with stride 1, no max-pool"


def first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The convolution that sees the images: the first that was registered."""
    return next(((name, m) for name, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)


def without_colour(weight: Tensor) -> Tensor:
    """The filters that answer to a gray image as `weight` does to the same image in RGB.

    Args:
        weight: shape (out, 3 n, h, w), of n pixels with their colours next to each other.

    Returns:
        The sum over the colours, shape (out, n, h, w), in float32 at least: three of fp16's numbers may be too large.
    """
    by_pixel = weight.reshape(len(weight), -1, 3, *weight.shape[2:])
    return by_pixel.to(torch.promote_types(weight.dtype, torch.float32)).sum(2)


@torch.no_grad()
def make_gray(module: nn.Module) -> str:
    """Let a network for RGB take images of one channel.

    Returns:
        What was done, in words.
    """
    found = first_convolution(module)
    if found is None or found[1].in_channels != 3:
        raise AssertionError(f"{type(module).__name__} does not start with a convolution over RGB")
    name, convolution = found
    convolution.weight = nn.Parameter(without_colour(convolution.weight))
    convolution.in_channels = 1
    return f"first convolution {name}: 3 -> 1 channels, weights summed"
