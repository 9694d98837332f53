"""One process in a run directory at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from lrtrain.errors import EnvironmentFault, RunDirError
from lrtrain.sinks.run_dir import RunDir


@contextmanager
def locked(run_dir: RunDir) -> Iterator[None]:
    """Inside, the run directory is this process's. The lock is the kernel's, and goes with the process in any case.

    Where the file system has no such locks, the lock is a file that says who holds it, as filelock warns.

    Raises:
        RunDirError: another process trains in it.
        EnvironmentFault: the directory cannot be written to.
    """
    lock = FileLock(run_dir.checkpoints / ".lock")
    try:
        run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunDirError(
            f"{str(run_dir)!r} is in use by {_holder(run_dir)}",
            hint="wait for it to end, or name another folder with --out",
        ) from None
    except OSError as error:
        what = f"the run directory cannot be written to: {error.strerror}"
        raise EnvironmentFault(what, str(run_dir), "check its owner and permissions, and that there is room") from error
    with suppress(AttributeError):
        os.register_at_fork(after_in_child=lambda: _let_go(lock))
    try:
        yield
    finally:
        lock.release()


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
    descriptor = getattr(lock, "_context", None) and lock._context.lock_file_fd
    if isinstance(descriptor, int):
        with suppress(OSError):
            os.close(descriptor)
