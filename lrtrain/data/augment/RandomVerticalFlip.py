"""Mirror a sample top to bottom with probability p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.moved import moved


@dataclass(frozen=True)
class RandomVerticalFlip:
    """Samples whose draw is below `p` are mirrored top to bottom."""

    p: float
    draws: ClassVar[int] = 1

    @classmethod
    def like(cls, transform: Any) -> RandomVerticalFlip:
        """The same flip as torchvision's `transform`."""
        return cls(transform.p)

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Flip a batch."""
        mirrored = moved(torch.from_numpy(uniform < self.p), images.device)
        return torch.where(mirrored[:, :, None, None], images.flip(-2), images)
