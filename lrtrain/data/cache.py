"""Images after the deterministic transforms, kept as uint8 in memory or in a file, or made again each time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from lrtrain.data.disk_cache import Shape, StoredImages, cache_folder, file_for, stored
from lrtrain.data.loader import Order, Workshop, fulfilled
from lrtrain.data.memory import available_bytes
from lrtrain.data.source import Split, Stamped
from lrtrain.data.transforms import Stages
from lrtrain.errors import ConfigError, DataError, EnvironmentFault

Mode = Literal["auto", "memory", "disk", "off"]

AUTO_SHARE = 4  # auto fills at most one part in so many of the available memory
LEFT_SHARE, LEFT_BYTES = 10, 2**30  # auto leaves one part in so many of the disk free, and so many bytes
_ONE_SIZE = "begin the list with Resize and CenterCrop"
_CHUNK, _CHUNK_BYTES = 256, 2**24  # images that a worker prepares at a time, at most
_FEW_PIXELS = 10_000_000  # are decoded faster than workers start


@dataclass(frozen=True)
class Kept:
    """The prepared images of a split, and in words where they are.

    Attributes:
        images: uint8 (n, C, H, W), or None where they are made again each time.
        place: memory, the file, or off and why.
        size: bytes.
    """

    images: torch.Tensor | StoredImages | None
    place: str
    size: int = 0


def kept(workshop: Workshop, mode: Mode, workers: int, where: Callable[..., str], processes: int = 1) -> Kept:
    """Prepare the images of a split, where they are known to have one size after the beginning of their list.

    `memory` and `disk` are done or refused. `auto` is memory where they fit into a quarter of what is available,
    else disk where a tenth of it and 1 GiB stay free, else off. In memory each of the `processes` of this machine has
    images of its own; a file is shared.

    Raises:
        ConfigError: the images cannot be kept: they are not known to be of one size, or on disk nothing tells whether
            they changed.
        EnvironmentFault: they do not fit, or the folder of the files cannot be used.
        DataError: an image cannot be read.
    """
    if mode == "off":
        return Kept(None, "off")
    refuse_unkept(workshop.name, workshop.split, workshop.stages, mode, where)
    if workshop.stages.size is None:
        why = "it is not known that the images are of one size before anything random is done to them"
        return Kept(None, f"off, since {why}")
    raw = workshop.split.read(0)
    n, shape = len(workshop.split), tuple(workshop.stages.prepare(raw).shape)
    making = _Making(workshop, (n, *shape), int(raw.shape[0]), workers if n * raw[0].numel() > _FEW_PIXELS else 0)
    if mode == "disk":
        return _on_disk(making, where)
    if mode == "auto" and making.size * processes > available_bytes() // AUTO_SHARE:
        return _on_disk_if_it_can_be(making, processes)
    return _in_memory(making, where, processes)


def refuse_unkept(name: str, split: Split, stages: Stages, mode: Mode, where: Callable[..., str]) -> None:
    """Refuse to keep images of several sizes, or on disk what may change without a word, where that is asked for.

    Raises:
        ConfigError: those of the split `name` are not known to be of one size, or are no files.
    """
    if mode in ("memory", "disk") and stages.size is None:
        raise ConfigError(
            f"cache: {mode} needs images of one size before anything random is done to them; those of "
            f"{name} are not known to be",
            where("cache"),
            f"{_ONE_SIZE}, or write `cache: auto`",
        )
    if mode == "disk" and not (isinstance(split, Stamped) and split.stamp(0) is not None):
        raise _no_files(name, where)


def _no_files(name: str, where: Callable[..., str]) -> ConfigError:
    return ConfigError(
        f"cache: disk needs image files, whose times tell whether they changed; those of {name} "
        "come from a dataset that does not have them one by one",
        where("cache"),
        "write `cache: auto`, which keeps them in memory where they fit",
    )


def kept_words(splits: dict[str, Kept]) -> list[str]:
    """Where the images of the splits, by name, are: for a person, before training."""
    places: dict[str, list[str]] = {}
    for name, one in splits.items():
        places.setdefault(one.place, []).append(name)
    found = []
    for place, names in places.items():
        size = sum(splits[name].size for name in names)
        words = f"{place}, {_sized(size)}" if size else place
        found.append(words if len(places) == 1 else f"{' and '.join(names)}: {words}")
    return found


@dataclass(frozen=True)
class _Making:
    """How the images of a split are prepared: `channels` as decoded, `shape` (n, C, H, W) as prepared."""

    workshop: Workshop
    shape: Shape
    channels: int
    workers: int

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64))

    def file(self) -> Path | None:
        """Where they belong on disk, if anywhere."""
        return file_for(self.workshop.name, self.workshop.split, self.workshop.stages.once, self.channels, self.shape)

    def parts(self) -> Iterator[torch.Tensor]:
        """The images, some at a time, in order."""
        n, each = self.shape[0], self.size // self.shape[0]
        step = max(1, min(_CHUNK, _CHUNK_BYTES // max(each, 1)))
        orders = [Order(np.arange(start, min(start + step, n)), None) for start in range(0, n, step)]
        words = f"decoding {self.workshop.name}"
        with tqdm(total=n, desc=words, unit=" images", disable=None, delay=1, leave=False) as bar:
            for order, part in zip(orders, fulfilled(self.workshop, orders, self.workers), strict=True):
                if part.shape[1:] != self.shape[1:]:
                    name = self.workshop.split.path(int(order.index[0]))
                    raise DataError(
                        f"{name} is {tuple(part.shape[1:])} where the first image is {tuple(self.shape[1:])}",
                        hint=_ONE_SIZE,
                    )
                yield part
                bar.update(len(part))


def _in_memory(making: _Making, where: Callable[..., str], processes: int) -> Kept:
    if making.size * processes > (free := available_bytes()):
        needed = f"{_sized(making.size)}{_in_each(processes)}"
        what = f"cache: memory needs {needed} for {making.workshop.name}; {_sized(free)} are available"
        raise EnvironmentFault(what, where("cache"), "write `cache: auto`, or make the images smaller")
    images, at = torch.empty(making.shape, dtype=torch.uint8), 0
    for part in making.parts():
        images[at : at + len(part)] = part
        at += len(part)
    return Kept(images, "memory", making.size)


def _on_disk(making: _Making, where: Callable[..., str]) -> Kept:
    path = making.file()
    if path is None:
        raise _no_files(making.workshop.name, where)
    try:
        return _stored(making, path)
    except OSError as error:
        raise EnvironmentFault(
            f"cache: disk cannot keep the images of {making.workshop.name}, {_sized(making.size)}, in {path}: "
            f"{error.strerror or error}",
            where("cache"),
            "set LRTRAIN_CACHE to a folder that can be written and has room, or write `cache: auto`",
        ) from error


def _on_disk_if_it_can_be(making: _Making, processes: int) -> Kept:
    more = f"off, since {_sized(making.size)}{_in_each(processes)} are more than a quarter of the available memory"
    try:
        path = making.file()
    except EnvironmentFault as error:  # nobody's home
        return Kept(None, f"{more}, and {error.problems[0].what}")
    if path is None:
        return Kept(None, f"{more}, and only image files go on disk")
    try:
        if not path.exists() and (lacking := _lacking(making.size)):
            return Kept(None, f"{more}, and {lacking}")
        return _stored(making, path)
    except OSError as error:
        return Kept(None, f"{more}, and {path} cannot be written: {error.strerror or error}")


def _in_each(processes: int) -> str:
    return f" in each of {processes} processes" if processes > 1 else ""


def _stored(making: _Making, path: Path) -> Kept:
    def parts() -> Iterable[torch.Tensor]:
        yield from making.parts()
        if making.file() != path:
            raise DataError(
                f"images of {making.workshop.name} changed while they were prepared", hint="start again when they rest"
            )

    images = stored(path, making.shape, parts)
    home = Path(os.path.expanduser("~"))  # ~ itself where there is none
    return Kept(images, f"disk, {'~' / path.relative_to(home) if path.is_relative_to(home) else path}", making.size)


def _lacking(size: int) -> str:
    """In words, that the disk of the cache folder has no room for `size` bytes; empty where it has."""
    folder = cache_folder()
    disk = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists()))
    if disk.free - size >= max(disk.total // LEFT_SHARE, LEFT_BYTES):
        return ""
    return f"{folder} has {_sized(disk.free)} free of {_sized(disk.total)}, which leaves too little"


def _sized(size: int) -> str:
    """Bytes in three digits: 154 MB."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if size >= 0.9995 * 1000**power:
            return f"{size / 1000**power:.3g} {unit}"
    return f"{size} B"
