"""WebDataset: tar files of images and labels, read at random."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import translate
from functools import partial
from glob import escape, has_magic
from itertools import count
from typing import Any, Literal

import numpy as np

from lrtrain.data.classes import MOST_CLASSES, twins
from lrtrain.data.files import channels_for, common_size, shortened
from lrtrain.data.shard_index import indexed, is_number
from lrtrain.data.shards import Shard, ShardSplit
from lrtrain.data.skip_list import emptied, left_out, named
from lrtrain.data.source import Source, absent_note, with_notes
from lrtrain.data.stratify import arranged
from lrtrain.errors import GONE, ConfigError, DataError, Problem, quoted
from lrtrain.foreign import read_bytes, user_path

_URL = re.compile(r"(pipe|file):|[A-Za-z][\w+.-]*://")
_SUCH_AS = "such as shards/train-{000000..000146}.tar, a glob, or a list of these"

_ENOUGH = 1_000  # shards that are not there, for their pattern to be wrong
MOST_SHARDS = 1_000_000
_MOST_CHARACTERS = 10_000  # of a pattern
_MOST_CLASS_BYTES = 50_000_000

Patterns = str | Sequence[str]


def webdataset(
    *,
    train: Patterns,
    val: Patterns | None = None,
    test: Patterns | None = None,
    classes: str | None = None,
    val_fraction: float | None = None,
    color: Literal["rgb", "gray"] = "rgb",
    skip_list: str | None = None,
    seed: int,
) -> Source:
    """Shards as WebDataset writes them, on this machine's disks: `KEY.jpg` beside `KEY.cls` or `KEY.json`.

    Members that follow each other and have the same key, which ends at the first dot of the name, are a sample:
    one image, and a label. That is the text of `.cls`; without it, what `.json` has as `label` or `cls`. A label is
    one of `classes`, or a number from 0, the line in `classes`. Without `classes`, the labels of train are the
    classes: all numbers, in their order, or all names, sorted. Other members are left alone.

    What is where is found in one pass and kept in the cache folder; after that, images are read where they lie, in
    the order of the run. So order, resume and caches are those of every other dataset.

    Args:
        train: tar files, with braces `{000..146}` as webdataset expands them, `*` and `?`; `~` is expanded.
        val: evaluated; without val and val_fraction, test is.
        test: held back.
        classes: a text file, one name a line.
        val_fraction: share of each class of train held out for val.
        color: rgb, or gray for one channel.
        skip_list: a text file of images to leave out, `SHARD.tar:MEMBER` a line, `FOLDER/SHARD.tar:MEMBER` where
            shards in two folders have one name.
        seed: chooses what `val_fraction` holds out.

    Raises:
        DataError: every problem of the shards at once.
        ConfigError: patterns that are none, or URLs; val_fraction missing, or given beside val.
    """
    channels = channels_for(color)
    given = {"train": train, "val": val, "test": test}
    patterns = {name: _listed(name, value) for name, value in given.items() if value is not None}
    _check_evaluated(patterns, val_fraction)
    paths = _shard_paths(patterns)
    listed = None if classes is None else _class_file(classes)
    found, problems, note = indexed([path for part in paths.values() for path in part])
    called = _called([path for part in paths.values() for path in part])
    parts = {
        name: [replace(found[path], called=called[path]) for path in part if path in found]
        for name, part in paths.items()
    }
    names, number, wrong = _classes(parts, listed, complete=not problems)
    if problems or wrong:
        raise DataError(shortened([*problems, *wrong]))
    notes = [note, _passed_over(found.values())]
    whole = {name: _split(part, number, channels) for name, part in parts.items()}
    splits, skipped, unknown = _without(skip_list, whole, names)
    for name, split in splits.items():
        notes.append(absent_note(name, names, {names[i] for i in np.unique(split.labels)}))
    words = {name: f"shards of {name}" for name in splits}
    source = arranged(names, channels, splits, words, val_fraction, seed, splits["train"].name)
    size = partial(common_size, list(splits.values()))
    source = replace(source, measured=size, problems=(*unknown, *source.problems))
    return with_notes(source, *notes, skipped)


def _without(
    file: str | None, splits: Mapping[str, ShardSplit], classes: Sequence[str]
) -> tuple[dict[str, ShardSplit], str, list[Problem]]:
    """The splits without the images that a skip list names, a note of how many, and what is wrong with the list."""
    if file is None:
        return dict(splits), "", []
    places = [(split, i) for split in splits.values() for i in range(len(split))]
    called = [split.name(i) for split, i in places]
    skipped, problems = named(file, called, lambda k: places[k][0].path(places[k][1]))
    ends = np.cumsum([len(split) for split in splits.values()])
    each = zip(splits.items(), np.split(skipped, ends[:-1]), strict=True)
    kept = {name: split.only(~own) for (name, split), own in each}
    before, after = ({name: part.labels for name, part in of.items()} for of in (splits, kept))
    problems += emptied(classes, before, after, file)
    return kept, left_out(skipped, file), problems


def absolute(patterns: Any) -> Any:
    """Patterns that mean the same from any folder; what is none is left to be refused."""
    if isinstance(patterns, list | tuple):
        return [absolute(pattern) for pattern in patterns]
    if not isinstance(patterns, str):
        return patterns
    here = re.sub(r"([\\{}])", r"\\\1", escape(os.getcwd())).replace("::", "[:][:]")
    return "::".join(
        part if part.startswith(("/", "~", "$", "{/", "{~")) or _URL.match(part) else os.path.join(here, part)
        for part in patterns.split("::")
    )


def _listed(name: str, value: Any) -> list[str]:
    patterns = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ConfigError(f"{name} must name tar files, not {value!r:.80}", hint=_SUCH_AS)
    if long := [pattern for pattern in patterns if len(pattern) > _MOST_CHARACTERS]:
        what = f"{name} must name tar files in at most {_MOST_CHARACTERS:,} characters; {quoted(long[0])} has"
        raise ConfigError(f"{what} {len(long[0]):,}", hint=f"name more files in a list: {_SUCH_AS}")
    return patterns


def _check_evaluated(patterns: Mapping[str, Any], val_fraction: float | None) -> None:
    if "val" in patterns and val_fraction is not None:
        raise ConfigError(f"val_fraction {val_fraction:g} contradicts val", hint="leave one of them out")
    if "val" not in patterns and "test" not in patterns and val_fraction is None:
        raise ConfigError(
            "nothing to evaluate on: neither val nor test is given, and no val_fraction",
            hint="add `val: val-{00..06}.tar`, or `val_fraction: 0.1` to hold out 10%",
        )


def _shard_paths(patterns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The files of each split's patterns, in their order, absolute."""
    problems: list[Problem] = []
    paths = {split: _matching(part, problems) for split, part in patterns.items()}
    problems += _repeated(paths)
    if problems:
        raise DataError(shortened(problems))
    return paths


def _matching(patterns: Sequence[str], problems: list[Problem]) -> list[str]:
    """The files of some patterns; those that are not there are added to `problems`."""
    paths: list[str] = []
    looked = count(1)
    for name in (name for pattern in patterns for name in _expanded(pattern)):
        found = [name]
        if not os.path.exists(name) and has_magic(name):
            found = sorted(_globbed(name, looked))
            if not found:
                problems.append(Problem(f"no file matches {os.path.abspath(name)!r}", hint="correct the pattern"))
        for path in map(os.path.abspath, found):
            if not os.path.isfile(path):
                why = "is no regular file" if os.path.exists(path) else "does not exist"
                problems.append(Problem(f"the shard {path!r} {why}", hint="correct the pattern, or restore the file"))
            paths.append(path)
        if len(problems) > _ENOUGH:
            break
    return paths


def _globbed(pattern: str, looked: Iterator[int]) -> list[str]:
    """What `glob` finds with `recursive=True`, which would look for ever through a disk or /proc.

    Args:
        pattern: without braces.
        looked: counts the names that were looked at.

    Raises:
        ConfigError: these are more than `MOST_SHARDS`.
        OSError: the file system has gone away.
    """

    def below(folder: str) -> Iterator[str]:
        yield folder
        left = [folder]
        while left:
            for entry in _entries(here := left.pop(), pattern, looked):
                if not entry.name.startswith("."):
                    yield (path := os.path.join(here, entry.name))
                    if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(path)):
                        left.append(path)

    def fitting(folder: str, part: str) -> Iterator[str]:
        fits = re.compile(translate(part)).match
        for entry in _entries(folder, pattern, looked):
            if fits(entry.name) and (part.startswith(".") or not entry.name.startswith(".")):
                yield os.path.join(folder, entry.name)

    paths = ["/" if pattern.startswith("/") else ""]
    for part in filter(None, pattern.split("/")):
        if part == "**":
            folders = (path for path in paths if not path or os.path.isdir(path))
            paths = list(dict.fromkeys(path for folder in folders for path in below(folder)))
        elif has_magic(part):
            paths = [path for folder in paths for path in fitting(folder, part)]
        else:
            paths = [path for folder in paths if os.path.lexists(path := os.path.join(folder, part))]
    return list(filter(None, paths))


def _entries(folder: str, pattern: str, looked: Iterator[int]) -> list[os.DirEntry[str]]:
    """What is in a folder, if it is one that can be read."""
    found = []
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                if next(looked) > MOST_SHARDS:
                    what = f"more than {MOST_SHARDS:,} files and folders lie where {quoted(pattern)} looks"
                    hint = f"name the folder of the shards, without **: {_SUCH_AS}"
                    raise ConfigError(f"{what}; at most {MOST_SHARDS:,} are looked at", hint=hint)
                found.append(entry)
    except OSError as error:
        if error.errno in GONE:
            raise
    return found


def _expanded(pattern: str) -> list[str]:
    from webdataset.shardlists import expand_urls

    if (count := _at_most(pattern)) > MOST_SHARDS:
        raise ConfigError(
            f"{pattern!r:.200} stands for up to {count:,} shards; at most {MOST_SHARDS:,} are looked for",
            hint=f"name those that are there: {_SUCH_AS}",
        )
    if (work := count * pattern.count("{")) > MOST_SHARDS:  # webdataset copies a name for each of its braces
        what = f"{quoted(pattern)} stands for up to {count:,} shards by {pattern.count('{')} braces each"
        raise ConfigError(f"{what}, {work:,}; at most {MOST_SHARDS:,} are expanded", hint=_SUCH_AS)
    try:
        names: list[str] = [pattern] if _URL.match(pattern) else expand_urls(pattern)
    except (
        ValueError,
        AssertionError,
        RecursionError,
    ) as error:  # braces; ${X} without WDS_X
        raise ConfigError(f"cannot expand {pattern!r}: {error}", hint=_SUCH_AS) from error
    if urls := [name for name in names if _URL.match(name)]:
        raise ConfigError(
            f"shards must be files on this machine, to be read at random; {urls[0]!r} is not",
            hint="download the shards, or mount where they are, and give the paths",
        )
    return [os.path.expanduser(name) for name in names]


def _at_most(pattern: str) -> int:
    """How many names a pattern's braces can stand for, or more, without making them."""
    count = 1
    # Only where a word begins: from each of its letters, a long one would be read to its end.
    for first, last in re.findall(r"(?:(?<!\w)|(?=-))(-?\w+)\.\.(-?\w+)", pattern):
        numbers = [int(end) if re.fullmatch(r"-?\d{1,18}", end) else None for end in (first, last)]
        if None not in numbers:
            count *= abs((numbers[1] or 0) - (numbers[0] or 0)) + 1
        else:
            count *= abs(ord(last[-1]) - ord(first[-1])) + 1 if len(first) == len(last) == 1 else 10**18
    depth, commas = 0, [0]
    for character in pattern:
        if character == "{":
            depth += 1
            commas.append(0)
        elif character == "}" and len(commas) > 1:
            count *= commas.pop() + 1
        elif character == ",":
            commas[-1] += 1
    return count


def _repeated(paths: Mapping[str, Sequence[str]]) -> list[Problem]:
    """The same images twice in a split, or trained on and evaluated on."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for split, part in paths.items():
        for path in part:
            earlier = seen.get(os.path.realpath(path))
            if earlier is not None:
                twice = f"twice in {split}" if earlier == split else f"in {earlier} and in {split}"
                problems.append(Problem(f"the shard {path} is {twice}", hint="keep one of them"))
            seen[os.path.realpath(path)] = split
    return problems


def _called(paths: Sequence[str]) -> dict[str, str]:
    """What shards are called wherever their folder lies: their names, with their folders where two have one name."""
    names = {path: os.path.basename(path) for path in paths}
    if len(set(names.values())) == len(names):
        return names
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {path: os.path.relpath(path, root) for path in paths}


def _class_file(classes: str) -> tuple[str, ...]:
    file = user_path(classes)
    try:
        content = read_bytes(file, _MOST_CLASS_BYTES, links=True)
        names = tuple(line.strip() for line in content.decode("utf-8-sig").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read the class names in {str(file)!r}: {why}", hint="one name a line") from error
    if len(names) > MOST_CLASSES:
        what = f"{str(file)!r} has {len(names):,} lines, and at most {MOST_CLASSES:,} classes are read"
        raise DataError(what, hint="one name a line")
    lines: dict[str, int] = {}
    problems = []
    for i, name in enumerate(names, 1):
        if not name:
            problems.append(Problem("a class needs a name; the line is empty", f"{file}:{i}"))
        elif (first := lines.setdefault(name, i)) != i:
            problems.append(Problem(f"class {name!r} is listed twice, first on line {first}", f"{file}:{i}"))
        elif is_number(name) and name != str(i - 1):
            what = f"class {name!r} would be number {i - 1}: a label {name} could mean either"
            problems.append(Problem(what, f"{file}:{i}", "give names that are no numbers, or 0, 1, 2 ... in order"))
    if len(names) < 2 and not problems:
        problems.append(Problem(f"there must be two classes or more; {str(file)!r} has {len(names)}"))
    if problems:
        raise DataError(shortened(problems))
    return names


def _classes(
    parts: Mapping[str, Sequence[Shard]], listed: tuple[str, ...] | None, complete: bool
) -> tuple[tuple[str, ...], dict[str, int], list[Problem]]:
    """The classes, the number of each label that is one of them, and what is wrong with labels.

    Where the shards are not complete, since some cannot be read, no label is missing from train.
    """
    if listed is None and not complete:
        return (), {}, []
    trained = _labels(parts["train"])
    if listed is None:
        names, problems = _found_classes(list(trained))
        number = {label: i for i, label in enumerate(names)}
    else:
        names, problems = listed, []
        number = _numbers(listed, [label for part in parts.values() for label in _labels(part)])
    in_train = {number.get(label) for label in trained}
    for split, part in parts.items():
        for label, places in _labels(part).items():
            what = f"label {label!r} is in {split} but not in"
            if label not in number and listed is not None:
                hint = f"add it there, or correct the label; a number is a line from 0 to {len(names) - 1}"
                problems.append(Problem(f"{what} the class names: {places}", hint=hint))
            elif complete and number.get(label) not in in_train:
                problems.append(Problem(f"{what} train: {places}", hint="add training images of it"))
    return names, number, problems


def _found_classes(labels: Sequence[str]) -> tuple[tuple[str, ...], list[Problem]]:
    """The labels of train as classes, and what is wrong with that."""
    numbers, words = ([label for label in labels if is_number(label) is so] for so in (True, False))
    names = (*sorted(numbers, key=int), *sorted(words))
    problems = []
    if numbers and words:
        what = f"labels of train are numbers and names: {numbers[0]} and {words[0]!r}"
        problems.append(Problem(what, hint="give `classes: classes.txt`, one name a line, in the order of the numbers"))
    if len(names) < 2:
        problems.append(Problem(f"there must be two classes or more; train has {', '.join(names) or 'none'}"))
    problems += twins(words, "train")
    return names, problems


def _numbers(classes: tuple[str, ...], labels: Iterable[str]) -> dict[str, int]:
    """The class of each label that is a name in the list, or the number of one."""
    named = {name: i for i, name in enumerate(classes)}
    found = {label: named.get(label, int(label) if is_number(label) else -1) for label in labels}
    return {label: i for label, i in found.items() if 0 <= i < len(classes)}


def _labels(part: Sequence[Shard]) -> dict[str, str]:
    """Each label of some shards, and in words which images have it."""
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for shard in part:
        for k, j, n in zip(*np.unique(shard.label_of, return_index=True, return_counts=True), strict=True):
            label = shard.labels[int(k)]
            count[label] += int(n)
            if label not in first:
                first[label] = f"{shard.path}:{shard.members[int(j)]}"
    return {
        label: f"{place} and {count[label] - 1:,} more" if count[label] > 1 else place for label, place in first.items()
    }


def _split(part: Sequence[Shard], number: Mapping[str, int], channels: int) -> ShardSplit:
    each = [
        np.array([number[shard.labels[k]] for k in range(len(shard.labels))], dtype=np.int64)[shard.label_of]
        for shard in part
    ]
    return ShardSplit(tuple(part), np.concatenate(each), channels)


def _passed_over(shards: Iterable[Shard]) -> str:
    count = sum(shard.passed_over for shard in shards)
    return f"passed over in the shards: {count:,} hidden files and files without extension" if count else ""
