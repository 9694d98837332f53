"""What must be done image by image, in this process or in workers."""

from __future__ import annotations

import atexit
import ctypes
import errno
import glob
import multiprocessing
import multiprocessing.process
import multiprocessing.queues
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lrtrain.data.disk_cache import StoredImages
from lrtrain.data.source import Split
from lrtrain.data.transforms import Moment, Stages
from lrtrain.errors import LACKING, DataError, EnvironmentFault, LrtrainError, Problem, printable

PATIENCE_S = 120.0
"""How long a worker may take for what it is asked for, and do nothing."""
_DYING_S = 2.0  # for the end of a worker to be seen, once its connection is broken
_PR_SET_PDEATHSIG = 1
_SOCKETS_FOLDER = 71
"""The longest path below which torch can send tensors: a socket's may have 103 bytes, of which 32 are its name."""
_SHARED_MEMORY = "/dev/shm"
_ENLARGE = "enlarge /dev/shm (docker run --shm-size 8g)"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SAME_SIZE = "end the list with RandomResizedCrop, RandomCrop or CenterCrop, or with Resize to `size: [224, 224]`"


@dataclass(frozen=True)
class Order:
    """Which images to make, as indices of the split; without `moment`, the deterministic beginning only.

    `total` counts the images of the batch that these are part of; None where they are all.
    """

    index: NDArray[np.int64]
    moment: Moment | None
    total: int | None = None


@dataclass(frozen=True, eq=False)
class Workshop(Dataset[Any]):
    """Fulfils orders: images (B, C, H, W) ready for the batch stage.

    Errors for people are returned, not raised, since torch changes the text of one that a worker raises.
    """

    name: str
    split: Split
    stages: Stages
    ready: torch.Tensor | StoredImages | None = None
    """All images after the deterministic beginning, where they are kept."""

    def __getitem__(self, order: Order) -> torch.Tensor | LrtrainError:
        try:
            # Read in the order of the files, which disks like; what is drawn for an image does not depend on it.
            images = {i: self._image(i, order.moment) for i in np.sort(order.index).tolist()}
            return self._stacked([images[i] for i in order.index.tolist()], order.index)
        except LrtrainError as error:
            return error

    def _image(self, i: int, moment: Moment | None) -> torch.Tensor:
        image = self.split.read(i) if self.ready is None else self.ready[i].clone()  # a transform may work in place
        try:
            image = image if self.ready is not None else self.stages.prepare(image)
            return image if moment is None else self.stages.to_sample(image, i, moment)
        except Exception as error:
            raise DataError(
                f"the {self.name} transforms fail on {self.split.path(i)}, {'x'.join(map(str, image.shape))}: {error}",
                hint=getattr(error, "hint", None),
            ) from error

    def _stacked(self, images: list[torch.Tensor], index: NDArray[np.int64]) -> torch.Tensor:
        for i, image in zip(index, images, strict=True):
            if image.dtype != images[0].dtype:
                kinds = f"{images[0].dtype} of {self.split.path(int(index[0]))}, {image.dtype} of "
                raise DataError(
                    f"the {self.name} transforms leave images of different types: {kinds}{self.split.path(int(i))}",
                    hint="a transform must return the same type for every image",
                )
            self.refuse_other_size((index[0], images[0].shape), (i, image.shape))
        with torch.no_grad():  # a transform may be a network, with weights of its own
            return torch.stack(images, out=_shared(len(images), images[0]) if get_worker_info() else None)

    def refuse_other_size(self, *images: tuple[int, torch.Size]) -> None:
        """Refuse two images, each an index and the size that the transforms leave it, that make no batch, or no split.

        Raises:
            DataError: names both.
        """
        if len({size for _, size in images}) == 1:
            return
        sizes = "; ".join(f"{self.split.path(int(i))}: {'x'.join(map(str, size))}" for i, size in images)
        raise DataError(
            f"the {self.name} transforms leave images of different sizes, which make no batch: {sizes}", hint=SAME_SIZE
        )


def _shared(n: int, image: torch.Tensor) -> torch.Tensor:
    """Room for `n` such images in memory that the main process shares.

    torch would copy a batch there as it is sent, on a thread whose errors reach nobody.

    Raises:
        EnvironmentFault: there is too little of it.
    """
    try:
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(n * image.nbytes)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        for left in glob.glob(f"{_SHARED_MEMORY}/torch_{os.getpid()}_*"):  # empty; torch unlinks what succeeds only
            with suppress(OSError):
                os.unlink(left)
        said = str(error).partition("\n")[0]
        if any(os.strerror(number) in said for number in LACKING):
            raise
        what = f"shared memory has no room for a batch of {n * image.nbytes / 1e6:.3g} MB: {said.rpartition(': ')[2]}"
        fix = "allow longer files (ulimit -f)" if os.strerror(errno.EFBIG) in said else _ENLARGE
        raise EnvironmentFault(what, _SHARED_MEMORY, f"{fix}; or use fewer workers, or `workers: 0`") from error
    return torch.empty(0, dtype=image.dtype).set_(storage).view(n, *image.shape)


def fulfilled(
    workshop: Workshop, orders: Iterable[Order], workers: int, pin: bool = False, patience_s: float = PATIENCE_S
) -> Iterator[torch.Tensor]:
    """The images of each order, in order.

    Args:
        workshop: what makes them.
        orders: what is asked for; read ahead by the workers.
        workers: processes; with 0, each order is fulfilled here when it is asked for.
        pin: page-locked memory, for copies to a GPU that do not wait.
        patience_s: seconds that a worker may take for an order, and do nothing; ten times as many if it computes.

    Raises:
        DataError: an image cannot be read or transformed; it is named.
        EnvironmentFault: a worker died or hangs, or shared memory is lacking.
    """
    if workers == 0:
        for order in orders:
            yield _checked(workshop[order])
        return
    for images in by_workers(workshop, orders, workers, pin, patience_s):
        yield _checked(images)


def by_workers(
    shop: Dataset[Any], orders: Iterable[Any], workers: int, pin: bool = False, patience_s: float = PATIENCE_S
) -> Iterator[Any]:
    """What `shop` makes of each order, in order, made by processes; these end when the caller stops.

    Raises:
        EnvironmentFault: a worker died or hangs, or shared memory is lacking.
    """
    with needing_workers():
        made = _started(shop, orders, workers, pin)
    end = partial(_end_workers, made)
    atexit.register(end)
    try:
        with needing_workers():
            yield from _received(made, patience_s)
    finally:
        atexit.unregister(end)
        end()


class _Hung(RuntimeError):
    """The workers sent nothing for too long."""


class _Watch(threading.Thread):
    """Kills workers that hang, be it in the midst of handing over images, which torch's own time-out does not cover.

    It counts rounds, not time as that does: all processes may have been stopped for a while (Ctrl-Z, Slurm). Workers
    that compute meanwhile have ten times as long.
    """

    def __init__(self, made: Any, patience_s: float):
        super().__init__(daemon=True)
        self.made, self.patience_s = made, patience_s
        self.received, self.waiting, self.hung = 0, False, False
        self.done = threading.Event()

    def refusing(self, get: Callable[..., tuple[bool, Any]]) -> Callable[..., tuple[bool, Any]]:
        """What torch calls every few seconds while nothing comes; it would for ever where a worker cannot be killed.

        Such a worker waits in the kernel, for a file system that does not answer.
        """

        def got(*args: Any, **named: Any) -> tuple[bool, Any]:
            success, data = get(*args, **named)
            if self.hung and not success:
                raise _Hung
            return success, data

        return got

    def run(self) -> None:
        at, rounds, spent = 0, 0.0, 0.0
        every_s = self.patience_s / 10
        while not self.done.wait(every_s):
            before, spent = spent, sum(_cpu_s(worker.pid) for worker in self.made._workers)
            busy = spent - before > every_s / 20  # large images take their time
            rounds = rounds + (0.1 if busy else 1) if self.waiting and self.received == at else 0
            at = self.received
            if rounds > 10:  # the first may be short
                self.hung = True
                _kill(self.made)
                return


def _cpu_s(pid: int) -> float:
    """Seconds that a process has computed so far; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            user, system = file.read().rpartition(b")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _received(made: Any, patience_s: float) -> Iterator[Any]:
    """What the workers send.

    One that dies while its images are fetched from it shows as a broken connection only, and so do those that hang.
    """
    watch = _Watch(made, patience_s)
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
    short = f"it ran out of shared memory: {_ENLARGE}"
    often = "most often memory ran out"
    return Problem(
        f"a data worker died: {what}", hint=f"{short if 'shared memory' in what else often}; use fewer `workers:`, or 0"
    )


def _started(shop: Dataset[Any], orders: Iterable[Any], workers: int, pin: bool) -> Any:
    _refuse_without_locks()
    loader: DataLoader[Any] = DataLoader(
        shop,
        batch_size=None,
        sampler=orders,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        pin_memory=pin,
        generator=torch.Generator(),  # else it draws from torch's own
    )
    loader.check_worker_number_rationality()
    # What iter(loader) does, but in two steps, so that the workers of an iterator that fails as it begins are known.
    made: Any = _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)
    try:
        with warnings.catch_warnings(), _unheard():
            # Python 3.12 warns of fork beside threads; torch's workers are made for it, and use one thread.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            made.__init__(loader)
        torch._C._error_if_any_worker_fails()  # one that died before torch knew of it would be waited for
    except BaseException as error:
        _end_begun_workers(made)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # each worker takes several locks
            raise _no_locks(error) from error
        raise
    return made


@contextmanager
def _unheard() -> Iterator[None]:
    """Inside, signals wait, as in processes that begin there: these would die until `_start_worker` ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _refuse_without_locks() -> None:
    """Refuse a machine that has no locks between processes, which Linux keeps in shared memory."""
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as error:
        if isinstance(error, OSError) and error.errno in LACKING:
            raise
        raise _no_locks(error) from error


def _no_locks(error: Exception) -> EnvironmentFault:
    what = f"data workers need shared memory, and none can be had: {getattr(error, 'strerror', None) or error}"
    hint = "mount a tmpfs that can be written and has room, or use fewer `workers:`, or 0"
    return EnvironmentFault(what, _SHARED_MEMORY, hint)


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
        for worker in made._workers:
            if worker.is_alive():
                worker.kill()
                worker.join(_DYING_S)
            if worker.is_alive():  # in the kernel; multiprocessing would wait for it at exit
                multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]


def _as_it_is(made: Any) -> Any:
    return made


def _checked(made: torch.Tensor | LrtrainError) -> torch.Tensor:
    if isinstance(made, LrtrainError):
        raise made
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


def _start_worker(_: int) -> None:
    # A signal to the whole process group is for the main process, which saves and then ends its workers.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if sys.platform == "linux":
        # When the main process is killed, so is this one, with what it holds of its sockets, locks and shared memory;
        # elsewhere torch's own watch ends it within seconds.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if len(os.fsencode(tempfile.gettempdir())) > _SOCKETS_FOLDER:
        tempfile.tempdir = "/tmp"
    sys.excepthook = _unless_broken
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_unsent)  # type: ignore[attr-defined]
    torch.set_num_threads(1)
