"""Files that may come from anywhere, read with bounds: no links or pipes, no longer than they may be, strict JSON."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import IO, Any

from lrtrain.errors import GONE, ConfigError, EnvironmentFault, quoted, what_to_do

_MOST_PARTS = 1_000_000  # objects and lists of a JSON text: each takes many times the two bytes that it has there
_MOST_HOLES = 2**29  # bytes: some file systems and copies make holes of zeros, but hardly of so many
_holes = 0  # bytes of holes that this process was let read so far, beyond as many as there are of data


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a person wrote, `~` expanded.

    Raises:
        ConfigError: it names no user's home, or is longer than paths can be.
        EnvironmentFault: its file system has gone away.
    """
    try:
        found = Path(path).expanduser()
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return found
    except (RuntimeError, ValueError) as error:
        hint = "write the path from / on, or ~/ for your own home"
        raise ConfigError(f"{quoted(os.fspath(path))} is no path: {error}", hint=hint) from None
    except OSError as error:
        if error.errno in GONE:
            what = f"{quoted(os.fspath(path))} cannot be reached: {error.strerror}"
            raise EnvironmentFault(what, hint=what_to_do(error, "try again")) from error
        what = f"{quoted(os.fspath(path))} cannot be the path of a file: {error.strerror}"
        raise ConfigError(what, hint="check it for what was pasted by mistake") from None
    return found


def opened(path: Path, *, links: bool = False) -> IO[bytes]:
    """Open a regular file for reading.

    Args:
        path: the file.
        links: whether it may be a symbolic link.

    Raises:
        OSError: it is something else, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except BlockingIOError:  # another process has a lease on it, as file servers do: to wait has it given back
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise
        descriptor = os.open(path, flags & ~os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and path.is_symlink():
            raise OSError(error.errno, f"it is a symbolic link to {os.readlink(path)!a:.200}", str(path)) from None
        raise
    file = open(descriptor, "rb")  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def read_bytes(path: Path, most: int, *, links: bool = False) -> bytes:
    """The content of a regular file of at most `most` bytes; `links` as in `opened`.

    Raises:
        OSError: it is something else, longer, or cannot be read.
    """
    with opened(path, links=links) as file:
        data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
    if data is None or len(data) > most:
        raise OSError(errno.EFBIG, f"it is longer than {most:,} bytes", str(path))
    return data


def refuse_holes(file: IO[bytes]) -> None:
    """Refuse a file that is mostly holes: it takes no room on disk, and reading what it says it has takes for ever.

    Call it before each time that a file is read, since what all of them may have together is bounded.

    Raises:
        ValueError: it is one; says of how many bytes.
    """
    global _holes
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    most = (size + _MOST_HOLES - _holes) // 2
    was, at, holes = os.lseek(descriptor, 0, os.SEEK_CUR), 0, 0
    try:
        while at < size and holes <= most:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
            holes += data - at
            at = os.lseek(descriptor, data, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no more data
            holes += size - at
        elif error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not tell
            raise
    finally:
        os.lseek(descriptor, was, os.SEEK_SET)
    if holes > most:
        raise ValueError(f"of its {size:,} bytes most were never written: it is a sparse file")
    _holes += max(0, 2 * holes - size)


def json_object(data: bytes) -> dict[str, Any]:
    """The object that is all of a JSON text: without NaN, infinities, or keys given twice.

    Raises:
        ValueError: it is something else; says what.
    """
    if data.count(b"{") + data.count(b"[") > _MOST_PARTS:
        raise ValueError(f"it has more than {_MOST_PARTS:,} objects and lists")
    try:
        found = json.loads(data, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    if not isinstance(found, dict):
        raise ValueError(f"it must be an object in braces, and is of type {type(found).__name__}")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _no_constant(f"{text:.40}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!a:.80} is given twice")
    return found
