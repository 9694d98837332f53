"""A table of image files and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from csv import DictReader
from csv import Error as CsvError
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lrtrain.data.files import FileSplit, channels_for, checked_root, common_side, shortened
from lrtrain.data.source import Source, absent_note, with_notes
from lrtrain.data.stratify import hold_out
from lrtrain.errors import ConfigError, DataError, Problem

_COLUMNS = "a manifest is a CSV file in UTF-8 whose first line is path,label or path,label,split"
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class _Row(NamedTuple):
    path: str
    label: str
    split: str
    line: int


def csv(
    *,
    manifest: str,
    root: str | None = None,
    val_fraction: float | None = None,
    color: Literal["rgb", "gray"] = "rgb",
    seed: int,
) -> Source:
    """Images listed in a CSV file, whose first line names the columns: `path,label` or `path,label,split`.

    Args:
        manifest: the CSV file, UTF-8; `~` is expanded. `split` is train, val or test, as in imagefolder.
        root: what relative paths start from; the manifest's folder when absent.
        val_fraction: share of each class held out for val, where no row is val or test.
        color: rgb, or gray for one channel.
        seed: chooses what `val_fraction` holds out.

    Raises:
        DataError: every problem of the table at once, with line numbers.
        ConfigError: val_fraction missing, or given beside rows of split val.
    """
    channels = channels_for(color)
    file = Path(manifest).expanduser()
    folder = checked_root(root) if root is not None else file.parent
    rows = _read(file, folder)
    parts = {name: [row for row in rows if row.split == name] for name in ("train", "val", "test")}
    _check_split(file, parts, val_fraction)
    classes, notes = _classes(file, parts)
    splits = {name: _split(folder, part, classes, channels) for name, part in parts.items() if part}
    side = partial(common_side, list(splits.values()))
    train, test = splits["train"], splits.get("test")
    if val_fraction is not None:
        kept, held, words = hold_out(train, classes, val_fraction, seed, lambda i: train.names[i])
        source = Source(classes, channels, kept, held, test, words, measured=side)
    elif "val" in splits:
        source = Source(classes, channels, train, splits["val"], test, "rows of split val", measured=side)
    else:
        source = Source(classes, channels, train, splits["test"], None, "rows of split test", measured=side)
    return with_notes(source, *notes)


def _read(file: Path, folder: Path) -> list[_Row]:
    problems: list[Problem] = []
    rows: dict[str, _Row] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = DictReader(lines, skipinitialspace=True)
            columns = reader.fieldnames or ()
            if missing := [column for column in ("path", "label") if column not in columns]:
                raise DataError(
                    f"{file} has no column {' and no column '.join(missing)}; its first line is {','.join(columns)!r}",
                    hint=_COLUMNS,
                )
            for cells in reader:
                path, label, split = ((cells.get(c) or "").strip() for c in ("path", "label", "split"))
                row = _Row(path, label, _SPLITS.get(split or "train", ""), reader.line_num)
                what = _wrong(row, split, rows.get(path), folder, None in cells)
                if what:
                    problems.append(Problem(what, f"{file}:{row.line}"))
                rows.setdefault(path, row)
    except (OSError, UnicodeDecodeError, CsvError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read the manifest {str(file)!r}: {why}", hint=_COLUMNS) from error
    if problems:
        raise DataError(shortened(problems))
    return list(rows.values())


def _wrong(row: _Row, split: str, earlier: _Row | None, folder: Path, extra: bool) -> str | None:
    """What is wrong with a row."""
    if extra:
        return "more cells than the header has columns (quote text that contains a comma)"
    if not row.path or not row.label:
        return f"no {'path' if not row.path else 'label'}"
    if not row.split:
        return f"split must be train, val or test, not {split!r}"
    if earlier is not None:
        return f"{row.path!r} is listed twice, first on line {earlier.line}"
    if not (folder / row.path).is_file():
        return f"no such file: {str(folder / row.path)!r}"
    return None


def _check_split(file: Path, parts: dict[str, list[_Row]], val_fraction: float | None) -> None:
    if not parts["train"]:
        raise DataError(f"{file} lists no training images")
    if parts["val"] and val_fraction is not None:
        raise ConfigError(
            f"val_fraction {val_fraction:g} contradicts the {len(parts['val'])} rows of split val in {file}",
            hint="leave val_fraction out",
        )
    if not parts["val"] and not parts["test"] and val_fraction is None:
        raise ConfigError(
            f"nothing to evaluate on: {file} has no rows of split val or test, and no val_fraction is given",
            hint="add `val_fraction: 0.1` to hold out 10%",
        )


def _classes(file: Path, parts: dict[str, list[_Row]]) -> tuple[tuple[str, ...], list[str]]:
    found = {row.label for row in parts["train"]}
    classes = tuple(sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found))
    problems = [
        Problem(f"label {row.label!r} is in {name} but not in train", f"{file}:{row.line}")
        for name in ("val", "test")
        for row in parts[name]
        if row.label not in found
    ]
    if len(classes) < 2:
        problems.append(Problem(f"only one class, {classes[0]!r}, in {file}; there must be two or more"))
    if problems:
        raise DataError(shortened(problems))
    return classes, [
        absent_note(name, classes, {row.label for row in parts[name]}) for name in ("val", "test") if parts[name]
    ]


def _split(folder: Path, rows: Sequence[_Row], classes: tuple[str, ...], channels: int) -> FileSplit:
    number = {c: i for i, c in enumerate(classes)}
    ordered = sorted(rows, key=lambda row: row.path)
    return FileSplit(
        folder,
        [row.path for row in ordered],
        np.array([number[row.label] for row in ordered], dtype=np.int64),
        channels,
    )
