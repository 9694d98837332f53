"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lrtrain.errors import EnvironmentFault, what_to_do


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all is written, in one step; else what was there stays.

    What a link of that name leads to stays as it is. A device or a pipe is written to.

    Args:
        path: the file.
        temporary: what it is called until then, where no other process writes it meanwhile.

    Raises:
        OSError: the file system refuses.
    """
    if is_of_the_system(path) or (os.path.exists(path) and not os.path.isfile(path)):
        number = _descriptor(path)
        # Opened anew, a file that the shell says `> FILE` of would be cut, and written over by what is printed next.
        with path.open("wb") if number is None else os.fdopen(os.dup(number), "wb") as file:
            yield file
        return
    temporary = temporary or _beside(path, f".{os.getpid()}")
    try:
        with in_place_of(temporary) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names, where its file system lets us: some shared folders refuse to.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def is_of_the_system(path: Path) -> bool:
    """Whether it is a way out of the process, not a place: /dev/stdout, which may be a link to a file, /dev/null ..."""
    top, *below = path.absolute().parts[1:3] or ("",)
    return top in ("dev", "proc") and below != ["shm"]  # files in memory


def _descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path stands for, such as /dev/stdout."""
    name = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}.get(str(path), str(path))
    found = re.fullmatch(r"(?:/dev|/proc/self)/fd/([0-9]{1,9})", name)
    return int(found[1]) if found else None


@contextmanager
def new(path: Path) -> Iterator[IO[bytes]]:
    """A file that was not there, and is not there either when it could not be written.

    Raises:
        FileExistsError: something has that name, be it a link to nothing.
        OSError: the file system refuses.
    """
    with path.open("xb") as file:
        try:
            yield file
            file.flush()
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, text: str, then: str = "`--resume`") -> None:
    """Replace a small file in one step, whatever had its name meanwhile: what a link leads to stays as it is.

    Args:
        path: the file.
        text: its content.
        then: what to do once the fault is mended.

    Raises:
        EnvironmentFault: the file system refuses.
    """
    try:
        with replacing(path, _beside(path)) as file:
            file.write(text.encode())
    except OSError as error:
        what = f"{path.name} could not be written: {error.strerror}"
        where = temporary if os.path.isdir(temporary := _beside(path)) else path
        raise EnvironmentFault(what, str(where), what_to_do(error, then)) from error


def _beside(path: Path, whose: str = "") -> Path:
    return path.with_name(f".{path.name[:60]}{whose}.tmp")  # a name has at most 255 bytes


def in_place_of(path: Path) -> IO[bytes]:
    """A file that was not there: not what a link of its name leads to, and no pipe."""
    with suppress(FileExistsError):
        return path.open("xb")
    path.unlink()
    return path.open("xb")
