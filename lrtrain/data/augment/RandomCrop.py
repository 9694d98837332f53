"""Pad, then cut a window at a random place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from lrtrain.data.moved import moved


@dataclass(frozen=True)
class RandomCrop:
    """Windows of `size` (height, width) out of images padded by `padding` (left, top, right, bottom)."""

    size: tuple[int, int]
    padding: tuple[int, int, int, int] | None
    fill: float | Sequence[float] | None
    padding_mode: str
    draws: ClassVar[int] = 2

    @classmethod
    def like(cls, transform: Any) -> RandomCrop | None:
        """The same crop as torchvision's `transform`."""
        if transform.pad_if_needed or isinstance(transform.fill, dict):
            return None
        height, width = transform.size
        if transform.padding is None:
            return cls((height, width), None, transform.fill, transform.padding_mode)
        left, right, top, bottom = transform.padding  # torch.nn.functional.pad's order
        return cls((height, width), (left, top, right, bottom), transform.fill, transform.padding_mode)

    def corners(self, uniform: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
        """Top and left of each window in padded images of height x width: floor(u (H - h + 1)), shape (B, 2).

        Raises:
            ValueError: the window is larger than the padded image.
        """
        room = np.array([height - self.size[0] + 1, width - self.size[1] + 1])
        if (room < 1).any():
            wanted = f"{self.size[0]}x{self.size[1]}"
            raise ValueError(f"a crop of {wanted} does not fit into {height}x{width} pixels")
        corners: NDArray[np.int64] = (uniform * room).astype(np.int64)
        return corners

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Crop a batch."""
        if self.padding is not None:
            images = F.pad_image(images, list(self.padding), self.fill, self.padding_mode)
        corners = moved(torch.from_numpy(self.corners(uniform, *images.shape[-2:])), images.device)
        windows = images.unfold(2, self.size[0], 1).unfold(3, self.size[1], 1)
        return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]
