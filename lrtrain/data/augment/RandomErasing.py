"""Overwrite a random rectangle with probability p (Zhong et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.augment.rectangles import TRIES, drawn_sides, first_fitting
from lrtrain.data.moved import moved


@dataclass(frozen=True)
class RandomErasing:
    """In samples whose draw is below `p`, `value` (one, or one a channel) fills a rectangle smaller than the image.

    Its area is uniform between the shares `scale` of the image's, the logarithm of height / width uniform
    between those of `ratio`. Where ten tries do not fit into the image, it stays whole.
    """

    p: float
    scale: tuple[float, float]
    ratio: tuple[float, float]
    value: tuple[float, ...]
    draws: ClassVar[int] = 3 + 2 * TRIES

    @classmethod
    def like(cls, transform: Any) -> RandomErasing | None:
        """The same erasing as torchvision's `transform`; not its noise, drawn pixel by pixel."""
        if transform.value is None:
            return None
        return cls(transform.p, tuple(transform.scale), tuple(transform.ratio), tuple(transform.value))

    def rectangles(self, uniform: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
        """Top, left, height and width of what is erased in images of height x width, shape (B, 4); 0 x 0 for none."""
        h, w = drawn_sides(uniform[:, 3:], height * width, self.scale, self.ratio)
        found, (h, w) = first_fitting((h < height) & (w < width), h, w)
        erased = found & (uniform[:, 0] < self.p)
        top, left = uniform[:, 1] * (height - h + 1), uniform[:, 2] * (width - w + 1)
        drawn: NDArray[np.int64] = np.stack([top.astype(np.int64), left.astype(np.int64), h, w], axis=1)
        return drawn * erased[:, None]

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Erase in a batch.

        Raises:
            ValueError: the images have another number of channels than `value`.
        """
        channels, height, width = images.shape[1:]
        if len(self.value) not in (1, channels):
            raise ValueError(f"{len(self.value)} values for images of {channels} channels")
        value = moved(torch.tensor(self.value).to(images.dtype), images.device)[:, None, None]
        images = images.clone()
        # One after another: a mask over all pixels takes two to ten times as long.
        for image, (top, left, h, w) in zip(images, self.rectangles(uniform, height, width).tolist(), strict=True):
            if h * w > 0:
                image[:, top : top + h, left : left + w] = value
        return images
