"""Images that a person has decided to leave out: a text file of names, a name a line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import product, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrtrain.data.files import MAX_PROBLEMS, FileSplit
from lrtrain.errors import DataError, Key, Problem, printable, quoted
from lrtrain.foreign import read_bytes, user_path

_MOST_BYTES = 200_000_000
_MOST_IN_LINE = 20_000  # bytes: each of a path's 4,096 may be escaped by four
_MORE = 1_000  # names that are none of the images', in a list for a larger dataset
_COMPARED = 500  # names among which the one that was meant is looked for
_MOST_COMPARED = 200  # characters of each, since that takes a time that grows with their square


def named(file: str, names: Sequence[str], path: Callable[[int], str]) -> tuple[NDArray[np.bool_], list[Problem]]:
    """Which images a skip list names, shape (n,), and what is wrong with the list.

    Blank lines and lines that start with `#` are passed over. A name is what `lrtrain check` and errors print: the
    path from the dataset's root, or with the root or the last of its folders before it, escaped or not.

    Args:
        file: the list, UTF-8; `~` is expanded.
        names: of all images of the dataset.
        path: what errors call image i.

    Raises:
        DataError: the file cannot be read, or is no list of these images' names.
    """
    where = user_path(file)
    wanted = _read(where, len(names))
    chosen = np.fromiter((name in wanted for name in names), dtype=np.bool_, count=len(names))
    missing = set(wanted) - {names[i] for i in np.flatnonzero(chosen).tolist()}
    called = _called(names, path) if missing else {}
    deep = max((name.count("/") for name in called), default=0)
    # An image's name goes before a path to another, and a//b is a member's own name first.
    for rooted, spelt in product((False, True), (_without_dot, os.path.normpath)):
        for text in tuple(missing):
            for alias in {text, text.strip(), spelt(text.strip())}:
                if found := _from_a_root(alias, called, deep, path) if rooted else called.get(alias):
                    chosen[found] = True
                    missing.discard(text)
    problems = [
        Problem(
            f"the skip list names {text!r}, which is not in the dataset",
            f"{where}:{wanted[text]}",
            _hint(text, names) if i < MAX_PROBLEMS else None,  # which takes long, and more are not shown
        )
        for i, text in enumerate(sorted(missing, key=wanted.__getitem__))
    ]
    # What is printed of one name may be another's name as it is.
    both = {text for text in wanted if "\\" in text}.intersection(names)
    problems += [
        Problem(
            f"the skip list names {shown!r}, which is {name!r} as well as another image's name",
            f"{where}:{wanted[shown]}",
            "rename one of the two files",
        )
        for name in (names if both else ())
        if (shown := printable(name)) in both and shown != name
    ]
    return chosen, problems


def _without_dot(path: str) -> str:
    return path.removeprefix("./")


def _called(names: Sequence[str], path: Callable[[int], str]) -> dict[str, list[int]]:
    """The images of each name, escaped or not; and of each path that does not end with it, as of files elsewhere."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        whole = path(i)
        own = {name} if whole.endswith(name) else {name, whole, os.path.abspath(whole)}
        for alias in own | {printable(one) for one in own}:
            found.setdefault(alias, []).append(i)
    return found


def _from_a_root(alias: str, called: Mapping[str, list[int]], deep: int, path: Callable[[int], str]) -> list[int]:
    """The images that this is the path of, from any folder above the root: a run's own root is written from / on.

    `deep` is how many slashes a name has at most.
    """
    found, at = [], len(alias)
    for _ in range(deep + 1):
        at = alias.rfind("/", 0, at)
        if at < 0:
            break
        for i in called.get(alias[at + 1 :], ()):
            whole = path(i)
            paths = {whole, os.path.abspath(whole)}
            if any(one == alias or one.endswith(f"/{alias}") for one in (*paths, *map(printable, paths))):
                found.append(i)
    return found


def without(
    file: str | None, splits: Mapping[str, FileSplit], classes: Sequence[str]
) -> tuple[dict[str, FileSplit], str, list[Problem]]:
    """The splits without the images that a skip list names, a note of how many, and what is wrong with the list."""
    if file is None:
        return dict(splits), "", []
    parts = list(splits.values())
    firsts = np.cumsum([0, *map(len, parts)])
    names = [part.name(i) for part in parts for i in range(len(part))]  # as `check` writes them

    def path(i: int) -> str:
        at = int(np.searchsorted(firsts, i, side="right")) - 1
        return parts[at].path(i - int(firsts[at]))

    skipped, problems = named(file, names, path)
    kept: dict[str, FileSplit] = {}
    for (split, part), own in zip(splits.items(), np.split(skipped, firsts[1:-1]), strict=True):
        left = np.flatnonzero(~own)
        kept[split] = replace(part, names=[part.names[i] for i in left.tolist()], labels=part.labels[left])
    before, after = ({name: part.labels for name, part in of.items()} for of in (splits, kept))
    problems += emptied(classes, before, after, file)
    return kept, left_out(skipped, file), problems


def left_out(skipped: NDArray[np.bool_], file: str) -> str:
    """How many images are left out, in words."""
    count = int(skipped.sum())
    return f"left out: {count:,} {'image' if count == 1 else 'images'} named in {file}"


def emptied(
    classes: Sequence[str], before: Mapping[str, NDArray[np.int64]], after: Mapping[str, NDArray[np.int64]], file: str
) -> list[Problem]:
    """A problem for each class that has no training images left, and for each other split that has none at all.

    Args:
        classes: by number.
        before: the labels of each split, "train" among them.
        after: those of the images that are left.
        file: the skip list.
    """
    problems = [
        Problem(f"no image of split {split!r} is left: all {len(labels):,} are named in {file}", Key("skip_list"))
        for split, labels in before.items()
        if split != "train" and len(labels) and not len(after[split])
    ]
    counts = (np.bincount(labels["train"], minlength=len(classes)) for labels in (before, after))
    return problems + [
        Problem(f"class {name!r} has no training images left: all {was:,} are named in {file}")
        for name, was, now in zip(classes, *counts, strict=True)
        if was and not now
    ]


def written(found: Iterable[tuple[str, str]]) -> str:
    """A skip list of (name, why): to be read by a person before it is used."""
    lines = [
        "# Images that `lrtrain check` could not read. Mend or restore what can be; `dataset.skip_list` leaves out"
    ]
    lines += ["# those that are still named here. A path a line, from the dataset's root."]
    for name, why in found:
        shown = printable(name)  # one line, UTF-8, and safe to look at in a terminal
        lines += ["", f"# {printable(why)}", f"./{shown}" if shown.lstrip().startswith("#") else shown]
    return "\n".join(lines) + "\n"


def _read(file: Path, images: int) -> dict[str, int]:
    """The names, each with its line."""
    try:
        data = read_bytes(file, _MOST_BYTES, links=True)
    except OSError as error:
        raise DataError(
            f"cannot read `dataset.skip_list`, {str(file)!r}: {error.strerror}",
            Key("skip_list"),
            "`lrtrain check CONFIG --set dataset.skip_list=null --write-skip-list FILE` writes one to start from",
        ) from error
    found: dict[str, int] = {}
    for i, line in enumerate(BytesIO(data.removeprefix(b"\xef\xbb\xbf")), 1):
        if line.strip() and not line.lstrip().startswith(b"#"):
            if b"\0" in line or len(line) > _MOST_IN_LINE:
                raise _no_list(f"line {i:,} of {str(file)!r} is no name of an image: {quoted(line[:60])}")
            found[line.decode("utf-8", "surrogateescape").removesuffix("\n").rstrip("\r")] = i
            if len(found) > 4 * images + _MORE:
                raise _no_list(f"{str(file)!r} has more names than the dataset, of {images:,} images, can have")
    return found


def _no_list(what: str) -> DataError:
    return DataError(f"`dataset.skip_list`: {what}", Key("skip_list"), "is it the right file? It has a name a line")


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many folders two paths end with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False)))


def _hint(text: str, names: Sequence[str]) -> str:
    text = text.strip()
    if (before := text.partition(" #")[0].rstrip()) in names:
        return f"did you mean {before!r}? A remark has a line of its own, which starts with #"
    folder, base = os.path.split(text)
    same = [name for name in names if os.path.basename(name) == base]
    parts = text.split("/")
    alike = max(same, key=lambda name: _shared(name.split("/"), parts), default=None)
    beside = [name for name in names if os.path.dirname(name) == folder][:_COMPARED]
    near = [name for name in beside or names[:_COMPARED] if max(len(name), len(text)) <= _MOST_COMPARED]
    guess = alike or next(iter(difflib.get_close_matches(text, near, 1, 0.6)), None)
    such = f"such as {names[0]!r}" if names else "and it has no images"
    return f"did you mean {guess!r}?" if guess else f"names are paths from the dataset's root, {such}"
