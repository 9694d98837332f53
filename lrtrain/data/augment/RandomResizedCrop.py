"""Cut a random part of random shape, then resize it (Szegedy et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from lrtrain.data.augment.rectangles import TRIES, drawn_sides, first_fitting


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
        windows = self.windows(uniform, *images.shape[-2:]).tolist()
        # One memory format, since the resizing kernels of the two round differently.
        return torch.stack(
            [
                F.resized_crop_image(image, *window, list(self.size), self.interpolation, self.antialias)
                for image, window in zip(images.contiguous(), windows, strict=True)
            ]
        )
