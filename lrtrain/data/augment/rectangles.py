"""Rectangles of random area and shape: what RandomErasing and RandomResizedCrop try ten times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TRIES = 10


def drawn_sides(
    uniform: NDArray[np.float64], area: int, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both sides of each try, `sqrt(a r)` and `sqrt(a / r)`: a is uniform, and so is the logarithm of r.

    Args:
        uniform: draws, shape (B, 2 TRIES).
        area: of the image, pixels; a is between `scale[0]` and `scale[1]` of it.
        scale: least and greatest share of the area.
        ratio: least and greatest r.

    Returns:
        Two arrays of pixels, shape (B, TRIES).
    """
    shares, shapes = uniform[:, :TRIES], uniform[:, TRIES:]
    covered = area * (scale[0] + shares * (scale[1] - scale[0]))
    with np.errstate(divide="ignore", invalid="ignore"):  # what comes of it fits nowhere
        least, greatest = np.log(np.asarray(ratio, dtype=np.float64))
    r = np.exp(least + shapes * (greatest - least))
    return np.rint(np.sqrt(covered * r)).astype(np.int64), np.rint(np.sqrt(covered / r)).astype(np.int64)


def first_fitting(
    fits: NDArray[np.bool_], *sides: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], list[NDArray[np.int64]]]:
    """Whether any try fits, shape (B,), and the sides of the first that does; of the first try where none does."""
    first = fits.argmax(axis=1)
    return np.logical_or.reduce(fits, axis=1), [side[np.arange(len(fits)), first] for side in sides]
