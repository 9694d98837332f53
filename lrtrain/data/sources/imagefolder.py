"""Folders of images, one folder a class."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from lrtrain.data.files import channels_for, checked_root, common_side, shortened
from lrtrain.data.folders import ClassFolders, scan, subfolders
from lrtrain.data.source import Source, absent_note, with_notes
from lrtrain.data.stratify import hold_out
from lrtrain.errors import ConfigError, DataError, Problem

_VAL_NAMES = ("val", "valid", "validation")


def imagefolder(
    *, root: str, val_fraction: float | None = None, color: Literal["rgb", "gray"] = "rgb", seed: int
) -> Source:
    """Images in class folders: `root/train/CLASS/*` beside `root/val/CLASS/*`, or one tree `root/CLASS/*`.

    With train/ and val/ (or valid/, validation/), val is evaluated and a test/ is held back; with train/ and
    test/ only, test is evaluated. One tree, or train/ alone, needs `val_fraction`. Classes are numbered by
    name, and are those of train. Hidden files and what is no image by extension are counted in the notes.

    Args:
        root: the folder; `~` is expanded.
        val_fraction: share of each class held out for val.
        color: rgb, or gray for one channel.
        seed: chooses what `val_fraction` holds out.

    Raises:
        DataError: every problem of the folders at once.
        ConfigError: val_fraction missing, or given beside a val folder.
    """
    channels = channels_for(color)
    folder = checked_root(root)
    train_dir, val_dir, test_dir = _layout(folder, val_fraction)
    train = scan(train_dir)
    others = {part.name: scan(part) for part in (val_dir, test_dir) if part is not None}
    classes, notes = _checked(train, others)
    all_train = train.split(classes, channels)
    splits = {name: part.split(classes, channels) for name, part in others.items()}
    side = partial(common_side, [all_train, *splits.values()])
    test = splits.get("test")
    if val_fraction is not None:
        kept, val, words = hold_out(all_train, classes, val_fraction, seed, lambda i: all_train.names[i])
        source = Source(classes, channels, kept, val, test, words, measured=side)
    elif val_dir is not None:
        val_name = val_dir.name
        source = Source(classes, channels, all_train, splits[val_name], test, f"{val_name}/", measured=side)
    else:
        source = Source(classes, channels, all_train, splits["test"], None, "test/", measured=side)
    return with_notes(source, *notes)


def _layout(root: Path, val_fraction: float | None) -> tuple[Path, Path | None, Path | None]:
    """The folders of train, val and test."""
    names = subfolders(root)
    val_names = [name for name in _VAL_NAMES if name in names]
    in_splits = "train" in names and (val_names or "test" in names or bool(subfolders(root / "train")))
    if not in_splits:
        if val_fraction is None and names:
            raise ConfigError(
                f"nothing to evaluate on: {str(root)!r} has no train/ and val/ (or test/) folders, and no "
                "val_fraction is given",
                hint=f"add `val_fraction: 0.1` to hold out 10%; found here: {', '.join(names[:10])}",
            )
        return root, None, None
    if len(val_names) > 1:
        both = " and ".join(name + "/" for name in val_names)
        raise DataError(f"{str(root)!r} has {both}; which is evaluated?", hint="keep one of them")
    test = root / "test" if "test" in names else None
    if val_names and val_fraction is not None:
        raise ConfigError(
            f"val_fraction {val_fraction:g} contradicts {val_names[0]}/ in {str(root)!r}",
            hint="leave val_fraction out, or move the folder away",
        )
    if not val_names and test is None and val_fraction is None:
        raise ConfigError(
            f"nothing to evaluate on: {str(root)!r} has train/ but no val/ or test/, and no val_fraction is given",
            hint="add `val_fraction: 0.1` to hold out 10%",
        )
    return root / "train", root / val_names[0] if val_names else None, test


def _checked(train: ClassFolders, others: dict[str, ClassFolders]) -> tuple[tuple[str, ...], list[str]]:
    """The classes, which are those of train, and the notes."""
    problems = list(train.problems)
    classes = tuple(train.images)
    notes = [train.note()]
    if len(classes) == 1:
        only = f"{str(train.root)!r} has only {classes[0]!r}"
        problems.append(Problem(f"there must be two classes or more; {only}"))
    for name, part in others.items():
        notes.append(part.note())
        known, found = set(classes), set(part.images)
        problems += part.problems
        problems += [
            Problem(
                f"class {c!r} is in {name}/ but not in train/",
                hint="rename or remove the folder, or add training images of it",
            )
            for c in sorted(found - known)
        ]
        notes.append(absent_note(name, classes, found))
    if problems:
        raise DataError(shortened(problems))
    return classes, notes
