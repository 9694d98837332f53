"""uint8 pixels 0..255 become float32 0..1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class ToDtype:
    """The conversion to scaled float32; other conversions are left to torchvision."""

    draws: ClassVar[int] = 0

    @classmethod
    def like(cls, transform: Any) -> ToDtype | None:
        """The same conversion as torchvision's `transform`."""
        return cls() if transform.scale and transform.dtype is torch.float32 else None

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Convert a batch."""
        scaled: torch.Tensor = F.to_dtype_image(images, torch.float32, scale=True)
        return scaled
