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
    """`(x - mean) / std` as `x a + b`; of whole numbers x is meant on the scale 0..1: for uint8 `a` includes 1/255."""

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
            ValueError: the images have another number of channels than `mean`, or numbers without a scale.
        """
        if images.shape[1] != len(self.mean):
            raise ValueError(f"{len(self.mean)} means for images of {images.shape[1]} channels")
        if images.dtype in (torch.int64, torch.uint64):  # as what is counted; no pixel reaches its largest number
            raise ValueError(f"pixels of {images.dtype} have no scale; uint8 and float32 have".replace("torch.", ""))
        std = torch.tensor(self.std, dtype=torch.float64)
        whole = not images.is_floating_point() and images.dtype != torch.bool
        scale = 1 / std / (torch.iinfo(images.dtype).max if whole else 1)
        shift = -torch.tensor(self.mean, dtype=torch.float64) / std
        a, b = moved(torch.stack([scale, shift]).float(), images.device)[:, None, :, None, None]
        # Two roundings, not one fused: whether a kernel fuses depends on a pixel's place in the batch.
        floats = images.to(torch.float32)
        # Not in place on what it was given, which may be one channel's memory seen as three.
        return (floats.mul(a) if floats is images else floats.mul_(a)).add_(b)
