"""torchvision's colour functions with a factor for each sample of a batch.

Images are (B, C, H, W) of 1 or 3 channels, integer or float in 0..1; factors are float64 (B,). Results equal
torchvision's functions on each sample alone: on uint8 to the bit, on float but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional._color import _hsv_to_rgb, _rgb_to_hsv

from lrtrain.data.moved import moved

Factors = NDArray[np.float64]
Adjust = Callable[[torch.Tensor, Factors], torch.Tensor]

_CHUNK = 2**17  # pixel values; what is made of so many stays in a core's cache


def adjust_rows(images: torch.Tensor, rows: NDArray[np.int64], adjust: Adjust, factors: Factors) -> None:
    """Adjust the samples `rows` of a batch in place, each by its own of `factors`; all have shape (len(rows),)."""
    size = max(1, _CHUNK // images[0].numel()) if images.device.type == "cpu" else len(rows)
    for start in range(0, len(rows), size):
        chosen = moved(torch.from_numpy(rows[start : start + size]), images.device)
        images[chosen] = adjust(images[chosen], factors[start : start + size])


def adjust_brightness(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """`f x`, cut off at black and white."""
    _check_channels(images)
    return _pixels(_float(images) * _column(factors, images), images.dtype)


def adjust_contrast(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """`f x + (1 - f) m`, where m is the mean of the gray image."""
    _check_channels(images)
    gray = _gray(images).to(_wide(images))
    # Sums of whole numbers are exact in float64, in whatever order a kernel adds them; gray of float images,
    # which is not whole, is counted in 2^-24.
    unit = 2.0**24 if images.is_floating_point() else 1.0
    total = gray.mul(unit).round_().sum(dim=(1, 2, 3), keepdim=True)
    return _blend(images, (total / (unit * gray[0].numel())).float(), factors)


def adjust_saturation(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """`f x + (1 - f) g`, where g is the gray image."""
    _check_channels(images)
    return images if images.shape[1] == 1 else _blend(images, _gray(images), factors)


def adjust_hue(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """The hue of HSV, in 0..1, is shifted by f."""
    _check_channels(images)
    if images.shape[1] == 1:
        return images
    hue, saturation, value = _rgb_to_hsv(F.to_dtype_image(images, torch.float32, scale=True)).unbind(1)
    hue = hue.add(_column(factors, images)[:, 0]).remainder_(1.0)
    shifted = _hsv_to_rgb(torch.stack((hue, saturation, value), dim=1))
    adjusted: torch.Tensor = F.to_dtype_image(shifted, images.dtype, scale=True)
    return adjusted


def adjust_sharpness(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """`x + (1 - f) (b - x)`, where b is the 3x3 mean in which the middle counts five times; edges stay."""
    _check_channels(images)
    if min(images.shape[-2:]) <= 2:
        return images
    x = _float(images)
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    middle = x[:, :, 1:-1, 1:-1]
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * middle) / 13
    if not images.is_floating_point():
        blurred = blurred.round_()
    sharpened = images.clone()
    sharpened[:, :, 1:-1, 1:-1] = _pixels(_fused(middle, blurred - middle, 1 - factors), images.dtype)
    return sharpened


def _blend(images: torch.Tensor, others: torch.Tensor, factors: Factors) -> torch.Tensor:
    return _pixels(_fused(_float(images) * _column(factors, images), others, 1 - factors), images.dtype)


def _gray(images: torch.Tensor) -> torch.Tensor:
    if images.shape[1] == 1:
        return _float(images)
    red, green, blue = _float(images)[:, :, None].unbind(1)
    ones = np.ones(1)
    gray = _fused(_fused(red * 0.2989, green, 0.587 * ones), blue, 0.114 * ones)
    return gray if images.is_floating_point() else gray.floor_()


def _fused(x: torch.Tensor, y: torch.Tensor, factors: Factors) -> torch.Tensor:
    """`x + y f` rounded once to float32, as torch's CPU kernel does by a fused multiply-add.

    By way of float64, which holds the product exactly: no kernel rounds otherwise, wherever a pixel is in its batch.
    """
    wide = _wide(x)
    return x.to(wide).add_(y.to(wide) * _column(factors, x).to(wide)).float()


def _wide(images: torch.Tensor) -> torch.dtype:
    # MPS has no float64; there, a pixel in some thousands may be one level off.
    return torch.float32 if images.device.type == "mps" else torch.float64


def _column(factors: Factors, images: torch.Tensor) -> torch.Tensor:
    return moved(torch.from_numpy(factors.astype(np.float32)), images.device).view(-1, 1, 1, 1)


def _float(images: torch.Tensor) -> torch.Tensor:
    return images.to(torch.float32)


def _pixels(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return images.clamp_(0, 1 if dtype.is_floating_point else torch.iinfo(dtype).max).to(dtype)


def _check_channels(images: torch.Tensor) -> None:
    if images.shape[1] not in (1, 3):
        raise ValueError(f"colours are adjusted in images of 1 or 3 channels, not {images.shape[1]}")
