"""Prepared images in a file that runs and ranks share: a plain uint8 .npy, found by what is in it."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from weakref import finalize

import numpy as np
import PIL
import torch
from filelock import BaseFileLock, FileLock, Timeout
from numpy.lib import format as npy
from PIL import features
from tqdm import tqdm

from lrtrain.data.source import Split, Stamped
from lrtrain.data.transforms import Step
from lrtrain.errors import DataError, EnvironmentFault, quoted
from lrtrain.foreign import opened
from lrtrain.writing import sync_folder

_FORMAT = 1  # goes up when what lrtrain itself does to pixels changes

# The time of the last change of a complete file (2000-01-01), in ns: whatever writes to it later moves that.
_SEAL = 946_684_800 * 10**9

_ANEW = "go on with --resume: what is damaged is made anew"

Shape = tuple[int, ...]


class StoredImages:
    """The images of a cache file, (n, C, H, W), read from disk as they are asked for.

    Raises:
        OSError: the file cannot be opened, or is none, such as a pipe.
        ValueError: it is damaged, or not as it was written.
    """

    def __init__(self, path: Path):
        self.path = path
        # Read, not mapped: where a mapped file is cut meanwhile, the process ends at once.
        self._file = opened(path, links=True)
        finalize(self, self._file.close)
        self.shape, dtype = self._header()
        self._start, self._each = self._file.tell(), math.prod(self.shape[1:])
        found = os.fstat(self._file.fileno())
        if dtype != np.uint8 or found.st_size != self._start + self.shape[0] * self._each:
            raise ValueError(f"{path} is damaged")
        if found.st_mtime_ns != _SEAL:
            raise ValueError(f"{path} was written to after it was complete")

    def _header(self) -> tuple[Shape, np.dtype[Any]]:
        try:
            version = npy.read_magic(self._file)
            shape, columns, dtype = npy.read_array_header_1_0(self._file)
        except OSError:
            raise
        except Exception as error:  # a damaged header is parsed as Python: there is no telling
            raise ValueError(f"{self.path} is no .npy file: {error}") from error
        if version != (1, 0) or columns or len(shape) != 4:
            raise ValueError(f"{self.path} is damaged")
        return shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> torch.Tensor:
        image = torch.empty(self.shape[1:], dtype=torch.uint8)
        try:
            # Forks read from the same descriptor, and preadv has no place in the file that they would share.
            read = os.preadv(self._file.fileno(), [image.numpy().data], self._start + i * self._each)
        except OSError as error:
            raise DataError(
                f"cannot read {self.path}: {error.strerror}", hint="remove it, and go on with --resume: it is made anew"
            ) from error
        if read != self._each:
            raise DataError(f"the cache file {self.path} was cut while it was in use", hint=_ANEW)
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredImages, (self.path,)  # workers that do not fork open the file, instead of being sent it


def cache_folder() -> Path:
    """$LRTRAIN_CACHE, else lrtrain in $XDG_CACHE_HOME, else ~/.cache/lrtrain.

    Raises:
        EnvironmentFault: it is in the home of nobody.
    """
    own = os.environ.get("LRTRAIN_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        if own:
            return Path(own).expanduser().absolute()
        return (base if base.is_absolute() else Path.home() / ".cache") / "lrtrain"
    except RuntimeError as error:
        what = f"LRTRAIN_CACHE {quoted(own)} is no path" if own else "the cache's folder is not known"
        hint = "set LRTRAIN_CACHE to a folder that can be written, from / on"
        raise EnvironmentFault(f"{what}: {error}", hint=hint) from error


def file_for(name: str, split: Split, once: Sequence[Step], channels: int, shape: Shape) -> Path | None:
    """Where the prepared images of a split belong: another file for anything that may change a pixel.

    Args:
        name: train or val, for people who look into the folder.
        split: its images, by their stamps.
        once: the deterministic beginning of the transforms.
        channels: of the images as they are decoded.
        shape: (n, C, H, W) of the prepared images.

    Returns:
        The file, there or not; None where the split has no stamps, so that nothing tells whether its images changed.

    Raises:
        DataError: an image file is not there.
    """
    if not isinstance(split, Stamped):
        return None
    made_by = {
        "format": _FORMAT,
        "once": [step.entry for step in once],
        "channels": channels,
        "shape": shape,
        "versions": _versions(),
    }
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode())
    words = f"looking for changes of {name}"
    for i in tqdm(range(len(split)), words, unit=" images", disable=None, delay=2, leave=False):
        stamp = split.stamp(i)
        if stamp is None:
            return None
        digest.update(stamp.encode("utf-8", "surrogateescape") + b"\0")
    return cache_folder() / f"{name}-{digest.hexdigest()[:32]}.npy"


def _versions() -> list[str]:
    """Of what decodes and resizes; the kernels that resize differ by instruction set, and files may be shared."""
    import torchvision

    jpeg = [str(features.version(library)) for library in ("jpg", "libjpeg_turbo")]
    kernels = torch.backends.cpu.get_cpu_capability()
    return [PIL.__version__, *jpeg, torch.__version__, torchvision.__version__, kernels]


def stored(path: Path, shape: Shape, parts: Callable[[], Iterable[torch.Tensor]]) -> StoredImages:
    """The images in `path`, prepared and written first where it does not hold them.

    One process prepares them while others wait for it; where it dies, the next takes over. The file gets its name
    when it is complete, so whatever has the name can be trusted.

    Args:
        path: from `file_for`.
        shape: (n, C, H, W).
        parts: prepares the images, in order.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    found = _opened(path, shape)
    if found is not None:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    with locked(path):
        found = _opened(path, shape)
        if found is None:
            _build(path, shape, parts())
            found = _opened(path, shape)
            if found is None:
                with suppress(OSError):
                    path.unlink()
                raise OSError(errno.ENOTSUP, "its file system keeps no times of files", str(path.parent))
    return found


def _opened(path: Path, shape: Shape) -> StoredImages | None:
    try:
        images = StoredImages(path)
    except (FileNotFoundError, ValueError):
        return None
    return images if images.shape == shape else None


def _build(path: Path, shape: Shape, parts: Iterable[torch.Tensor]) -> None:
    with completed(path) as file:
        # Written, not mapped: on a full disk a write is an error, and a mapped page the end of the process.
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(part.numpy().data)
        file.flush()
        os.utime(file.name, ns=(_SEAL, _SEAL))


@contextmanager
def completed(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name when it is complete and on disk; its lock is held.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    partial = path.with_suffix(".partial")
    try:
        with suppress(FileNotFoundError):
            partial.unlink()  # of one that was killed, or a link that another put there
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def _remove_abandoned(folder: Path) -> None:
    """Remove what builders left that were killed: nobody holds the lock."""
    for left in folder.glob(f"*-{'[0-9a-f]' * 32}.partial"):  # the folder may be another program's too
        with suppress(OSError, Timeout):
            _refuse_content(left.with_suffix(".lock"))
            with _kernels_lock(left.with_suffix(".lock"), timeout=0):
                left.unlink(missing_ok=True)


def _refuse_content(name: Path) -> None:
    """Refuse a lock that is a link, or not empty: versions of filelock empty what they lock, and it may be another's.

    Raises:
        OSError: it is one, or not there.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    size = os.fstat(descriptor).st_size
    os.close(descriptor)
    if size:
        raise OSError(errno.EEXIST, f"it is no lock, but a file of {size:,} bytes: remove it", str(name))


def _kernels_lock(name: Path, timeout: float = -1) -> BaseFileLock:
    """A lock that goes with the process: one that is a mere file stays, and is held by nobody where the file is there.

    filelock before 3.24 made no such file instead, and has no such argument.
    """
    try:
        return FileLock(name, timeout, fallback_to_soft=False)
    except TypeError:
        return FileLock(name, timeout)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the kernel's lock for `path`, which ends with the process.

    Raises:
        OSError: the folder cannot be written, or its file system has no locks.
    """
    name = path.with_suffix(".lock")
    # filelock would wait for a place where no file can be made, and a link to elsewhere is not ours to follow.
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        made = os.open(name, flags | os.O_EXCL, 0o666)
    except FileExistsError:
        _refuse_content(name)
        os.close(os.open(name, flags, 0o666))
    else:
        # It holds nothing: whoever may write in the folder may wait for it, whatever the umask.
        with suppress(OSError):
            os.fchmod(made, stat.S_IMODE(name.parent.stat().st_mode) & 0o666)
        os.close(made)
    lock = _kernels_lock(name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with suppress(OSError, ValueError):
            tqdm.write(f"waiting for another process that prepares {path}", file=sys.stderr)
        lock.acquire(poll_interval=0.2)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSYS:
            raise
        raise OSError(errno.ENOTSUP, "its file system has no file locks") from error
    try:
        yield
    finally:
        lock.release()
