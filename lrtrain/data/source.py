"""What a dataset is to the rest of the house: class names, and splits of uint8 images with class indices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.errors import Problem


class Split(Protocol):
    """Labelled images in a fixed order."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of each image, shape (n,)."""
        ...

    def __len__(self) -> int: ...

    def read(self, i: int) -> torch.Tensor:
        """Image i, uint8 (C, H, W), by the rule of `lrtrain.data.decode`, or DataError."""
        ...

    def path(self, i: int) -> str:
        """What errors call image i."""
        ...


@runtime_checkable
class Stamped(Protocol):
    """A split that knows, without reading its images, whether they are still the same."""

    def stamp(self, i: int) -> str | None:
        """Text that differs where image i may be another one; None where nothing is known of it."""
        ...


@runtime_checkable
class InFiles(Protocol):
    """A split whose images are files, or parts of files, with names that hold wherever their folder lies."""

    def name(self, i: int) -> str:
        """What image i is called, wherever the folder lies."""
        ...

    def bytes_of(self, i: int) -> int:
        """The size of image i as it is stored, without reading it, or DataError."""
        ...

    def content(self, i: int) -> bytes:
        """Image i as it is stored, or DataError."""
        ...


@dataclass(frozen=True)
class Source:
    """A dataset: its classes, the split to train on, the split evaluated while training, and one held back.

    Attributes:
        classes: names; a label is an index into them.
        channels: of the decoded images, 1 or 3.
        train: trained on.
        val: evaluated while training.
        test: held back for `evaluate --split test`.
        val_from: in words, where `val` comes from.
        mean, std: the dataset's own normalisation per channel, for pixels of 0..1, where it is known.
        measured: finds `image_size`; left until it is asked for, since it may read many files.
        mirrored_is_same: whether an image keeps its class when mirrored; not so for digits and letters.
        class_roots: folders, without links, of which every subfolder is a class: nothing may be written among these.
        notes: what a person should know about what was found.
        problems: what is wrong with it; `open_source` refuses a source that has any.
    """

    classes: tuple[str, ...]
    channels: int
    train: Split
    val: Split
    test: Split | None = None
    val_from: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    measured: Callable[[], tuple[int, int] | None] = lambda: None
    mirrored_is_same: bool = True
    class_roots: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @cached_property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width where all images of train and val have the same, else None."""
        return self.measured()

    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def distinct_classes(self) -> tuple[str, ...]:
        """The names, with their numbers where two are the same: ImageNet has two cranes."""
        if len(set(self.classes)) == len(self.classes):
            return self.classes
        return tuple(f"{name} ({i})" for i, name in enumerate(self.classes))

    def counts(self) -> dict[str, dict[str, int]]:
        """How many images each class has, by split; by distinct names."""
        k = len(self.classes)
        return {
            name: dict(zip(self.distinct_classes, np.bincount(split.labels, minlength=k).tolist(), strict=True))
            for name, split in self.splits().items()
        }


@dataclass(frozen=True)
class Part:
    """Some of another split's images."""

    whole: Split
    chosen: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of each image."""
        return self.whole.labels[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, i: int) -> torch.Tensor:
        """Image i."""
        return self.whole.read(int(self.chosen[i]))

    def path(self, i: int) -> str:
        """What errors call image i."""
        return self.whole.path(int(self.chosen[i]))

    def stamp(self, i: int) -> str | None:
        """What the whole says of image i."""
        return self.whole.stamp(int(self.chosen[i])) if isinstance(self.whole, Stamped) else None


def unwrapped(split: Split) -> tuple[Split, NDArray[np.int64]]:
    """The split that has the images of `split`, and which of them these are, in order."""
    if isinstance(split, Part):
        whole, chosen = unwrapped(split.whole)
        return whole, chosen[split.chosen]
    return split, np.arange(len(split), dtype=np.int64)


def with_notes(source: Source, *notes: str) -> Source:
    """`source` with further notes; empty ones are left out."""
    return replace(source, notes=(*source.notes, *(note for note in notes if note)))


def absent_note(split: str, classes: tuple[str, ...], found: set[str]) -> str:
    """A note on classes without images in a split; empty where there are none."""
    absent = [c for c in classes if c not in found]
    few = ", ".join(absent[:10])
    return f"no {split} images of {len(absent)} of {len(classes)} classes: {few}" if absent else ""
