"""Which images of a training set are held out: a share of each class, by hash of the name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lrtrain.data.source import Part, Split
from lrtrain.errors import DataError, Problem
from lrtrain.random import key


def hold_out(
    split: Split, classes: tuple[str, ...], fraction: float, seed: int, name: Callable[[int], str]
) -> tuple[Part, Part, str]:
    """Part a split in two, (train, val, val in words), with about `fraction` of each class in val.

    Of a class with n images, round(n fraction) go to val, at least one and not all: those whose name hashes
    lowest under `seed`. So the order of the files does not matter, and a further image moves at most one other.

    Args:
        split: all images.
        classes: their names, for errors.
        fraction: between 0 and 1.
        seed: of the run.
        name: what image i is called wherever the folder lies.

    Raises:
        DataError: a class has a single image.
    """
    rank = np.array([key(seed, "val_fraction", name(i)) for i in range(len(split))], dtype=np.int64)
    held = np.zeros(len(split), dtype=bool)
    problems: list[Problem] = []
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        if len(members) < 2:
            what = f"val_fraction needs two images or more of each class; {classes[label]!r} has 1"
            problems.append(Problem(what, hint="add images to it, or remove it"))
            continue
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    if problems:
        raise DataError(problems)
    words = f"{fraction * 100:g}% of train, stratified"
    return Part(split, np.flatnonzero(~held)), Part(split, np.flatnonzero(held)), words
