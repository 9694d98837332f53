"""One random augmentation of random magnitude (Mueller and Hutter 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.augment.auto import augmented, chosen_kinds, magnitudes


@dataclass(frozen=True)
class TrivialAugmentWide:
    """torchvision's object draws nothing here; it knows the augmentations and does them."""

    transform: Any
    draws: ClassVar[int] = 3

    @classmethod
    def like(cls, transform: Any) -> TrivialAugmentWide | None:
        """The same augmentation as torchvision's `transform`."""
        return None if isinstance(transform.fill, dict) else cls(transform)

    def parameters(
        self, uniform: NDArray[np.float64], height: int, width: int
    ) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
        """Kind and magnitude for images of height x width, each of shape (B,)."""
        kinds = chosen_kinds(self.transform, uniform[:, 0])
        bins = (uniform[:, 1] * self.transform.num_magnitude_bins).astype(np.int64)
        return kinds, magnitudes(self.transform, kinds, bins, uniform[:, 2], (height, width))

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Augment a batch."""
        return augmented(self.transform, images, *self.parameters(uniform, *images.shape[-2:]))
