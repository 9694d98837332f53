"""Tar files of labelled images (WebDataset shards) as a split: an index says where each image lies."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.decode import decode_bytes, header, upright_size
from lrtrain.data.pieces import MOST_FILE_BYTES
from lrtrain.errors import BEYOND_FILES, DataError
from lrtrain.foreign import opened

# Files that a process keeps open: a quarter of what it may, which is most often 1024.
_MAY_OPEN = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
_OPEN = 1024 if _MAY_OPEN == resource.RLIM_INFINITY else max(8, min(_MAY_OPEN // 4, 1024))
_HEADER_BYTES = 2**16  # enough for the size of most images


@dataclass(frozen=True, eq=False)
class Texts:
    """Many texts as two arrays, which workers and files take at once: UTF-8 end to end, and where each ends."""

    content: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """The texts in order; what tar files have that is no UTF-8 comes back as it was."""
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = self.ends[i - 1] if i else 0
        return self.content[start : self.ends[i]].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class Shard:
    """What is in a tar file, sample by sample in its order.

    Attributes:
        path: absolute.
        size, mtime_ns: of the file when it was indexed.
        members: names of the images.
        offsets, sizes: where their content lies, in bytes.
        labels: each label once, as it is written there.
        label_of: which of them each image has.
        passed_over: members that belong to no sample.
        called: the file, in the names of its images; its own name where none is given.
    """

    path: str
    size: int
    mtime_ns: int
    members: Texts
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: Texts
    label_of: NDArray[np.int64]
    passed_over: int
    called: str = ""

    def __len__(self) -> int:
        return len(self.members)

    def only(self, kept: NDArray[np.bool_]) -> Shard:
        """The samples for which `kept`, shape (n,), is true; all of the file is still known."""
        chosen = np.flatnonzero(kept)
        return replace(
            self,
            members=Texts.of(self.members[i] for i in chosen.tolist()),
            offsets=self.offsets[chosen],
            sizes=self.sizes[chosen],
            label_of=self.label_of[chosen],
        )

    def content(self, i: int, most: int | None = None) -> bytes:
        """Image i as the file has it, or its first `most` bytes.

        Raises:
            DataError: the file is gone, cannot be read, or is another one than was indexed.
            OSError: the machine lacks what it takes to open it.
        """
        size = int(self.sizes[i]) if most is None else min(int(self.sizes[i]), most)
        if size > MOST_FILE_BYTES:
            raise DataError(f"{self.path}:{self.members[i]} has {size:,} bytes; at most {MOST_FILE_BYTES:,} are read")
        try:
            file = _opened(self.path, self.size, self.mtime_ns).number
            # Another process, or the one that this is a fork of, may read from the same descriptor: pread has no place
            # in the file that they would share.
            self.check(os.fstat(file))
            content = os.pread(file, size, int(self.offsets[i]))
        except OSError as error:
            if error.errno in BEYOND_FILES:
                raise
            raise DataError(f"cannot read the shard {self.path}: {error.strerror}", hint="restore the file") from error
        if len(content) != size:
            raise DataError(f"{self.path} ends within {self.members[i]}", hint="restore the file")
        return content

    def check(self, found: os.stat_result) -> None:
        """Hold the file against what was indexed.

        Raises:
            DataError: it is another one, or was written since.
        """
        if (found.st_size, found.st_mtime_ns) != (self.size, self.mtime_ns):
            raise DataError(
                f"the shard {self.path} changed after it was indexed", hint="start again when it is complete"
            )


class _Descriptor:
    """An open file, closed when nobody has it any more, so that none is closed while it is being read."""

    def __init__(self, path: str):
        with opened(Path(path), links=True) as file:
            self.number = os.dup(file.fileno())

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it was not opened
            os.close(self.number)


@lru_cache(_OPEN)
def _opened(path: str, size: int, mtime_ns: int) -> _Descriptor:
    """The file at `path`; one that is indexed anew is opened anew."""
    return _Descriptor(path)


@dataclass(frozen=True, eq=False)
class ShardSplit:
    """The images of some shards, in the order of the shards and of each tar file, read by the rule of `decode`."""

    shards: Sequence[Shard]
    labels: NDArray[np.int64]
    channels: int

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, kept: NDArray[np.bool_]) -> ShardSplit:
        """The images for which `kept`, shape (n,), is true."""
        each = np.split(kept, self._ends[:-1])
        shards = tuple(shard.only(own) for shard, own in zip(self.shards, each, strict=True))
        return ShardSplit(shards, self.labels[kept], self.channels)

    def _place(self, i: int) -> tuple[Shard, int]:
        """The shard of image i, and its number there."""
        at = int(np.searchsorted(self._ends, i, side="right"))
        return self.shards[at], i - (int(self._ends[at - 1]) if at else 0)

    def read(self, i: int) -> torch.Tensor:
        """Image i, uint8 (channels, height, width)."""
        shard, j = self._place(i)
        return decode_bytes(shard.content(j), self.path(i), self.channels)

    def path(self, i: int) -> str:
        """The shard's path and the member's name: train-000.tar:a/1.jpg."""
        shard, j = self._place(i)
        return f"{shard.path}:{shard.members[j]}"

    def name(self, i: int) -> str:
        """What image i is called wherever the folder lies."""
        shard, j = self._place(i)
        return f"{shard.called or os.path.basename(shard.path)}:{shard.members[j]}"

    def bytes_of(self, i: int) -> int:
        """The size of the member."""
        shard, j = self._place(i)
        return int(shard.sizes[j])

    def content(self, i: int) -> bytes:
        """The member's bytes, or DataError."""
        shard, j = self._place(i)
        return shard.content(j)

    def size_of(self, i: int) -> tuple[int, int]:
        """Width and height, by the image's header."""
        shard, j = self._place(i)
        if shard.sizes[j] > _HEADER_BYTES:
            with suppress(Exception), header(BytesIO(shard.content(j, _HEADER_BYTES))) as image:
                if image.format not in ("PNG", "TIFF"):  # which may say at their end how they are turned
                    return upright_size(image)
        with header(BytesIO(shard.content(j))) as image:
            return upright_size(image)

    def stamp(self, i: int) -> str:
        """Where the image lies, its bytes, and when the shard was written; of the rest see `FileSplit.stamp`.

        Raises:
            DataError: the shard is not there, or was written since.
        """
        shard, j = self._place(i)
        try:
            found = os.stat(shard.path)
        except OSError as error:
            raise DataError(f"cannot read the shard {shard.path}: {error.strerror}", hint="restore the file") from error
        shard.check(found)
        of_shard = f"{shard.path}\0{shard.size}\0{shard.mtime_ns}\0{found.st_ctime_ns}"
        return f"{of_shard}\0{shard.offsets[j]}\0{shard.sizes[j]}"
