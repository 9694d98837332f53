"""What torchvision's datasets open, looked at before they read it: whole files are read there, whatever they are."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lrtrain import foreign
from lrtrain.data.folders import MOST_NESTED
from lrtrain.errors import CheckpointError, quoted
from lrtrain.torch_archive import refuse_other_archives, refuse_other_legacy

_LARGE = 2**29  # bytes: from here on it takes seconds to read a file
_MOST_TIMES = 3_000  # that a folder is looked into: links to links double the ways to it again and again
_MOST_NAMES = 1_000  # of a class, and letters of each
_SYSTEMS = ("/dev/null", "/dev/urandom", "/dev/random")
# .guards: whether this thread is within `only_whole_files`; .seen: how often it has looked into each folder meanwhile
_here = threading.local()


@contextmanager
def only_whole_files() -> Iterator[None]:
    """Meanwhile, let nothing in this thread open to read what has no end or cannot be read as it says it can.

    That is a pipe or device, a large file that was never written, an archive of torch's that would unpack to any size,
    or a link to a folder that it lies in. It raises where such a file is opened, if Python opens it: ValueError, or
    OSError where it is no file.
    """
    _listen()
    was, _here.guards = getattr(_here, "guards", False), True
    _here.seen = {}
    try:
        yield
    finally:
        _here.guards = was


@cache
def _listen() -> None:
    sys.addaudithook(_look)  # https://docs.python.org/3/library/audit_events.html: "open"; it cannot be taken back


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "os.scandir") or not getattr(_here, "guards", False):
        return
    if event == "os.scandir":
        _refuse_loop(arguments[0])
        return
    path, _, flags = arguments
    if isinstance(path, int) or flags & os.O_ACCMODE != os.O_RDONLY:
        return
    _here.guards = False
    try:
        _refuse(Path(os.fsdecode(path)))
    finally:
        _here.guards = True


def _refuse_loop(folder: str | bytes | int | None) -> None:
    if isinstance(folder, int | None):
        return
    path = Path(os.path.abspath(os.fsdecode(folder)))
    if len(path.parents) > 2 * MOST_NESTED:
        raise ValueError(f"{quoted(str(path))} lies in more than {2 * MOST_NESTED} folders")
    try:
        here = os.stat(path)
        again = sum(os.path.samestat(os.stat(above), here) for above in path.parents)
    except OSError:  # said by who reads it
        return
    seen = _here.seen[here.st_dev, here.st_ino] = _here.seen.get((here.st_dev, here.st_ino), 0) + 1
    if seen > _MOST_TIMES:
        raise ValueError(f"{path} is reached by more than {_MOST_TIMES:,} ways through links")
    if again > 1:  # once is no loop: SUN397 may be a link to the folder that it is wanted in
        raise ValueError(f"{path} links to a folder that it lies in")


def _refuse(path: Path) -> None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # said by who opens it
        return
    if stat.S_ISDIR(status.st_mode) or str(path) in _SYSTEMS:
        return
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if status.st_size > _LARGE:
        with foreign.opened(path, links=True) as file:
            try:
                foreign.refuse_holes(file)
            except ValueError as error:
                raise ValueError(f"{path.name}: {error}") from error
    if path.suffix == ".pt" or path.name == "meta.bin":  # MNIST's of torchvision 0.8 and older, and ImageNet's
        with foreign.opened(path, links=True) as file:
            archive = file.read(2) == b"PK"
        try:
            (refuse_other_archives if archive else refuse_other_legacy)(path)
        except CheckpointError as error:
            raise ValueError(f"{error.problems[0].what}; remove it, if the dataset's other files are there") from error
        _refuse_content(path)


def _refuse_content(path: Path) -> None:
    """Refuse a file whose tensors show a few numbers without end or are no images, or whose names hold themselves."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # said by who reads it
        return
    held = content if isinstance(content, tuple | list) else (content,)
    for one in held:
        if isinstance(one, torch.Tensor) and one.numel() * one.element_size() > one.untyped_storage().nbytes():
            raise ValueError(f"{path.name} holds a tensor that says it has more bytes than are stored")
    first = held[0] if held else None
    if path.suffix == ".pt" and isinstance(first, torch.Tensor) and (first.dtype, first.ndim) != (torch.uint8, 3):
        kind = f"{str(first.dtype).removeprefix('torch.')} {tuple(first.shape)}"
        raise ValueError(f"{path.name} holds images of {kind}, and must hold uint8 (N, height, width)")
    names = held[0].values() if held and isinstance(held[0], dict) else ()
    if path.name == "meta.bin" and not all(map(_is_names, names)):
        raise ValueError(f"{path.name} does not name its classes as ImageNet does, each by a few words")


def _is_names(value: object) -> bool:
    words = value if isinstance(value, tuple | list) else (value,)
    return len(words) <= _MOST_NAMES and all(isinstance(word, str) and len(word) <= _MOST_NAMES for word in words)
