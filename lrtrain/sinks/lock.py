"""One process in a run directory at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from filelock import FileLock, Timeout

from lrtrain.engine.events import Event, Stepped
from lrtrain.errors import EnvironmentFault, RunDirError
from lrtrain.sinks import Sink
from lrtrain.sinks.run_dir import RunDir, refuse_shared_checkpoints


@contextmanager
def locked(run_dir: RunDir) -> Iterator[Sink]:
    """Inside, the run directory is this process's. The lock is the kernel's, and goes with the process in any case.

    What is yielded refuses to go on where that is so no more.

    Where the file system has no such locks, the lock is a file that says who holds it, as filelock warns.

    Raises:
        RunDirError: another process trains in it.
        CheckpointError: its checkpoints are another run's.
        EnvironmentFault: the directory cannot be written to.
    """
    refuse_shared_checkpoints(run_dir)
    lock = FileLock(run_dir.lock)
    try:
        run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        hint = "wait for it to end, or name another folder with --out"
        with suppress(OSError):
            if os.path.getsize(lock.lock_file):  # so filelock does where no lock ends with its process
                hint += f"; if it has ended, on a machine that is gone, remove {lock.lock_file}"
        raise RunDirError(f"{str(run_dir)!r} is in use by {_holder(run_dir)}", hint=hint) from None
    except OSError as error:
        what = f"the run directory cannot be written to: {error.strerror}"
        raise EnvironmentFault(what, str(run_dir), "check its owner and permissions, and that there is room") from error
    with suppress(AttributeError):
        os.register_at_fork(after_in_child=lambda: _let_go(lock))
    known = _is_there(lock)  # not on file systems that number a file anew
    try:
        yield partial(_refuse_lost, lock, run_dir) if known else lambda event: None
    finally:
        with suppress(OSError):  # it goes with the process; a file system that has gone says what is wrong elsewhere
            lock.release()


def _refuse_lost(lock: FileLock, run_dir: RunDir, event: Event) -> None:
    """Before anything is written, refuse a lock whose file was removed, or is on a disk that has gone.

    Others may train there now.

    Raises:
        EnvironmentFault: it is so.
    """
    if isinstance(event, Stepped) or _is_there(lock):
        return
    raise EnvironmentFault(
        "the run's lock was removed or replaced while it trained: its disk may be another one, or another process "
        "train in it",
        str(lock.lock_file),
        f"see that its disk is there and nothing else trains in it; what is whole: lrtrain verify {run_dir.typed}",
    )


def _is_there(lock: FileLock) -> bool:
    """Whether the file of a lock that is held is the one of its name."""
    descriptor = _descriptor(lock)
    with suppress(OSError):
        return descriptor is not None and os.path.samestat(os.fstat(descriptor), os.stat(lock.lock_file))
    return False


def _holder(run_dir: RunDir) -> str:
    """Who status.json says it is, unless that was an earlier run: the holder may not have written it yet."""
    status = run_dir.read_status()
    pid, host = status.get("pid"), status.get("host")
    another = "another process, which begins or ends"
    if status.get("state") != "running" or not isinstance(pid, int) or pid < 1 or not isinstance(host, str):
        return another
    if host == socket.gethostname():
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return another
        except PermissionError:
            pass
    return f"process {pid} on {host:.80}"


def here() -> dict[str, str | int]:
    """Which process this is, for the one that finds the directory locked."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _let_go(lock: FileLock) -> None:
    # A data worker that outlives a killed run by seconds would keep the lock; closing its copy releases nothing.
    if (descriptor := _descriptor(lock)) is not None:
        with suppress(OSError):
            os.close(descriptor)


def _descriptor(lock: FileLock) -> int | None:
    descriptor = getattr(lock, "_context", None) and lock._context.lock_file_fd
    return descriptor if isinstance(descriptor, int) else None
