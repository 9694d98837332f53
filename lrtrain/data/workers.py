"""Processes that make images: how they begin, how they are watched, and how they end."""

from __future__ import annotations

import atexit
import ctypes
import errno
import mmap
import multiprocessing
import multiprocessing.process
import multiprocessing.queues
import os
import signal
import struct
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing.context import BaseContext
from traceback import walk_tb
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lrtrain.config.messages import shortened
from lrtrain.errors import LACKING, AtOnce, ConfigError, EnvironmentFault, Problem, printable

PATIENCE_S = 120.0
"""How long workers may make no image and do nothing."""
_EVERY_S = 1.0
"""How often it is asked, while no images come, whether to wait on."""
_DYING_S = 2.0  # for the end of a worker to be seen, once its connection is broken
_PR_SET_PDEATHSIG = 1
_SOCKETS_FOLDER = 71
"""The longest path below which torch can send tensors: a socket's may have 103 bytes, of which 32 are its name."""
SHARED_MEMORY = "/dev/shm"
ENLARGE = "enlarge /dev/shm (docker run --shm-size 8g)"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_made: mmap.mmap | None = None
_number = 0
"""In a worker: how many images each has made, as eight bytes that the main process sees, and which it is of them."""


def never() -> bool:
    """False."""
    return False


def one_made() -> None:
    """Count an image that this worker is done with, or begins: while it does so, it does not hang."""
    if _made is not None:
        (before,) = struct.unpack_from("Q", _made, 8 * _number)
        struct.pack_into("Q", _made, 8 * _number, before + 1)


def by_workers(
    shop: Dataset[Any],
    orders: Iterable[Any],
    workers: int,
    pin: bool = False,
    patience_s: float = PATIENCE_S,
    asked: Callable[[], object] = never,
) -> Iterator[Any]:
    """What `shop` makes of each order, in order, made by processes; these end when the caller stops, or is `asked` to.

    Raises:
        ConfigError: workers are not forked, and cannot be sent what they need.
        EnvironmentFault: a worker died or hangs, or shared memory is lacking.
    """
    with needing_workers():
        made = _started(shop, orders, workers, pin)
    end = partial(_end_workers, made)
    atexit.register(end)
    try:
        with needing_workers():
            yield from _received(made, patience_s, asked)
    finally:
        # A second signal here ends the wait, and the process ends in any case: Python may be deleting this generator,
        # where it prints what is raised and goes on.
        with suppress(AtOnce):
            end()
            atexit.unregister(end)


class _Hung(RuntimeError):
    """The workers sent nothing for too long."""


class _Asked(Exception):
    """There is something else to do than to wait for images."""


class _Watch(threading.Thread):
    """Kills workers that hang, be it in the midst of handing over images, which torch's own time-out does not cover.

    It counts rounds, not time as that does: all processes may have been stopped for a while (Ctrl-Z, Slurm). Workers
    that make image after image are only slow, and those that compute meanwhile have ten times as long.
    """

    def __init__(self, made: Any, patience_s: float, asked: Callable[[], object]):
        super().__init__(daemon=True)
        self.made, self.patience_s, self.asked = made, patience_s, asked
        self.received, self.waiting, self.hung = 0, False, False
        self.done = threading.Event()

    def refusing(self, get: Callable[..., tuple[bool, Any]]) -> Callable[..., tuple[bool, Any]]:
        """What torch calls again and again while nothing comes; it would for ever where a worker cannot be killed.

        Such a worker waits in the kernel, for a file system that does not answer.
        """

        def got() -> tuple[bool, Any]:
            success, data = get(_EVERY_S)
            if self.hung and not success:
                raise _Hung
            if not success and self.asked():
                raise _Asked
            return success, data

        return got

    def run(self) -> None:
        at, rounds, spent = (0, 0), 0.0, 0.0
        every_s = self.patience_s / 10
        while not self.done.wait(every_s):
            before, spent = spent, sum(_cpu_s(worker.pid) for worker in self.made._workers)
            busy = spent - before > every_s / 20  # large images take their time
            now = self.received, self._images()
            rounds = rounds + (0.1 if busy else 1) if self.waiting and now == at else 0
            at = now
            if rounds > 10:  # the first may be short
                self.hung = True
                _kill(self.made)
                return

    def _images(self) -> int:
        """How many images the workers have made; 0 where they do not share memory with this process."""
        shared = self.made.shared_count
        return 0 if shared is None else sum(struct.unpack(f"{len(shared) // 8}Q", shared[:]))


def _cpu_s(pid: int) -> float:
    """Seconds that a process has computed so far; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            user, system = file.read().rpartition(b")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _received(made: Any, patience_s: float, asked: Callable[[], object]) -> Iterator[Any]:
    """What the workers send.

    One that dies while its images are fetched from it shows as a broken connection only, and so do those that hang.
    """
    watch = _Watch(made, patience_s, asked)
    made._try_get_data = watch.refusing(made._try_get_data)
    watch.start()
    try:
        while True:
            watch.waiting = True
            try:
                images = next(made)
            except StopIteration:
                return
            watch.waiting, watch.received = False, watch.received + 1
            yield images
    except _Asked:
        return
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        if watch.hung:
            raise _Hung(f"no images came for {patience_s:g} s or more") from error
        if isinstance(error, RuntimeError):  # torch has found it out
            raise
        for worker in made._workers:
            worker.join(_DYING_S / len(made._workers))
        dead = [str(worker.pid) for worker in made._workers if not worker.is_alive()]
        if not dead:
            raise
        raise RuntimeError(f"DataLoader worker (pid {', '.join(dead)}) exited unexpectedly") from error
    finally:
        watch.done.set()
        del made._try_get_data  # it holds what it is part of


@contextmanager
def needing_workers() -> Iterator[None]:
    """Inside, what torch raises when a worker died or hangs becomes an error for people.

    torch raises the first from a signal handler, so in the midst of anything that the process is doing.

    Raises:
        EnvironmentFault: a worker died or hangs.
    """
    try:
        yield
    except RuntimeError as error:
        fault = worker_fault(error)
        if fault is None:
            raise
        raise EnvironmentFault([fault]) from error


def worker_fault(error: BaseException) -> Problem | None:
    """What torch means where it speaks of its data workers."""
    what = str(error).partition("\n")[0]
    if isinstance(error, _Hung):
        return Problem(
            f"the data workers hang: {what}",
            hint="a disk or network that does not answer, or a transform that never ends; `workers: 0` shows where",
        )
    if "DataLoader worker" not in what:
        return None
    short = f"it ran out of shared memory: {ENLARGE}"
    often = "most often memory ran out"
    return Problem(
        f"a data worker died: {what}", hint=f"{short if 'shared memory' in what else often}; use fewer `workers:`, or 0"
    )


def _started(shop: Dataset[Any], orders: Iterable[Any], workers: int, pin: bool) -> Any:
    started_by = _context()
    method = started_by.get_start_method()
    forked = method == "fork"
    begun_safely = nullcontext if forked else _no_working_folder
    # What keeps account of locks, where workers are not forked, begins with the first.
    with _unheard(), begun_safely():
        _refuse_without_locks(started_by)
    shared = mmap.mmap(-1, 8 * workers) if forked else None
    loader: DataLoader[Any] = DataLoader(
        shop,
        batch_size=None,
        sampler=orders,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_start_worker, shared, None if method == "forkserver" else os.getpid()),
        multiprocessing_context=started_by,
        pin_memory=pin,
        generator=torch.Generator(),  # else it draws from torch's own
    )
    loader.check_worker_number_rationality()
    # What iter(loader) does, but in two steps, so that the workers of an iterator that fails as it begins are known.
    made: Any = _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)
    made.shared_count = shared
    try:
        with warnings.catch_warnings(), _unheard(), begun_safely():
            # Python 3.12 warns of fork beside threads; torch's workers are made for it, and use one thread.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            made.__init__(loader)
        torch._C._error_if_any_worker_fails()  # one that died before torch knew of it would be waited for
    except BaseException as error:
        _end_begun_workers(made)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # each worker takes several locks
            raise _no_locks(error) from error
        if isinstance(error, ConnectionError | EOFError):  # of one that is not forked, and gets all through a pipe
            raise RuntimeError(f"DataLoader worker exited as it began: {error}") from error
        if not forked and isinstance(error, Exception) and _in_pickling(error):
            what = f"data workers cannot be sent what they need: {shortened(str(error))}"
            hint = "keep lambdas, locks and open files out of what makes images, or `workers: 0`"
            raise ConfigError(f"{what}; they begin by {method}", hint=hint) from error
        raise
    return made


def _context() -> BaseContext:
    """How processes begin, by what the user's code has set; else forked where that is usual, as PyTorch's docs advise.

    Python 3.14 begins others on Linux, which need all that they are given pickled: datasets hold lambdas and files.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    return multiprocessing.get_context(chosen or ("fork" if sys.platform == "linux" else None))


def _in_pickling(error: Exception) -> bool:
    return any(
        frame.f_globals.get("__name__") == "multiprocessing.reduction" for frame, _ in walk_tb(error.__traceback__)
    )


@contextmanager
def _no_working_folder() -> Iterator[None]:
    """Inside, a Python that begins looks for modules where this one does, and not in the working folder before that.

    Workers that are not forked begin as `python -c`, which does: a run from elsewhere may hold a multiprocessing.py.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ.pop("PYTHONSAFEPATH")
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _unheard() -> Iterator[None]:
    """Inside, signals wait, as in processes that begin there: these would die until `_start_worker` ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _refuse_without_locks(started_by: BaseContext) -> None:
    """Refuse a machine that has no locks between processes, which Linux keeps in shared memory."""
    try:
        started_by.Lock()
    except (OSError, ImportError) as error:
        if isinstance(error, OSError) and error.errno in LACKING:
            raise
        raise _no_locks(error) from error


def _no_locks(error: Exception) -> EnvironmentFault:
    what = f"data workers need shared memory, and none can be had: {getattr(error, 'strerror', None) or error}"
    hint = "mount a tmpfs that can be written and has room, or use fewer `workers:`, or 0"
    return EnvironmentFault(what, SHARED_MEMORY, hint)


def _end_begun_workers(made: Any) -> None:
    """End what an iterator had begun that is not complete, where torch's own end of it would fail."""
    made._shutdown = True
    if "_pin_memory_thread_done_event" in vars(made):
        made._pin_memory_thread_done_event.set()
    _kill(made)


def _kill(made: Any) -> None:
    """Kill an iterator's workers, however far it came, without that torch speaks of their death."""
    if vars(made).get("_worker_pids_set"):
        made._worker_pids_set = False
        torch._C._remove_worker_pids(id(made))
    for worker in vars(made).get("_workers", ()):
        worker.kill()


def _end_workers(made: Any) -> None:
    # Left to the garbage collector, workers would outlive an error that is still being reported; and at exit
    # multiprocessing waits for those that ignore SIGTERM.
    late = threading.Timer(_DYING_S, _kill, [made])  # torch waits ten seconds for each that is busy, or hangs
    late.daemon = True
    with suppress(RuntimeError):  # no further thread is allowed
        late.start()
    try:
        made._shutdown_workers()
    finally:
        late.cancel()
        _kill(made)
        for worker in made._workers:
            worker.join(_DYING_S)
            if worker.is_alive():  # in the kernel; multiprocessing would wait for it at exit
                multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]


def _as_it_is(made: Any) -> Any:
    return made


def _unless_broken(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker's thread that hands over images tells of a connection that the main process, which ends, has broken."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _unsent(error: Exception, _: Any) -> NoReturn:
    """A worker whose thread cannot hand over images ends at once, and says why: else they would be waited for."""
    said = printable(f"a data worker cannot hand over its images: {type(error).__name__}: {error}")
    with suppress(OSError):
        os.write(2, f"{said}\n".encode(errors="backslashreplace"))
    os._exit(1)


def _start_worker(shared: mmap.mmap | None, parent: int | None, number: int) -> None:
    global _made, _number
    _made, _number = shared, number
    # A signal to the whole process group is for the main process, which saves and then ends its workers.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if sys.platform == "linux":
        # When the main process is killed, so is this one, with what it holds of its sockets, locks and shared memory;
        # elsewhere torch's own watch ends it within seconds.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:  # it was killed before that, as this one began
            os._exit(1)
    if len(os.fsencode(tempfile.gettempdir())) > _SOCKETS_FOLDER:
        tempfile.tempdir = "/tmp"
    sys.excepthook = _unless_broken
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_unsent)  # type: ignore[attr-defined]
    torch.set_num_threads(1)
