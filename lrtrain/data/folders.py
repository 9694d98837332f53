"""One folder a class: what is in it, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lrtrain.data.files import IMAGE_SUFFIXES, FileSplit
from lrtrain.errors import Problem, quoted

MOST_NESTED = 100  # folders in folders: no dataset has more, and each takes a step of Python's stack
_LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "lost+found")


@dataclass
class ClassFolders:
    """The images of each class, what was passed over, and what is wrong.

    Attributes:
        root: the folder of the class folders.
        base: the folder that `images` are paths from, `root` or one above it.
        read: the folders that were read, without links, and what they were called: none is read twice.
    """

    root: Path
    base: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    read: dict[str, str] = field(default_factory=dict)

    @property
    def inside(self) -> str:
        """What the paths of all images begin with: `train/`, or nothing."""
        return "" if self.root == self.base else os.path.join(self.root.relative_to(self.base), "")

    def split(self, classes: tuple[str, ...], channels: int) -> FileSplit:
        """The images as a split, class by class in the order of `classes`."""
        names = [name for c in classes for name in self.images.get(c, ())]
        labels = [i for i, c in enumerate(classes) for _ in self.images.get(c, ())]
        return FileSplit(self.base, names, np.array(labels, dtype=np.int64), channels)

    def claim(self, folder: str) -> bool:
        """Note that a folder is read; False, and a problem, where its images were read under another name."""
        real = os.path.realpath(folder)
        if real in self.read:
            what = f"{folder!r} is the same folder as {self.read[real]!r}, whose images are read already"
            self.problems.append(Problem(what, hint="remove the link"))
            return False
        self.read[real] = folder
        return True

    def note(self) -> str:
        """What was passed over, in words."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.skipped.items()))
        return f"passed over in {self.root}: {kinds}" if kinds else ""


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden or left behind by an operating system."""
    return name.startswith(".") or name in _LITTER


def subfolders(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if not is_litter(e.name) and _is(e, e.is_dir))


def scan(root: Path, base: Path | None = None) -> ClassFolders:
    """Find the images of every class folder of `root`, at any depth, as paths from `base`, which is `root` or above."""
    found = ClassFolders(root, base or root)
    for entry in _entries(root, found):
        if not _is(entry, entry.is_dir):
            found.skipped["files outside the class folders"] += 1
            continue
        others: Counter[str] = Counter()
        above = _and_above(entry.path) | _and_above(root)
        if not found.claim(entry.path):
            found.images[entry.name] = []
            continue
        images = list(_images(entry.path, os.path.join(found.inside, entry.name), found, others, above))
        found.images[entry.name] = sorted(images)
        if not images:
            _no_images(entry, others, found)
        elif others:
            found.skipped[f"files that are no images ({', '.join(sorted(others))})"] += others.total()
    if not found.images:
        found.problems.append(
            Problem(
                f"no class folders in {str(root)!r}",
                hint=f"images lie in one folder per class, such as {root / 'ants' / '1.jpg'}; "
                "train/ and val/ may stand above that",
            )
        )
    return found


def _and_above(folder: str | Path) -> frozenset[str]:
    """A folder and those that it lies in, without links."""
    real = os.path.realpath(folder)
    return frozenset((real, *map(str, Path(real).parents)))


def _no_images(entry: os.DirEntry[str], others: Counter[str], found: ClassFolders) -> None:
    if others:
        kinds = ", ".join(sorted(others))
        what = f"class {entry.name!r} has no images in {entry.path!r}, only files of type {kinds}"
        found.problems.append(Problem(what, hint=f"images end in {' '.join(sorted(IMAGE_SUFFIXES))}"))
    else:
        found.problems.append(
            Problem(
                f"class {entry.name!r} is empty: no images in {entry.path!r}",
                hint="put images there, or remove the folder",
            )
        )


def _entries(folder: str | Path, found: ClassFolders) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, by name, without hidden and system files."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.problems.append(
            Problem(f"cannot read the folder {str(folder)!r}: {error.strerror}", hint="check its permissions")
        )
        return
    for entry in ordered:
        if is_litter(entry.name):
            found.skipped["hidden or system files"] += 1
        else:
            yield entry


def _images(folder: str, name: str, found: ClassFolders, others: Counter[str], above: frozenset[str]) -> Iterator[str]:
    """Images below `folder`, whose path from the base is `name`; `above` are the folders it lies in."""
    for entry in _entries(folder, found):
        inner = f"{name}/{entry.name}"
        if _is(entry, entry.is_dir):
            real = os.path.realpath(entry.path)
            if real in above:
                what = f"{entry.path!r} links to a folder that it lies in"
                found.problems.append(Problem(what, hint="remove it"))
            elif inner.count("/") > MOST_NESTED:
                what = f"{quoted(entry.path)} lies more than {MOST_NESTED} folders deep"
                found.problems.append(Problem(what, hint="move its images up, or remove it"))
            elif found.claim(entry.path):
                yield from _images(entry.path, inner, found, others, above | {real})
        elif not _is(entry, entry.is_file):
            what = "a broken link" if not os.path.exists(entry.path) else "no regular file (a pipe, socket or device)"
            found.problems.append(Problem(f"{entry.path!r} is {what}", hint="remove it"))
        else:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                yield inner
            else:
                others[suffix or "without extension"] += 1


def _is(entry: os.DirEntry[str], kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False
