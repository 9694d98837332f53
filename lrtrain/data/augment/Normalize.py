"""Subtract the mean and divide by the standard deviation, per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.moved import moved


@dataclass(frozen=True)
class Normalize:
    """`(x - mean) / std` as `x a + b`; for uint8 pixels x is meant on the scale 0..1, so `a` includes 1/255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    draws: ClassVar[int] = 0

    @classmethod
    def like(cls, transform: Any) -> Normalize:
        """The same normalisation as torchvision's `transform`."""
        return cls(tuple(float(m) for m in transform.mean), tuple(float(s) for s in transform.std))

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Normalise a batch.

        Raises:
            ValueError: the images have another number of channels than `mean`.
        """
        if images.shape[1] != len(self.mean):
            raise ValueError(f"{len(self.mean)} means for images of {images.shape[1]} channels")
        std = torch.tensor(self.std, dtype=torch.float64)
        scale = 1 / std / (255 if images.dtype == torch.uint8 else 1)
        shift = -torch.tensor(self.mean, dtype=torch.float64) / std
        a, b = moved(torch.stack([scale, shift]).float(), images.device)[:, None, :, None, None]
        # Two roundings, not one fused: whether a kernel fuses depends on a pixel's place in the batch.
        return images.to(torch.float32).mul_(a).add_(b)
