"""Cut a random part of random shape, then resize it (Szegedy et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lrtrain.data.augment.rectangles import TRIES, drawn_sides, first_fitting
from lrtrain.data.moved import moved

_SUPPORT = {InterpolationMode.BILINEAR: 1, InterpolationMode.BICUBIC: 2}  # reach of the filter, in pixels


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image becomes `size` (height, width).

    Its area is uniform between the shares `scale` of the image's, the logarithm of width / height uniform
    between those of `ratio`. Where ten tries do not fit into the image, the middle is taken.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: Any
    antialias: bool | None
    draws: ClassVar[int] = 2 + 2 * TRIES

    @classmethod
    def like(cls, transform: Any) -> RandomResizedCrop:
        """The same crop as torchvision's `transform`."""
        height, width = transform.size
        scale, ratio = tuple(transform.scale), tuple(transform.ratio)
        return cls((height, width), scale, ratio, transform.interpolation, transform.antialias)

    def windows(self, uniform: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
        """Top, left, height and width of each part of images of height x width, shape (B, 4)."""
        w, h = drawn_sides(uniform[:, 2:], height * width, self.scale, self.ratio)
        found, (w, h) = first_fitting((w > 0) & (w <= width) & (h > 0) & (h <= height), w, h)
        top, left = uniform[:, 0] * (height - h + 1), uniform[:, 1] * (width - w + 1)
        drawn = np.stack([top.astype(np.int64), left.astype(np.int64), h, w], axis=1)
        windows: NDArray[np.int64] = np.where(found[:, None], drawn, self._middle(height, width))
        return windows

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        h, w = height, width
        if width / height < min(self.ratio):
            h = round(width / min(self.ratio))
        elif width / height > max(self.ratio):
            w = round(height * max(self.ratio))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Crop and resize a batch, one after another: parts of different sizes have no kernel in common."""
        windows = self.windows(uniform, *images.shape[-2:])
        smooth = self.antialias and self.interpolation in _SUPPORT
        if images.is_cuda and smooth and not torch.are_deterministic_algorithms_enabled():
            return self.together(images, windows)
        # One memory format, since the resizing kernels of the two round differently.
        return torch.stack(
            [
                F.resized_crop_image(image, *window, list(self.size), self.interpolation, self.antialias)
                for image, window in zip(images.contiguous(), windows.tolist(), strict=True)
            ]
        )

    def together(self, images: torch.Tensor, windows: NDArray[np.int64]) -> torch.Tensor:
        """All parts at once, as products with the matrices that resize rows and columns.

        One after another they keep a GPU waiting: each is too small for it. Differs from torchvision by rounding, for
        uint8 by one level where a value lies between two; which way may depend on the batch.
        """
        top, left, height, width = moved(torch.from_numpy(windows), images.device).to(torch.float32).unbind(1)
        rows = _resizing(top, height, self.size[0], images.shape[2], self.interpolation)
        columns = _resizing(left, width, self.size[1], images.shape[3], self.interpolation)
        resized = rows[:, None] @ images.to(torch.float32) @ columns[:, None].mT
        return resized if images.is_floating_point() else resized.clamp_(0, 255).round_().to(images.dtype)


def _resizing(first: torch.Tensor, length: torch.Tensor, size: int, whole: int, interpolation: Any) -> torch.Tensor:
    """What each of `size` pixels takes of each of `whole`, where those from `first` on become them; (B, size, whole).

    The antialiased filters of torch's `interpolate`: a triangle, or Keys' cubic with a = -1/2, as wide as a pixel of
    the result.

    Args:
        first: index of the first pixel, shape (B,).
        length: number of pixels, shape (B,).
        size: number of pixels of the result.
        whole: pixels of the image.
        interpolation: bilinear or bicubic.
    """
    device = first.device
    first, length = first[:, None, None], length[:, None, None]
    scale = length / size
    wide = scale.clamp(min=1)
    middle = (torch.arange(size, device=device)[:, None] + 0.5) * scale
    at = torch.arange(whole, device=device) - first
    reach = _SUPPORT[interpolation] * wide
    low, high = (middle - reach + 0.5).floor().clamp(min=0), torch.minimum((middle + reach + 0.5).floor(), length)
    x = ((at + 0.5 - middle) / wide).abs()
    weights = _keys(x) if interpolation == InterpolationMode.BICUBIC else (1 - x).clamp(min=0)
    weights = torch.where((at >= low) & (at < high), weights, 0.0)
    return weights / weights.sum(dim=-1, keepdim=True)


def _keys(x: torch.Tensor) -> torch.Tensor:
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
