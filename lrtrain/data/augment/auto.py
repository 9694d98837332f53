"""What TrivialAugmentWide and RandAugment share: one of torchvision's augmentations for each sample."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.augment.colour import (
    Adjust,
    adjust_brightness,
    adjust_contrast,
    adjust_rows,
    adjust_saturation,
    adjust_sharpness,
)

# With a factor for each sample; others are grouped by magnitude.
_BY_FACTOR: dict[str, Adjust] = {
    "Brightness": adjust_brightness,
    "Color": adjust_saturation,
    "Contrast": adjust_contrast,
    "Sharpness": adjust_sharpness,
}


def chosen_kinds(transform: Any, uniform: NDArray[np.float64]) -> NDArray[np.str_]:
    """Each sample's kind out of `transform`'s augmentations, all equally likely; `uniform` has shape (B,)."""
    names = np.array(list(transform._AUGMENTATION_SPACE))
    return names[(uniform * len(names)).astype(np.int64)]


def magnitudes(
    transform: Any,
    kinds: NDArray[np.str_],
    bins: NDArray[np.int64],
    uniform: NDArray[np.float64],
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """Each sample's magnitude, shape (B,): that of its bin, with a minus at odds of 1/2 where the kind has a sign.

    Args:
        transform: torchvision's object; it knows how strong each kind is at each bin.
        kinds: from `chosen_kinds`.
        bins: out of `transform.num_magnitude_bins`, shape (B,).
        uniform: draws for the sign, shape (B,).
        size: height and width of the images.
    """
    found = np.zeros(len(kinds))
    for kind in np.unique(kinds):
        strength, signed = transform._AUGMENTATION_SPACE[kind]
        table = strength(transform.num_magnitude_bins, *size)
        if table is not None:
            rows = np.flatnonzero(kinds == kind)
            sign = np.where(uniform[rows] <= 0.5, -1.0, 1.0) if signed else 1.0
            found[rows] = table.double().numpy()[bins[rows]] * sign
    return found


def augmented(
    transform: Any, images: torch.Tensor, kinds: NDArray[np.str_], strengths: NDArray[np.float64]
) -> torch.Tensor:
    """A batch, each sample by its own kind and magnitude; samples that share them go through torchvision together."""
    images = images.clone()
    for kind in np.unique(kinds):
        of_kind = np.flatnonzero(kinds == kind)
        if kind in _BY_FACTOR:
            adjust_rows(images, of_kind, _BY_FACTOR[kind], 1.0 + strengths[of_kind])
        elif kind != "Identity":
            for strength in np.unique(strengths[of_kind]):
                rows = of_kind[strengths[of_kind] == strength]
                adjust_rows(images, rows, partial(_by_torchvision, transform, str(kind)), strengths[rows])
    return images


def _by_torchvision(transform: Any, kind: str, images: torch.Tensor, strengths: NDArray[np.float64]) -> torch.Tensor:
    (strength,) = set(strengths.tolist())
    augmented: torch.Tensor = transform._apply_image_or_video_transform(
        images, kind, strength, transform.interpolation, transform._fill
    )
    return augmented
