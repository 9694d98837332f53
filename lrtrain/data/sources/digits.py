"""Handwritten digits, 8x8 pixels, shipped with the package.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): the 1,797 scans
of its test file. Changed here: the counts 0..16 of each 4x4 block are scaled to 0..255 when read, and 360
scans are set apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.source import Source


@dataclass(frozen=True, eq=False)
class Scans:
    """Images held in memory, uint8 (n, 8, 8)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, i: int) -> torch.Tensor:
        """Image i, uint8 (1, 8, 8)."""
        return torch.from_numpy(self.pixels[i])[None].clone()

    def path(self, i: int) -> str:
        """The scan's number in UCI's file."""
        return f"digits scan {self.numbers[i]}"


def digits() -> Source:
    """1,437 scans to train on and 360 to validate on, 36 of each digit, the same whatever the seed."""
    with as_file(files("lrtrain.data") / "digits.npz") as path, np.load(path, allow_pickle=False) as stored:
        counts, labels, held_out = stored["pixels"], stored["labels"].astype(np.int64), stored["val"]
    pixels = np.round(counts * (255 / 16)).astype(np.uint8)
    train, val = (
        Scans(pixels[chosen], labels[chosen], np.flatnonzero(chosen).astype(np.int64))
        for chosen in (~held_out, held_out)
    )
    return Source(
        classes=tuple("0123456789"),
        channels=1,
        train=train,
        val=val,
        val_from="360 fixed scans, 36 of each digit",
        mean=(0.3050,),
        std=(0.3756,),
        measured=lambda: (8, 8),
        mirrored_is_same=False,
    )
