"""What a dataset consists of, in a few kilobytes: a run that goes on can tell whether it still is what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lrtrain.data.pairs import PairSplit
from lrtrain.data.shards import ShardSplit
from lrtrain.data.source import InFiles, Source, Split, unwrapped

_DIGITS = 16  # of each sha256: 64 bits tell an accident; nothing here is for an attacker


class Part(TypedDict):
    """The images of one class in one split: how many, and a digest that differs where they may be other ones."""

    images: int
    sha256: str


Fingerprint = dict[str, dict[str, Part]]


def fingerprint(source: Source) -> Fingerprint:
    """What each class has in each split, as plain data: `{"train": {"ants": {"images": 123, "sha256": "..."}}}`.

    Where the images are files, or members of shards, the digest is of their names and sizes: the same wherever the
    folder lies, and whenever it was copied. None is read; one that was replaced by another of as many bytes under the
    same name is not noticed. Files are in the order of their names; that of members is the tar file's, and in the
    digest. Elsewhere the digest is of the places that the class has in the order of the split, which follow from the
    labels; in a dataset of (image, class) pairs also of the pixels of some images.

    Args:
        source: all its splits are looked at: a stat for each file.

    Raises:
        DataError: a file is not there.
    """
    names = source.distinct_classes
    total = sum(map(len, source.splits().values()))
    with tqdm(
        total=total, desc="listing the images", unit=" images", disable=None, delay=2, leave=False, dynamic_ncols=True
    ) as bar:
        return {split: dict(_parts(images, names, bar)) for split, images in source.splits().items()}


def differences(before: Mapping[str, Mapping[str, Part]], now: Mapping[str, Mapping[str, Part]]) -> list[str]:
    """What `now` has gained, lost or exchanged since `before`, a line for each class of each split.

    >>> differences({"val": {"ants": {"images": 2, "sha256": "a"}}}, {"val": {"ants": {"images": 1, "sha256": "b"}}})
    ['val/ants: 2 images when the run began, 1 now']
    """
    lines: list[str] = []
    for split in dict.fromkeys([*before, *now]):
        old, new = before.get(split), now.get(split)
        if old is None or new is None:
            lines.append(f"{split}: {_whole(old)} when the run began, {_whole(new)} now")
            continue
        for name in dict.fromkeys([*old, *new]):
            line = _difference(old.get(name), new.get(name))
            if line:
                lines.append(f"{split}/{name}: {line}")
    return lines


def _difference(old: Part | None, new: Part | None) -> str:
    if old == new:
        return ""
    if old is None or new is None:
        counts = ("no such class" if part is None else _counted(part["images"]) for part in (old, new))
        return "{} when the run began, {} now".format(*counts)
    if old["images"] != new["images"]:
        return f"{_counted(old['images'])} when the run began, {new['images']:,} now"
    others = "not the same ones: names, sizes, pixels or their order differ"
    return f"{_counted(new['images'])} as when the run began, but {others}"


def _whole(split: Mapping[str, Part] | None) -> str:
    return "not there" if split is None else _counted(sum(part["images"] for part in split.values()))


def _counted(images: int) -> str:
    return "1 image" if images == 1 else f"{images:,} images"


def _parts(split: Split, names: Sequence[str], bar: tqdm[Any]) -> Iterator[tuple[str, Part]]:
    images, indices = unwrapped(split)
    order = np.argsort(split.labels, kind="stable")
    ends = np.cumsum(np.bincount(split.labels, minlength=len(names)))
    for name, places in zip(names, np.split(order, ends[:-1]), strict=True):
        if isinstance(images, ShardSplit):
            digest = _of_members(images, places, indices[places])
        elif isinstance(images, InFiles):
            digest = _of_files(images, indices[places])
        else:
            seen = images.digest_of(indices[places]) if isinstance(images, PairSplit) else b""
            digest = _of_places(places, seen)
        bar.update(len(places))
        yield name, Part(images=len(places), sha256=digest[:_DIGITS])


def _of_files(images: InFiles, indices: NDArray[np.int64]) -> str:
    listed = sorted(f"{images.name(i)}\0{images.bytes_of(i)}\0" for i in indices.tolist())
    return hashlib.sha256("".join(listed).encode("utf-8", "surrogateescape")).hexdigest()


def _of_members(images: ShardSplit, places: NDArray[np.int64], indices: NDArray[np.int64]) -> str:
    each = zip(places.tolist(), indices.tolist(), strict=True)
    listed = "".join(f"{place}\0{images.name(i)}\0{images.bytes_of(i)}\0" for place, i in each)
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()


def _of_places(places: NDArray[np.int64], seen: bytes) -> str:
    return hashlib.sha256(np.ascontiguousarray(places, dtype="<i8").tobytes() + seen).hexdigest()
