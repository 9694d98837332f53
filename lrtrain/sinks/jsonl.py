"""metrics.jsonl, where every byte follows from config and data, and timing.jsonl, where nothing does."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import mmap
import os
import resource
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lrtrain.checkpoint.format import Checkpoint
from lrtrain.checkpoint.manifest import NO_DAMAGE, unreadable
from lrtrain.engine.events import Evaluated, Evaluating, Event, Logged, SaveDue, Stepped
from lrtrain.errors import CheckpointError, EnvironmentFault, what_to_do
from lrtrain.foreign import json_object, opened, refuse_holes
from lrtrain.writing import replacing

_ALONE = "leave a run's files alone while it trains; restore this one from a copy, then `--resume` goes on"
_ROW_BYTES = 2_000_000  # most of it the LRs of at most 10,000 groups
_PART_BYTES = 2**20
_ENDS_BYTES = 2**18  # that are looked at, of a long log's beginning and of its end


class Metrics:
    """Appends a line per logged step and evaluation, and knows what of it is safe on disk."""

    def __init__(self, path: Path, keep: int = 0):
        """Open the file, cut back to its first `keep` bytes: what came after the checkpoint is written again."""
        self._path = path
        try:
            self._file = _opened_to_append(path)
            self.cut(keep)
        except OSError as error:
            raise EnvironmentFault(f"cannot write: {error.strerror}", str(path)) from error

    def cut(self, length: int) -> None:
        """Cut the file back to its first `length` bytes, as training goes back."""
        self._file.truncate(length)
        with self._path.open("rb") as written:
            self._digest = hashlib.file_digest(written, "sha256")
        self._safe, self._since, self._doubtful = (length, self._digest.hexdigest()), bytearray(), False
        self._written = self._written_at()

    def _written_at(self) -> int:
        """When the file was written last, in ns; -1 where that cannot be told, and every time is another one."""
        try:
            return os.fstat(self._file.fileno()).st_mtime_ns
        except OSError:
            return -1

    def close(self) -> None:
        """Nothing more is written, and what there is was safe when it was saved."""
        with suppress(OSError):
            self._file.close()

    def _refuse_replaced(self) -> None:
        """An editor puts another file in a file's place, and what is written to the old one is lost."""
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise EnvironmentFault(
                f"{self._path.name} was replaced or removed while training wrote to it",
                str(self._path),
                _ALONE,
            )

    def refuse_changed(self) -> None:
        """Refuse a file that is another one now, or whose beginning is no longer what was safe on disk.

        A kernel loses nothing of that; a person, or an editor that writes into the file, may.

        Raises:
            EnvironmentFault: it was replaced, removed, cut or changed, or cannot be read.
        """
        self._refuse_replaced()
        try:
            with self._path.open("rb") as written:
                _refuse_other_bytes(written, *self._safe)
        except ValueError:
            what = f"{self._path.name} was cut or changed while training wrote to it"
            raise EnvironmentFault(what, str(self._path), _ALONE) from None
        except OSError as error:
            raise EnvironmentFault(f"cannot read: {error.strerror}", str(self._path)) from error

    def safe(self) -> dict[str, Any]:
        """What a checkpoint's manifest says of the log: how long it was at the last fsync, and its SHA-256."""
        length, digest = self._safe
        return {"log_bytes": {self._path.name: length}, "log_sha256": {self._path.name: digest}}

    def note(self, row: Mapping[str, Any]) -> None:
        """Append one more object."""
        if len(self._since) > _PART_BYTES:
            self._sync()
        self._doubtful |= self._written_at() != self._written
        try:
            line = append(self._file, self._path, row)
        except EnvironmentFault:
            self._doubtful = True  # a network's file system may tell here that it has lost an earlier row
            raise
        finally:
            self._written = self._written_at()
        self._digest.update(line)
        self._since += line

    def _sync(self) -> None:
        """Have all rows safe on disk.

        A kernel says once that it could not write what it had taken, and may drop it: then the rows are written anew.
        """
        end = self._safe[0] + len(self._since)
        try:
            changed = self._written_at() != self._written or self._file.seek(0, os.SEEK_END) != end
            if self._doubtful or changed:
                self.refuse_changed()
                failed, self._file = self._file, _opened_to_append(self._path)
                with suppress(OSError):
                    failed.close()
                self._file.truncate(self._safe[0])
                _write(self._file, self._since)
            self._doubtful = True
            os.fsync(self._file.fileno())
            self._refuse_replaced()
            self._written = self._written_at()
        except OSError as error:
            raise EnvironmentFault(f"cannot write: {error.strerror}", str(self._path)) from error
        self._safe, self._since, self._doubtful = (end, self._digest.hexdigest()), bytearray(), False

    def __call__(self, event: Event) -> None:
        row: dict[str, Any] | None = None
        match event:
            case Logged():
                row = {"event": "train", "step": event.step, "epoch": event.epoch, "lr": event.lr, "loss": event.loss}
            case Evaluated():
                m = event.metrics
                row = {
                    "event": "eval",
                    "step": event.step,
                    "epoch": event.epoch,
                    "split": event.split,
                    "loss": m.loss if math.isfinite(m.loss) else None,
                    "acc1": m.acc1,
                    "acc5": m.acc5,
                }
            case SaveDue():
                self._sync()
        if row is not None:
            self.note(row)


def refuse_other_log(path: Path, checkpoint: Checkpoint) -> None:
    """Refuse a metrics.jsonl that does not begin with what had been logged when a checkpoint was saved.

    Raises:
        CheckpointError: it is shorter, holds something else, or is no file.
        EnvironmentFault: it may or can not be read now.
    """
    keep, digest = (checkpoint.manifest[key][path.name] for key in ("log_bytes", "log_sha256"))
    whole = "restore the whole run directory from a copy"
    try:
        with opened(path) as file:
            if keep > (size := os.fstat(file.fileno()).st_size):
                what = f"{path.name} is shorter than the checkpoint says: {keep} bytes are wanted, and it has {size}"
                raise CheckpointError(what, str(path), whole)
            refuse_holes(file)
            _refuse_other_bytes(file, keep, digest)
            _refuse_other_rows(file, keep, checkpoint.step)
    except FileNotFoundError:
        if keep:
            what = f"{path.name} is not there, and {keep} bytes of it are wanted"
            raise CheckpointError(what, str(path), whole) from None
    except OSError as error:
        if error.errno in NO_DAMAGE:
            raise unreadable(error, path) from error
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}", str(path), whole) from None
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not this run's: {error}", str(path), whole) from None


def _refuse_other_bytes(file: IO[bytes], keep: int, digest: str) -> None:
    found, left = hashlib.sha256(), keep
    while left and (part := file.read(min(left, _PART_BYTES))):
        found.update(part)
        left -= len(part)
    if found.hexdigest() != digest:
        raise ValueError(f"it was changed: the SHA-256 of its first {keep:,} bytes is not the checkpoint's")
    file.seek(0)


def _refuse_other_rows(file: IO[bytes], keep: int, step: int) -> None:
    at_byte, latest = 0, 0
    while at_byte < keep:
        if _ENDS_BYTES < at_byte < keep - _ENDS_BYTES:  # a log of a million steps costs no more than one of ten
            file.seek(keep - _ENDS_BYTES)
            at_byte = keep - _ENDS_BYTES + len(file.readline(_ENDS_BYTES))
        line = file.readline(min(keep - at_byte, _ROW_BYTES))
        if not line.endswith(b"\n"):
            raise ValueError(f"no row of it ends at byte {at_byte + len(line)}, where the checkpoint's log does")
        row = json_object(line)
        at = row.get("step")
        if row.get("event") not in ("train", "eval", "rollback") or type(at) is not int:
            raise ValueError(f"what begins at byte {at_byte} is no row of it")
        if row["event"] != "rollback":  # these say where training went back to, each time
            if not latest <= at <= step:
                what = f"is of step {at}, after step {latest}, and the checkpoint of step {step}"
                raise ValueError(f"the row at byte {at_byte} {what}")
            latest = at
        at_byte += len(line)


def rows(path: Path, checkpoint: Checkpoint, event: str, step: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of an event, newest first, in what had been logged when a checkpoint was saved.

    Args:
        path: of the log.
        checkpoint: says how long it was.
        event: as the rows call it.
        step: whose rows are wanted; of every one when absent.

    Raises:
        CheckpointError: one is none.
        EnvironmentFault: the log cannot be read.
    """
    keep = checkpoint.manifest["log_bytes"][path.name]
    if not keep:
        return
    wanted = f'{{"event": "{event}", "step": '.encode() + (b"" if step is None else b"%d, " % step)
    try:
        with opened(path) as file, mmap.mmap(file.fileno(), keep, access=mmap.ACCESS_READ) as log:
            begin = keep
            while (begin := log.rfind(wanted, 0, begin)) >= 0:
                if (end := log.find(b"\n", begin, begin + _ROW_BYTES)) < 0:
                    raise ValueError(f"what begins at byte {begin} is no row of it")
                yield json_object(log[begin:end])
    except OSError as error:
        raise EnvironmentFault(f"cannot read: {error.strerror}", str(path)) from error
    except ValueError as error:
        what = f"{path.name} is not this run's: {error}"
        raise CheckpointError(what, str(path), "restore the whole run directory from a copy") from None


def _opened_to_append(path: Path) -> io.FileIO:
    """The file unbuffered, and the run's own: in a copy made of hard links it is the other run's too, until copied."""
    if path.exists() and path.stat().st_nlink > 1:
        with path.open("rb") as shared:
            try:
                refuse_holes(shared)  # which a copy would fill
            except ValueError as error:
                raise CheckpointError(f"{path.name} is not this run's: {error}", str(path), "remove it") from None
            with replacing(path, path.with_name(f".{path.name}.tmp")) as own:
                shutil.copyfileobj(shared, own)
                own.flush()
                os.fsync(own.fileno())  # what checkpoints say of the log holds after a power cut too
    file = open(path, "ab", buffering=0, opener=_no_link)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def _no_link(path: str, flags: int) -> int:
    """Open a file, not what a link leads to that another process has put in its place, and wait for no pipe."""
    flags |= os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_NONBLOCK, 0o666)
    except BlockingIOError:  # another process has a lease on it, as file servers do: to wait has it given back
        return os.open(path, flags, 0o666)


def append(file: io.FileIO, path: Path, row: Mapping[str, Any]) -> bytes:
    """Append a line to an unbuffered file, whole or not at all; the line.

    Raises:
        EnvironmentFault: the disk is full or refuses; the file is as it was.
    """
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    end = None
    try:
        end = file.seek(0, os.SEEK_END)
        _write(file, line)
    except OSError as error:
        if end is not None:
            with suppress(OSError):
                file.truncate(end)
        raise EnvironmentFault(
            f"{path.name} could not be written: {error.strerror}", str(path), what_to_do(error)
        ) from error
    return line


def _write(file: io.FileIO, data: bytes | bytearray) -> None:
    while data:
        data = data[file.write(data) :]


class Timing:
    """Appends wall-clock seconds, images/s and memory at each logged step and evaluation."""

    def __init__(self, path: Path):
        try:
            self._file = _opened_to_append(path)
        except OSError as error:
            raise EnvironmentFault(f"cannot write: {error.strerror}", str(path)) from error
        self._path = path
        self._start = self._mark = self._evaluating = time.perf_counter()
        self._images = 0

    def close(self) -> None:
        """Nothing more is written, and what there is was safe when it was saved."""
        with suppress(OSError):
            self._file.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._images += event.images
        elif isinstance(event, Evaluating) and not event.done:
            self._evaluating = time.perf_counter()
        elif isinstance(event, Logged | Evaluated):
            now = time.perf_counter()
            row: dict[str, Any] = {
                "event": "train" if isinstance(event, Logged) else "eval",
                "step": event.step,
                "seconds": round(now - self._start, 4),
                "memory_mb": _memory_mb(),
            }
            since = self._mark if isinstance(event, Logged) else self._evaluating
            images = self._images if isinstance(event, Logged) else event.metrics.images
            row["images_per_s"] = round(images / max(now - since, 1e-9), 1)
            append(self._file, self._path, row)
            if isinstance(event, Logged):
                self._mark, self._images = now, 0
            else:
                self._mark += now - since  # what is evaluated is not trained meanwhile


def _memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
