"""Change brightness, contrast, saturation and hue by random factors, in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.augment.colour import (
    Adjust,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_rows,
    adjust_saturation,
)

_ADJUST: tuple[Adjust, ...] = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


@dataclass(frozen=True)
class ColorJitter:
    """Least and greatest factor of brightness, contrast, saturation and hue; None leaves it as it is."""

    ranges: tuple[tuple[float, float] | None, ...]
    draws: ClassVar[int] = 2 * len(_ADJUST)

    @classmethod
    def like(cls, transform: Any) -> ColorJitter:
        """The same jitter as torchvision's `transform`."""
        return cls((transform.brightness, transform.contrast, transform.saturation, transform.hue))

    def order(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which of the four adjustments comes first, second, third and last, shape (B, 4)."""
        return np.argsort(uniform[:, : len(_ADJUST)], axis=1).astype(np.int64)

    def factors(self, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the four adjustments, shape (B, 4): uniform between the ends, and float32 like torch's draws."""
        low, high = np.array([ends or (0.0, 0.0) for ends in self.ranges]).T
        drawn: NDArray[np.float64] = (
            (low + uniform[:, len(_ADJUST) :] * (high - low)).astype(np.float32).astype(np.float64)
        )
        return drawn

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Jitter a batch: the samples that share an adjustment at their first, second ... place together."""
        order, factors = self.order(uniform), self.factors(uniform)
        images = images.clone()
        for place in range(len(_ADJUST)):
            for i, adjust in enumerate(_ADJUST):
                rows = np.flatnonzero(order[:, place] == i)
                if self.ranges[i] is not None:
                    adjust_rows(images, rows, adjust, factors[rows, i])
        return images
