"""Write, verify and read checkpoint directories.

    checkpoints/
      step-00000040/  manifest.json  model.safetensors  optimizer.safetensors  ...
      last.json  best.json                         # {"checkpoint": "step-00000040"}

A checkpoint is written beside its place and renamed into it, the manifest last, everything fsynced: a directory that
has the name `step-*` is whole, or was damaged later, which `verify` finds by size and SHA-256. One that is written
again at the same step changes places with the old one in one step of the file system, so that there is never none.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

import safetensors
import safetensors.torch
import torch

from lrtrain.checkpoint.manifest import (
    COPY,
    NO_DAMAGE,
    VERSION,
    Manifest,
    OtherFormat,
    digest,
    read_manifest,
    refuse_unreadable,
    unreadable,
)
from lrtrain.checkpoint.move import MANIFEST, move
from lrtrain.errors import CheckpointError, EnvironmentFault, about, what_to_do
from lrtrain.foreign import opened, refuse_holes
from lrtrain.tensor_header import Described, header_of, read_header
from lrtrain.writing import in_place_of, sync_folder

_LARGE = 2**24  # bytes of a file
_BUFFER = 2**20  # bytes, so that a hundred small tensors are one write
_LOOKS = 20  # at a folder whose checkpoints another process replaces
STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,14})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: `manifest` is its JSON, without the file table."""

    path: Path
    step: int
    manifest: Manifest
    files: dict[str, dict[str, Any]]

    @property
    def digest(self) -> str:
        """The manifest's SHA-256, which holds those of the files."""
        return digest({**self.manifest, "step": self.step, "files": self.files})

    def described(self, part: str) -> dict[str, Described]:
        """Type and shape of one part's tensors, from the header alone, so that what does not fit is never allocated.

        Raises:
            CheckpointError: the part is missing, or no safetensors.
        """
        with self._opened(f"{part}.safetensors") as file:
            return read_header(file, f"{part}.safetensors")

    def tensors(self, part: str) -> dict[str, torch.Tensor]:
        """Read one part, such as `model`, after checking its bytes against the manifest.

        Raises:
            CheckpointError: the part is missing, or not what was written.
        """
        name = f"{part}.safetensors"
        with self._opened(name) as file:
            self._check(file, name)
            file.seek(0)
            data = file.read()
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{name} is not safetensors: {error}", str(self.path)) from None

    def verify(self, name: str) -> None:
        """Hold one file against its size and SHA-256, and its header against its size, piece by piece.

        Raises:
            CheckpointError: it is missing, or not what was written.
        """
        with self._opened(name) as file:
            self._check(file, name)

    def _check(self, file: IO[bytes], name: str) -> None:
        size, entry = os.fstat(file.fileno()).st_size, self.files[name]
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} has {size} bytes, the manifest says {entry['bytes']}", hint=COPY)
        if size > _LARGE:  # it takes long to hash, and its header tells at once whether it can be true
            read_header(file, name)
            file.seek(0)
        try:
            refuse_holes(file)
        except ValueError as error:
            raise CheckpointError(f"{name} is damaged: {error}", hint=COPY) from None
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:  # type: ignore[arg-type]
            raise CheckpointError(f"{name} is damaged: its SHA-256 is not the manifest's", hint=COPY)
        file.seek(0)
        read_header(file, name)

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        if name not in self.files:
            raise CheckpointError(f"the checkpoint has no {name}", str(self.path), "is it of this config?")
        with about(str(self.path / name)):
            try:
                with opened(self.path / name) as file:
                    yield file
            except OSError as error:
                if error.errno in NO_DAMAGE:
                    raise unreadable(error, self.path / name) from error
                raise CheckpointError(f"{name} cannot be read: {error.strerror}", hint=COPY) from None


def write(root: Path, step: int, parts: Mapping[str, Mapping[str, torch.Tensor]], manifest: Mapping[str, Any]) -> Path:
    """Commit a checkpoint.

    Args:
        root: the run's `checkpoints` folder.
        step: optimizer steps taken.
        parts: tensors by part, then by name.
        manifest: everything else, JSON.

    Returns:
        The directory, `root/step-<step>`. One that was there before is replaced.

    Raises:
        EnvironmentFault: the disk is full or refuses; what was there before is untouched.
        CheckpointError: it could not be read again, or a tensor is of a type that no checkpoint can hold.
    """
    final = root / f"step-{step:08d}"
    temporary = root / f".tmp-{step:08d}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        root.mkdir(exist_ok=True)  # not its parents: a run that was taken away is not to be made anew
        temporary.mkdir()
        files = {}
        for part, tensors in parts.items():
            files[f"{part}.safetensors"] = _write_tensors(temporary / f"{part}.safetensors", tensors)
        content = {"version": VERSION, "step": step, **manifest, "files": files}
        text = json.dumps({**content, "sha256": digest(content)}, indent=1, allow_nan=False).encode()
        refuse_unreadable(content, text, final)
        write_synced(temporary / MANIFEST, text)
        sync_folder(temporary)
        _all_there(temporary, files)
        _put(temporary, final)
        sync_folder(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise EnvironmentFault(
            f"the checkpoint of step {step} could not be written: {error.strerror}",
            str(final),
            what_to_do(error),
        ) from error
    except CheckpointError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(temporary, ignore_errors=True)  # what was replaced, if anything
    return final


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write a part, wait until the disk has it, and say how many bytes it is and their SHA-256.

    Not with the safetensors package: it makes the file in memory, twice, before a byte is written, which takes longer
    than to write and hash it; and what the disk refuses is no OSError there.
    """
    header, order = header_of(tensors)
    pieces: list[bytes | memoryview] = [header, *(_bytes_of(tensors[name]) for name in order)]
    sha256 = _hashed_beside(pieces)
    with path.open("wb", buffering=_BUFFER) as file:
        file.writelines(pieces)
        _to_disk(file)
    return {"bytes": sum(map(len, pieces)), "sha256": sha256()}


def _hashed_beside(pieces: Sequence[bytes | memoryview]) -> Callable[[], str]:
    """Begin to hash on another core, for which Python's lock is let go; what is returned waits for the SHA-256."""
    sha = hashlib.sha256()

    def work() -> None:
        for data in pieces:
            sha.update(data)

    def wait() -> str:
        thread.join()
        return sha.hexdigest()

    thread = Thread(target=work, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # as many threads as the system allows
        work()
        return sha.hexdigest
    return wait


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's numbers as they lie in memory, little-endian as safetensors wants them."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _put(temporary: Path, final: Path) -> None:
    """Rename into place; what is there already gets the temporary name."""
    if not final.exists():
        temporary.rename(final)
    elif not _exchanged(temporary, final):
        # Where the file system cannot exchange, `put_back` mends it if this is interrupted in between.
        aside = final.with_name(f".old-{final.name}")
        move(final, aside)
        temporary.rename(final)
        aside.rename(temporary)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two names in one step, which Linux can and Python has no function for; False where it cannot be."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _all_there(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Look again before the name, a pointer and the older checkpoints depend on it."""
    for name, entry in files.items():
        if (size := (folder / name).stat().st_size) != entry["bytes"]:
            raise OSError(errno.EIO, f"{name} has {size} bytes instead of {entry['bytes']}")


def there_are(root: Path) -> bool:
    """Whether there is any checkpoint, whole or not.

    Raises:
        EnvironmentFault: the folder cannot be read.
    """
    return bool(steps(root))


Also = Callable[[Checkpoint], object]


def newest(root: Path, before: int | None = None, also: Also = lambda _: None) -> tuple[Checkpoint, dict[str, str]]:
    """The newest checkpoint that is whole, of a step less than `before`; what is wrong with each newer one, by name.

    Args:
        root: the run's `checkpoints` folder.
        before: a step.
        also: raises CheckpointError for one that is whole and cannot be used all the same.

    Raises:
        CheckpointError: there is none.
    """
    damaged: dict[str, str] = {}
    for _ in range(_LOOKS):
        paths = steps(root, before=before)
        for path in reversed(paths):
            try:
                found = verify(path)
                also(found)
            except OtherFormat:
                raise  # an older lrtrain must not undo what a newer one did
            except CheckpointError as error:
                if path.exists():  # else a run that goes on meanwhile has deleted it
                    damaged[path.name] = error.problems[0].what
            else:
                return found, damaged
        if all(path.exists() for path in paths):
            break
    if damaged:
        words = "; ".join(f"{name}: {why}" for name, why in damaged.items())
        what = f"every checkpoint is damaged: {words}"
        raise CheckpointError(what, str(root), "restore one from a copy, or start a new run without --resume")
    raise CheckpointError("there is no checkpoint to go on from", str(root), "leave out --resume to start a new run")


def readable(root: Path) -> Iterator[Checkpoint]:
    """Every checkpoint whose manifest can be read, oldest first."""
    for path in steps(root):
        with suppress(CheckpointError):
            yield open_checkpoint(path)


def verify_all(root: Path, also: Also = lambda _: None) -> dict[str, tuple[int, str | None]]:
    """Of every checkpoint, oldest first: bytes on disk, and what is wrong with it if anything; `also` as in `newest`.

    What a run that goes on meanwhile deletes is left out.
    """
    found: dict[str, tuple[int, str | None]] = {}
    for _ in range(_LOOKS):
        for path in (paths := steps(root)):
            wrong = None
            try:
                also(verify(path))
            except CheckpointError as error:
                wrong = error.problems[0].what
            if path.exists():
                size = sum(p.stat().st_size for p in path.glob("*") if p.is_file())
                found[path.name] = (size, wrong)
        if found or not paths:
            break
    return found


def verify(path: Path) -> Checkpoint:
    """Open a checkpoint and hold every file against its size and SHA-256."""
    checkpoint = open_checkpoint(path)
    for name in checkpoint.files:
        checkpoint.verify(name)
    return checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest; its tensors are read and checked when asked for.

    Raises:
        CheckpointError: not a checkpoint, or of a newer format.
    """
    manifest = read_manifest(path)
    return Checkpoint(path, manifest.pop("step"), manifest, manifest.pop("files"))


def steps(root: Path, after: int = -1, before: int | None = None) -> list[Path]:
    """The checkpoint directories, oldest first, by number."""
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(error, root) from error
    found = {int(match[1]): root / name for name in names if (match := STEP.fullmatch(name))}
    return [found[step] for step in sorted(found) if after < step and (before is None or step < before)]


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, whatever had its name, and wait until the disk has it."""
    with in_place_of(path) as file:
        file.write(data)
        _to_disk(file)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
