"""Which images are evaluated: a split of their own, or a share of each class of train, by hash of the name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lrtrain.data.source import Part, Source, Split
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


def arranged(
    classes: tuple[str, ...],
    channels: int,
    splits: Mapping[str, Split],
    words: Mapping[str, str],
    val_fraction: float | None,
    seed: int,
    name: Callable[[int], str],
) -> Source:
    """The splits as a source: val is evaluated, without val and `val_fraction` test; what is left of test is held back.

    Args:
        classes: their names.
        channels: of the images, 1 or 3.
        splits: train, and what there is of val and test. Where there is none to evaluate, the source's val is empty.
        words: where val and test come from.
        val_fraction: share of each class of train held out for val, or None.
        seed: of the run.
        name: what image i of train is called, for `hold_out`.

    Returns:
        A source; that a class cannot be parted is one of its problems.
    """
    train, test = splits["train"], splits.get("test")
    if val_fraction is not None:
        try:
            kept, held, said = hold_out(train, classes, val_fraction, seed, name)
        except DataError as error:
            return Source(classes, channels, train, nothing(train), test, problems=error.problems)
        return Source(classes, channels, kept, held, test, said)
    if "val" in splits:
        return Source(classes, channels, train, splits["val"], test, words["val"])
    if test is not None:
        return Source(classes, channels, train, test, None, words["test"])
    return Source(classes, channels, train, nothing(train))


def nothing(split: Split) -> Part:
    """No image of a split."""
    return Part(split, np.empty(0, dtype=np.int64))
