"""Some random augmentations of one magnitude, one after another (Cubuk et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.augment.auto import augmented, chosen_kinds, magnitudes


@dataclass(frozen=True)
class RandAugment:
    """torchvision's object draws nothing here; it knows the augmentations and does them."""

    transform: Any
    draws: int

    @classmethod
    def like(cls, transform: Any) -> RandAugment | None:
        """The same augmentations as torchvision's `transform`."""
        return None if isinstance(transform.fill, dict) else cls(transform, 2 * transform.num_ops)

    def parameters(
        self, uniform: NDArray[np.float64], height: int, width: int
    ) -> list[tuple[NDArray[np.str_], NDArray[np.float64]]]:
        """Kind and magnitude of each augmentation for images of height x width, each of shape (B,)."""
        bins = np.full(len(uniform), self.transform.magnitude)
        rounds = []
        for i in range(self.transform.num_ops):
            kinds = chosen_kinds(self.transform, uniform[:, 2 * i])
            rounds.append((kinds, magnitudes(self.transform, kinds, bins, uniform[:, 2 * i + 1], (height, width))))
        return rounds

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Augment a batch."""
        for kinds, strengths in self.parameters(uniform, *images.shape[-2:]):
            images = augmented(self.transform, images, kinds, strengths)
        return images
