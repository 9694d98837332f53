"""Folders of images, one folder a class."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from lrtrain.data.classes import folded, twins, unfit
from lrtrain.data.files import IMAGE_SUFFIXES, channels_for, checked_root, common_size
from lrtrain.data.folders import ClassFolders, scan, subfolders
from lrtrain.data.skip_list import without
from lrtrain.data.source import Source, absent_note, with_notes
from lrtrain.data.stratify import arranged
from lrtrain.errors import ConfigError, DataError, Problem

_VAL_NAMES = ("val", "valid", "validation")
_NO_CLASS = ("set", "seg", "data", "dataset", "images", "imgs", "img", "photos", "split", "folder")
# What such folders are called elsewhere, in small letters, and what they must be called here.
_SPLITS = {"train": "train", "training": "train", **dict.fromkeys(_VAL_NAMES, "val"), "test": "test", "testing": "test"}


def imagefolder(
    *,
    root: str,
    val_fraction: float | None = None,
    color: Literal["rgb", "gray"] = "rgb",
    skip_list: str | None = None,
    seed: int,
) -> Source:
    """Images in class folders: `root/train/CLASS/*` beside `root/val/CLASS/*`, or one tree `root/CLASS/*`.

    With train/ and val/ (or valid/, validation/), val is evaluated and a test/ is held back; with train/ and
    test/ only, test is evaluated. One tree, or train/ alone, needs `val_fraction`. Classes are numbered by
    name, and are those of train. Hidden files and what is no image by extension are counted in the notes.

    Args:
        root: the folder; `~` is expanded.
        val_fraction: share of each class held out for val.
        color: rgb, or gray for one channel.
        skip_list: a text file of images to leave out, a path from `root` a line; `#` starts a comment.
        seed: chooses what `val_fraction` holds out.

    Returns:
        The source, with every problem of the folders.

    Raises:
        DataError: the root is no folder, has splits of other names, or the skip list cannot be read.
        ConfigError: val_fraction missing, or given beside a val folder.
    """
    channels = channels_for(color)
    folder = checked_root(root)
    layout = _layout(folder)
    _check_evaluated(folder, layout, val_fraction)
    return _source(folder, layout, channels, val_fraction, skip_list, seed)


def unsplit(root: str | Path) -> Source:
    """The folders as they are, of which nobody has said what to evaluate on: val may be empty."""
    folder = checked_root(root, "name a folder of images, or a config")
    source = _source(folder, _layout(folder), 3, None, None, 0)
    return replace(source, problems=(*source.problems, *unfit(source.classes)))


def _source(
    folder: Path,
    layout: Mapping[str, Path],
    channels: int,
    val_fraction: float | None,
    skip_list: str | None,
    seed: int,
) -> Source:
    found = {split: scan(part, folder) for split, part in layout.items()}
    classes, notes, problems = _checked(found)
    whole = {split: part.split(classes, channels) for split, part in found.items()}
    splits, left_out, wrong = without(skip_list, whole, classes)
    train = splits["train"]

    def name(i: int) -> str:
        return train.names[i].removeprefix(found["train"].inside)

    words = {split: f"{part.name}/" for split, part in layout.items()}
    source = arranged(classes, channels, splits, words, val_fraction, seed, name)
    size = partial(common_size, list(splits.values()))
    problems = [*_doubled(folder), *problems, *wrong, *source.problems]
    roots = tuple(os.path.realpath(part) for part in layout.values())
    source = replace(source, measured=size, class_roots=roots, problems=tuple(problems))
    return with_notes(source, _beside(folder, layout), *notes, left_out)


def _layout(root: Path) -> dict[str, Path]:
    """The folders of train, val and test, as far as they are there; train is the root where there are no such.

    Raises:
        DataError: there are splits of other names, which would be taken for classes or left out.
    """
    names = subfolders(root)
    vals = [name for name in _VAL_NAMES if name in names]
    in_splits = "train" in names and bool(vals or "test" in names or subfolders(root / "train"))
    _refuse_other_splits(root, names, ("train", *_VAL_NAMES, "test") if in_splits else ())
    if not in_splits:
        return {"train": root}
    if not vals and "test" not in names:
        _refuse_classes_beside(root, [name for name in names if name != "train"])
    val = {"val": root / vals[0]} if vals else {}
    return {"train": root / "train", **val, **({"test": root / "test"} if "test" in names else {})}


def _refuse_other_splits(root: Path, names: Sequence[str], read: Collection[str]) -> None:
    """Refuse Training/ and Testing/, which would be classes, or beside the train/ that is `read` be left out."""
    likely = [name for name in names if name not in read and _meant(name) and (not read or name.lower() in _SPLITS)]
    inside = {name: _inside(root / name) for name in likely}
    meant = {name: str(_meant(name)) for name, folders in inside.items() if folders}
    repeats = any(set(folders) & set(names) for folders in inside.values())  # cat/, dog/, and test/cat, test/dog
    if not meant or not (read or repeats or len(names) == 1 or len(set(meant.values())) > 1):
        return
    there = " and ".join(f"{name}/" for name in meant)
    holds, would = "hold" if len(meant) > 1 else "holds", "be left out" if read else "be taken for classes"
    what = f"{str(root)!r} has {there}, which {holds} folders of classes and would {would}"
    renamed = {name: split for name, split in meant.items() if name != split}
    if renamed and not repeats and len({*names, *renamed.values()}) == len(names) + len(renamed):
        raise DataError(what, hint="rename " + ", ".join(f"{name}/ to {split}/" for name, split in renamed.items()))
    raise DataError(
        what, hint="classes belong into train/, val/ and test/ inside the root; move away what else is there"
    )


def _refuse_classes_beside(root: Path, others: Sequence[str]) -> None:
    """Refuse bus/ and car/ beside a train/, all with folders day and night of images: is train a class, or a split?"""
    parts = set(_inside(root / "train"))
    shared = {name: parts.intersection(_inside(root / name)) for name in others}
    alike = [name for name, same in shared.items() if any(_has_images(root / name / part) for part in same)]
    if alike:
        more = f" and {len(alike) - 3} more" if len(alike) > 3 else ""
        what = f"{str(root)!r} has train/ and {', '.join(f'{name}/' for name in alike[:3])}{more} beside it"
        what += ", with folders of images that are called the same"
        hint = (
            "rename what is to be evaluated to val/ and move the rest away; if train/ is a class, give it another name"
        )
        raise DataError(what, hint=hint)


def _has_images(folder: Path) -> bool:
    with suppress(OSError), os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries)
    return False


def _beside(root: Path, layout: Mapping[str, Path]) -> str:
    """The folders beside train/ that are not read, in words."""
    read = {part.name for part in layout.values()}
    others = [f"{name}/" for name in subfolders(root) if name not in read] if layout["train"] != root else []
    more = f" and {len(others) - 6:,} more" if len(others) > 6 else ""
    return f"passed over beside train/: {', '.join(others[:6])}{more}" if others else ""


def _inside(folder: Path) -> list[str]:
    with suppress(OSError):  # what is no split may be locked
        return subfolders(folder)
    return []


def _meant(name: str) -> str | None:
    """The split that a folder is called after: Training, seg_train, test_set, but not bullet_train."""
    words = [word for word in re.findall("[a-z]+", name.lower()) if word not in _NO_CLASS]
    return _SPLITS.get(words[0]) if len(words) == 1 else None


def _doubled(root: Path) -> list[Problem]:
    """Two folders that could be val."""
    names = subfolders(root)
    vals = [name for name in _VAL_NAMES if name in names]
    if len(vals) < 2 or "train" not in names:
        return []
    both = " and ".join(name + "/" for name in vals)
    return [Problem(f"{str(root)!r} has {both}; which is evaluated?", hint="keep one of them")]


def _check_evaluated(root: Path, layout: Mapping[str, Path], val_fraction: float | None) -> None:
    if "val" in layout and val_fraction is not None:
        raise ConfigError(
            f"val_fraction {val_fraction:g} contradicts {layout['val'].name}/ in {str(root)!r}",
            hint="leave val_fraction out, or move the folder away",
        )
    names = subfolders(root)
    if len(layout) > 1 or val_fraction is not None or not names:
        return
    if layout["train"] == root:
        raise ConfigError(
            f"nothing to evaluate on: {str(root)!r} has no train/ and val/ (or test/) folders, and no "
            "val_fraction is given",
            hint=f"add `val_fraction: 0.1` to hold out 10%; found here: {', '.join(names[:10])}",
        )
    raise ConfigError(
        f"nothing to evaluate on: {str(root)!r} has train/ but no val/ or test/, and no val_fraction is given",
        hint="add `val_fraction: 0.1` to hold out 10%",
    )


def _checked(found: Mapping[str, ClassFolders]) -> tuple[tuple[str, ...], list[str], list[Problem]]:
    """The classes, which are those of train, the notes and the problems.

    Where others have images of further classes, these are classes too, so that what is wrong with those is found.
    """
    train = found["train"]
    problems = list(train.problems)
    known = tuple(train.images)
    notes = [train.note()]
    problems += twins(known, repr(str(train.root)))
    if len(known) == 1:
        only = f"{str(train.root)!r} has only {known[0]!r}"
        problems.append(Problem(f"there must be two classes or more; {only}", hint="add a folder of another class"))
    strange: set[str] = set()
    for split, part in found.items():
        if split == "train":
            continue
        notes.append(part.note())
        problems += part.problems
        unknown = sorted(set(part.images) - set(known))
        problems += [_not_in_train(c, part.root.name, known) for c in unknown]
        strange.update(unknown)
        problems += _trained_on(part, train)
        notes.append(absent_note(split, known, set(part.images)))
    return tuple(sorted({*known, *strange})), notes, problems


def _trained_on(part: ClassFolders, train: ClassFolders) -> list[Problem]:
    """Folders that train has too, by whatever link."""
    same = [real for real in part.read if real in train.read]
    if not same:
        return []
    more = f", and {len(same) - 1:,} more" if len(same) > 1 else ""
    what = f"{part.read[same[0]]!r} is the same folder as {train.read[same[0]]!r}, which is trained on{more}"
    return [Problem(what, hint="remove the link; without val/ and test/, `val_fraction: 0.1` holds out 10%")]


def _not_in_train(name: str, split: str, known: tuple[str, ...]) -> Problem:
    twin = next((c for c in known if folded(c) == folded(name)), None)
    fix = "rename or remove the folder, or add training images of it"
    hint = f"train/ has {twin!r}: give them the same name" if twin is not None else fix
    return Problem(f"class {name!r} is in {split}/ but not in train/", hint=hint)
