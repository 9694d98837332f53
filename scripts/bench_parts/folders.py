"""Image folders of exactly as many images as are wanted, made of symbolic links."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path


def linked(source: Path, target: Path, images: int) -> int:
    """Link `images` files of class folders `source/CLASS/*` into `target`, class by class in turn.

    The first file of every class, then the second, ...; from the start again, under other names, where there are not
    enough. Returns the number of classes.
    """
    classes = sorted(folder for folder in source.iterdir() if folder.is_dir())
    for folder in classes:
        (target / folder.name).mkdir(parents=True)
    for i, (round_, path) in enumerate(itertools.chain.from_iterable(_rounds(classes))):
        if i == images:
            break
        (target / path.parent.name / f"{round_}-{path.name}").symlink_to(path.resolve())
    return len(classes)


def count(source: Path) -> int:
    """How many files the class folders have."""
    return sum(1 for _ in source.glob("*/*"))


def _rounds(classes: list[Path]) -> Iterator[Iterator[tuple[int, Path]]]:
    files = [sorted(path for path in folder.iterdir() if path.is_file()) for folder in classes]
    for round_ in itertools.count():
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*files))
        yield ((round_, path) for path in in_turn if path is not None)
