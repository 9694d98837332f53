"""Torchvision datasets of image files, as files: read by our rule, called by their names, in the order of these."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrtrain.data.files import FileSplit, relative
from lrtrain.data.pairs import labelled


def path_itself(path: str | os.PathLike[str]) -> str:
    """What torchvision is given as a `loader`, so that an item is (path, target): no image is opened."""
    return os.fspath(path)


@dataclass(frozen=True)
class Listing:
    """A dataset of (path, target), sorted by path: torchvision lists some in the order of the file system.

    Attributes:
        root: the folder that names start from.
        names: paths from there.
        targets: a class for each.
        classes: what torchvision calls them; empty where it does not.
    """

    root: Path
    names: list[str]
    targets: list[int]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[str, int]:
        return self.names[i], self.targets[i]

    def split(self, labels: NDArray[np.int64], channels: int) -> FileSplit:
        """The images with other labels, such as these in the order of train's classes."""
        return FileSplit(self.root, self.names, labels, channels)


def as_files(name: str, pairs: Any) -> Any:
    """A dataset that was opened with `path_itself` as its files; another one as it is.

    Args:
        name: the dataset's and the split's.
        pairs: opened.

    Raises:
        DataError: it is empty, has other labels than images, or is no classification dataset.
    """
    if getattr(pairs, "loader", getattr(pairs, "_loader", None)) is not path_itself:
        return pairs
    labels, classes = labelled(name, pairs)
    root = Path(getattr(pairs, "target_folder", pairs.root))  # Omniglot's own, whose root is the one above it
    names = [relative(root, os.path.abspath(pairs[i][0])) for i in range(len(pairs))]
    if type(pairs).__name__ == "Omniglot":  # which numbers the characters in the order of the file system
        found, labels = np.unique([os.path.dirname(each) for each in names], return_inverse=True)
        classes = tuple(found.tolist())
    if type(pairs).__name__ == "INaturalist":
        (rank,) = pairs.target_type  # several would be no integer
        classes = tuple(pairs.all_categories if rank == "full" else pairs.categories_index[rank])
    order = sorted(range(len(names)), key=names.__getitem__)  # NumPy would make each name as wide as the longest
    return Listing(root, [names[i] for i in order], labels[order].tolist(), classes)
