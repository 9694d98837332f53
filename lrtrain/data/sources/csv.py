"""A table of image files and their labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from csv import Error as CsvError
from csv import reader
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from lrtrain.data.classes import MOST_CHARACTERS, twins
from lrtrain.data.files import FileSplit, channels_for, checked_root, common_size, relative
from lrtrain.data.skip_list import without
from lrtrain.data.source import Source, absent_note, with_notes
from lrtrain.data.stratify import arranged
from lrtrain.errors import ConfigError, DataError, Problem
from lrtrain.foreign import opened, user_path

if TYPE_CHECKING:
    from _csv import Reader as Table

_COLUMNS = "a manifest is a CSV file in UTF-8 whose first line is path,label or path,label,split"
_KNOWN = ("path", "label", "split")
_LINE = 1_000_000  # characters
_MOST_COLUMNS = 1_000
_MOST_PROBLEMS = 1_000  # after which the manifest is another one, or its root
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
    skip_list: str | None = None,
    seed: int,
) -> Source:
    """Images listed in a CSV file, whose first line names the columns: `path,label` or `path,label,split`.

    Args:
        manifest: the CSV file, UTF-8; `~` is expanded. `split` is train, val or test, as in imagefolder.
        root: what relative paths start from; the manifest's folder when absent.
        val_fraction: share of each class held out for val, where no row is val or test.
        color: rgb, or gray for one channel.
        skip_list: a text file of images to leave out, a line for each: its path as in the manifest.
        seed: chooses what `val_fraction` holds out.

    Returns:
        The source, with every problem of the table and its line.

    Raises:
        DataError: the manifest or the skip list cannot be read.
        ConfigError: val_fraction missing, or given beside rows of split val.
    """
    channels = channels_for(color)
    file = user_path(manifest)
    folder = checked_root(root) if root is not None else file.parent
    rows, problems = _read(file, folder)
    parts = {name: [row for row in rows if row.split == name] for name in ("train", "val", "test")}
    if not problems:
        _check_split(file, parts, val_fraction)
    classes, notes, wrong = _classes(file, parts)
    whole = {name: _split(folder, part, classes, channels) for name, part in parts.items() if part or name == "train"}
    splits, left_out, unknown = without(skip_list, whole, classes)
    words = {name: f"rows of split {name}" for name in parts}
    source = arranged(classes, channels, splits, words, val_fraction, seed, splits["train"].name)
    size = partial(common_size, list(splits.values()))
    # What is wrong with rows may be all that is wrong with classes.
    problems = [*(problems or wrong), *unknown, *source.problems]
    return with_notes(replace(source, measured=size, problems=tuple(problems)), *notes, left_out)


def _read(file: Path, folder: Path) -> tuple[list[_Row], list[Problem]]:
    """The rows that are right, and what is wrong with the others."""
    problems: list[Problem] = []
    rows: dict[str, _Row] = {}
    start, root = "" if folder == Path() else str(folder), os.path.abspath(folder)
    try:
        with opened(file, links=True) as content, TextIOWrapper(content, "utf-8-sig", newline="") as lines:
            table = reader(_bounded(lines), skipinitialspace=True)
            columns = next((cells for cells, _ in _lines(table)), [])
            at = _columns(file, columns)
            by_column = at[-1] is not None
            for cells, line in tqdm(
                _lines(table), "reading the manifest", unit=" rows", disable=None, delay=2, leave=False
            ):
                path, label, split = (cells[i].strip() if i is not None and i < len(cells) else "" for i in at)
                row = _Row(path, label, _SPLITS.get(split if by_column else "train", ""), line)
                place, spelled = os.path.join(start, path), os.path.normpath(os.path.join(root, path))
                what = _wrong(row, split, rows.get(spelled), place, len(cells) > len(columns))
                if not what:
                    rows[spelled] = row
                elif len(problems) < _MOST_PROBLEMS:
                    problems.append(Problem(what, f"{file}:{line}", "correct the line, or remove it"))
                else:
                    problems.insert(
                        0, Problem(f"more than {_MOST_PROBLEMS:,} rows are wrong, and no more were read", str(file))
                    )
                    break
    except (OSError, UnicodeDecodeError, CsvError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read the manifest {str(file)!r}: {why}", hint=_COLUMNS) from error
    return list(rows.values()), problems


def _columns(file: Path, columns: list[str]) -> list[int | None]:
    """Where path, label and split stand."""
    if len(columns) > _MOST_COLUMNS:
        raise DataError(f"{file} has {len(columns):,} columns; at most {_MOST_COLUMNS:,} are read", hint=_COLUMNS)
    if twice := [column for column in _KNOWN if columns.count(column) > 1]:
        raise DataError(f"{file} has two columns {twice[0]}", hint=_COLUMNS)
    for column in columns:
        if column not in _KNOWN and (meant := column.strip().lower()) in _KNOWN:
            raise DataError(f"{file} has a column {column!r}", hint=f"write {meant}, small and without blanks")
    if missing := [column for column in ("path", "label") if column not in columns]:
        raise DataError(
            f"{file} has no column {' and no column '.join(missing)}; its first line is {','.join(columns)!r}",
            hint=_COLUMNS,
        )
    return [columns.index(column) if column in columns else None for column in _KNOWN]


def _bounded(lines: TextIO) -> Iterator[str]:
    """The lines, none longer than a row can be: a file without line breaks is no manifest."""
    while line := lines.readline(_LINE):
        if len(line) == _LINE:
            raise CsvError(f"a line has more than {_LINE:,} characters")
        yield line


def _lines(table: Table) -> Iterator[tuple[list[str], int]]:
    """The cells of each row that is not blank, and the line that it begins on."""
    while True:
        last = table.line_num
        try:
            cells = next(table)
        except StopIteration:
            return
        except CsvError as error:
            raise CsvError(f"{error}, in the row that begins after line {last}; is a quote never closed?") from None
        if cells:
            more = sum(cell.rstrip("\n").count("\n") for cell in cells) if table.line_num > last + 1 else 0
            yield cells, table.line_num - more


def _wrong(row: _Row, split: str, earlier: _Row | None, place: str, extra: bool) -> str | None:
    """What is wrong with a row."""
    if extra:
        return "more cells than the header has columns (quote text that contains a comma)"
    if "\n" in row.path or "\n" in row.label:
        return "a cell that begins here goes on in the next line: is its quote closed?"
    if not row.path or not row.label:
        return f"no {'path' if not row.path else 'label'}"
    if not row.split:
        return (
            f"split must be train, val or test, not {split!r}" if split else "no split, though there is a column for it"
        )
    if earlier is not None:
        return f"{row.path!r} is listed twice, first on line {earlier.line}"
    if not os.path.isfile(place):  # False where the name is too long for one
        return f"no such file: {place!r}"
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


def _classes(file: Path, parts: dict[str, list[_Row]]) -> tuple[tuple[str, ...], list[str], list[Problem]]:
    """The classes, which are the labels of train, the notes and the problems."""
    found = {row.label for row in parts["train"]}
    problems = [
        Problem(f"label {row.label!r} is in {name} but not in train", f"{file}:{row.line}")
        for name in ("val", "test")
        for row in parts[name]
        if row.label not in found
    ]
    if len(found) == 1:
        problems.append(Problem(f"only one class, {next(iter(found))!r}, in {file}; there must be two or more"))
    problems += twins(sorted(found), str(file)) + _same_numbers(found, file)
    notes = [absent_note(name, _ordered(found), {row.label for row in parts[name]}) for name in ("val", "test")]
    return (
        _ordered(found | {row.label for part in parts.values() for row in part}),
        [note for name, note in zip(("val", "test"), notes, strict=True) if parts[name]],
        problems,
    )


def _ordered(labels: set[str]) -> tuple[str, ...]:
    """By number where all are numbers; what is the same number is refused, and still has one order here."""
    return tuple(sorted(labels, key=lambda label: (int(label), label)) if _are_numbers(labels) else sorted(labels))


def _are_numbers(labels: set[str]) -> bool:
    return all(label.isdecimal() and len(label) <= MOST_CHARACTERS for label in labels)


def _same_numbers(labels: set[str], file: Path) -> list[Problem]:
    by_number: dict[int, list[str]] = {}
    for label in sorted(labels) if _are_numbers(labels) else ():
        by_number.setdefault(int(label), []).append(label)
    return [
        Problem(f"labels {' and '.join(map(repr, same))} in {file} are the same number", hint="write it in one way")
        for same in by_number.values()
        if len(same) > 1
    ]


def _split(folder: Path, rows: Sequence[_Row], classes: tuple[str, ...], channels: int) -> FileSplit:
    number = {c: i for i, c in enumerate(classes)}
    ordered = sorted(rows, key=lambda row: relative(folder, row.path))  # the same order, however a path is written
    return FileSplit(
        folder,
        [row.path for row in ordered],
        np.array([number[row.label] for row in ordered], dtype=np.int64),
        channels,
    )
