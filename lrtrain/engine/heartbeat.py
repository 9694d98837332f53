"""Whether the other processes live, and what ended the first that does not.

torch says that a peer is gone only to a process that waits for it, and then neither which nor why; of one that hangs
it says nothing until a time-out, which a slow one that lives would run into too. So every process has a thread that
beats in the store of torchrun, over a connection of its own, and watches the next process's beat, the last one's next
being the first: with any number of processes, each costs the store the same. The thread needs no more than Python's
lock, so a process that sleeps, loads or evaluates beats on; one that does not is stopped, dead, or cut off. If the
store's machine is, a beat never returns, for it heeds no time-out; so another thread counts those without an answer.

What ends a run is written into the store once, by the first who knows it: a process that ends with an error, else one
that watches it. All others read it there and end with exit code 8; one of them shows it. The main thread may be inside
gloo, which cannot be called off (its `abort` does nothing as of torch 2.14), so it gets a moment to find out by itself,
or to finish a checkpoint; then the thread ends the process.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lrtrain.errors import AtOnce, DistributedError, Problem
from lrtrain.world import World

if TYPE_CHECKING:  # not imported: the command line asks this module who tells an error, before it imports torch
    from torch.distributed import Store  # type: ignore[attr-defined]

BEAT_S = 2.0
"""Seconds between beats; $LRTRAIN_BEAT_S in tests."""
SILENT_BEATS = 8
"""So many missed by a process that nothing else speaks against, and it is lost: 16 s."""
ENDED_BEATS = 3
"""So many missed where a connection broke, and it is the one that ended."""
GRACE_S = 8.0
"""What the main thread gets to end by itself; with the beats before, less than 30 s."""
ORPHANED_BEATS = 300
"""So many, and processes that torchrun has left behind end without having saved: 10 min, for the slowest step."""

FAULT, TOLD, ASKED, ENDED = "fault", "told", "asked", "ended"
AGAIN = "`torchrun ... -m lrtrain fit --resume` goes on from the last checkpoint"
GONE = f"it left by itself or was killed, most often as memory ran out: see torchrun's report; {AGAIN}"
AT_ONCE = "it was stopped at once, most often by a second signal"
HANGS = f"it hangs or was stopped, or its machine is gone or cut off; {AGAIN}"


def seconds(name: str, usual: float) -> float:
    """A time that tests shorten: $LRTRAIN_<name>, heeded with LRTRAIN_TESTING=1 alone."""
    return float(os.environ.get(f"LRTRAIN_{name}", usual)) if os.environ.get("LRTRAIN_TESTING") == "1" else usual


@dataclass(frozen=True)
class Fault:
    """What ended a run.

    Attributes:
        rank: the process that it ended.
        problems: its error, or that it is silent.
        exit_code: its own; None where it ended, or hangs, without a word.
        told: it was shown already.
    """

    rank: int
    problems: tuple[Problem, ...]
    exit_code: int | None = None
    told: bool = False

    def to_json(self) -> str:
        """For the store."""
        return json.dumps([self.rank, [astuple(problem) for problem in self.problems], self.exit_code, self.told])

    @classmethod
    def from_json(cls, text: bytes) -> Fault:
        """From the store."""
        rank, problems, exit_code, told = json.loads(text)
        return cls(rank, tuple(Problem(*problem) for problem in problems), exit_code, told)

    def error(self, size: int) -> DistributedError:
        """What the other processes end with."""
        first, *rest = self.problems
        ended = "" if self.exit_code is None else f" ended with exit code {self.exit_code}:"
        return DistributedError([replace(first, what=f"process {self.rank} of {size}{ended} {first.what}"), *rest])


class Heartbeat:
    """One process's threads.

    Args:
        store: a connection of its own.
        world: this process; all have come.
        tell: shows an error to the user.

    Attributes:
        error: what ended the run in another process, once it is known.
        noting: is handed the error first, for status.json, and may add to it.
        asks: what a signal has asked of this process.
        asked: what one has asked of any.
    """

    def __init__(self, store: Store, world: World, tell: Callable[[DistributedError], None]):
        self.error: DistributedError | None = None
        self.noting: Callable[[DistributedError], DistributedError] = lambda error: error
        self.asks: Callable[[], str | None] = lambda: None
        self.asked: str | None = None
        self._ended_from_outside = False
        self._store, self._world, self._tell = store, world, tell
        self._beat_s = seconds("BEAT_S", BEAT_S)
        self._grace_s = GRACE_S * self._beat_s / BEAT_S
        self._beats: dict[int, tuple[int, int]] = {}  # by rank: its last count, and how often that was found
        self._answers: queue.SimpleQueue[Fault | None] = queue.SimpleQueue()
        self._broken = threading.Event()
        self._known = threading.Event()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"lrtrain-{name}", daemon=True)
            for name, target in (("heartbeat", self._run), ("answers", self._heed))
        ]

    def start(self) -> None:
        """Begin to beat and to watch, until `stop` or the process's end."""
        atexit.register(self.stop)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads. Python must not end beneath one, while it is in torch's code."""
        self._over.set()
        self._answers.put(None)
        for thread in self._threads:
            thread.join(timeout=5)

    def cause(self, ended_from_outside: bool = False) -> DistributedError | None:
        """Why a connection broke, as soon as the thread knows; None where all others go on beating.

        Where processes are ended from outside, it is also None as soon as all say so.
        """
        self._ended_from_outside = ended_from_outside
        self._broken.set()
        self._known.wait((ENDED_BEATS + 2) * self._beat_s)
        return self.error

    def pass_on(self, problems: Sequence[Problem], exit_code: int) -> bool:
        """Let the others know what ends this process.

        Returns:
            Whether another process shows it to this one's user, or shows what came first.
        """
        if self.error is not None:
            return True
        fault = Fault(self._world.rank, tuple(problems), exit_code, told=self._world.leads)
        try:
            if not self._world.leads:
                # What every process finds, such as a wrong config, is for the leading one to say.
                self._wait_for(FAULT, self._beat_s)
            if self._post(fault) != fault:
                return True
            return not self._world.leads and self._wait_for(TOLD, ENDED_BEATS * self._beat_s) and self._world.beside
        except RuntimeError:  # the store is gone
            return False

    def _wait_for(self, key: str, at_most_s: float) -> bool:
        deadline = time.monotonic() + at_most_s
        while not (found := self._store.check([key])) and time.monotonic() < deadline:
            time.sleep(self._beat_s / 10)
        return found

    def _post(self, fault: Fault) -> Fault:
        """The first fault; this one, if nobody had written one."""
        return Fault.from_json(self._store.compare_set(FAULT, "", fault.to_json()))

    def _run(self) -> None:
        fault = None
        while fault is None and not self._over.wait(self._beat_s):
            with suppress(RuntimeError):  # the store is gone
                fault = self._beat()
                self._answers.put(fault)

    def _heed(self) -> None:
        unanswered = 0
        while not self._over.is_set():
            try:
                fault = self._answers.get(timeout=self._beat_s)
                unanswered = 0
            except queue.Empty:
                # Ctrl-Z stops torchrun, which has the store, and not its processes. When it ends, so does the store,
                # and all are asked to save.
                parent = os.getppid()
                unanswered = 0 if parent != self._world.parent or _is_stopped(parent) else unanswered + 1
                fault = self._without_store() if unanswered == SILENT_BEATS else None
            if fault is not None:
                self._end(fault, unreachable=unanswered > 0)
                return

    def _beat(self) -> Fault | None:
        rank, size = self._world.rank, self._world.size
        self._store.add(f"beat/{rank}", 1)
        if self._store.check([FAULT]):
            fault = Fault.from_json(self._store.get(FAULT))
            return None if fault.rank == rank and fault.exit_code is not None else fault
        self.asked = self._store.compare_set(ASKED, "", self.asks() or "").decode() or None
        if self._ended_from_outside:
            self._store.set(f"{ENDED}/{rank}", "")
            if self._store.check([f"{ENDED}/{each}" for each in range(size)]):
                self._known.set()
        broken = self._broken.is_set()
        for other in (*range(rank), *range(rank + 1, size)) if broken else ((rank + 1) % size,):
            count, found = self._store.add(f"beat/{other}", 0), 0
            if other in self._beats and self._beats[other][0] == count:
                found = self._beats[other][1] + 1
            self._beats[other] = (count, found)
            if found >= (ENDED_BEATS if broken else SILENT_BEATS):
                return self._post(self._silent(other, broken))
        return None

    def _silent(self, rank: int, broken: bool) -> Fault:
        what = "ended without a word" if broken else f"has not answered for {SILENT_BEATS * self._beat_s:g} s"
        return Fault(rank, (Problem(what, hint=GONE if broken else HANGS),))

    def _without_store(self) -> Fault:
        what = f"cannot reach torchrun's store at MASTER_ADDR={os.environ.get('MASTER_ADDR')} any more"
        return Fault(self._world.rank, (Problem(what, hint=f"the machine that runs it is gone or cut off; {AGAIN}"),))

    def _end(self, fault: Fault, unreachable: bool) -> None:
        error = self.noting(fault.error(self._world.size))
        # The leading process speaks, or where it is the one that is lost, the next.
        speaks = self._world.local_rank == 0 if unreachable else self._world.rank == (0 if fault.rank else 1)
        if speaks and not fault.told:
            self._tell(error)
            if not unreachable:
                with suppress(RuntimeError):
                    self._store.set(TOLD, "")
        self.error = error
        self._known.set()
        _end_process_unless(self._over, self._grace_s)


def _is_stopped(pid: int) -> bool:
    """Whether a process of this machine was stopped by a signal, and can go on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def _end_process_unless(over: threading.Event, grace_s: float) -> None:
    if not over.wait(grace_s):
        os._exit(DistributedError.exit_code)


@contextmanager
def ending_with_torchrun(world: World) -> Iterator[None]:
    """Inside, the end of torchrun stops this process as SIGTERM does: nobody is left who would end it.

    Those beside it notice too, so that all can stop and save. A process that is alone gets the time that it needs; one
    of several might wait for ever for one that hangs.
    """
    beat_s, over = seconds("BEAT_S", BEAT_S), threading.Event()

    def watch() -> None:
        while not over.wait(beat_s):
            if os.getppid() != world.parent:
                os.kill(os.getpid(), signal.SIGTERM)
                if world.size > 1 and not over.wait(ORPHANED_BEATS * beat_s):
                    if _own is not None:
                        _own.noting(DistributedError("torchrun has ended, and this process hangs", hint=AGAIN))
                    os._exit(DistributedError.exit_code)
                return

    threading.Thread(target=watch, name="lrtrain-torchrun", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _Ended(BaseException):
    """This process is ended from outside, because of `error` in another one.

    Raised by a signal in the midst of anything: as an Exception, a model that is being built would be blamed for it.
    """

    def __init__(self, error: DistributedError):
        super().__init__(str(error))
        self.error = error


# One a process, as torch's process group is.
_own: Heartbeat | None = None


@contextmanager
def beating(store: Store, world: World, tell: Callable[[DistributedError], None]) -> Iterator[None]:
    """Inside, and after an error until the process ends, this process beats and watches the others.

    Where torchrun ends it before training listens for signals, it says why.
    """
    global _own
    _own = Heartbeat(store, world, tell)
    _own.start()
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    except _Ended as ended:
        raise ended.error from None
    except AtOnce as ended:
        _own.pass_on([Problem(AT_ONCE, hint=AGAIN)], ended.code if isinstance(ended.code, int) else 1)
        raise
    finally:
        # This process ends by itself now; torchrun would hurry those that are slower than the first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _own.stop()
    _own = None


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    error = None if _own is None else _own.cause(ended_from_outside=True)
    raise AtOnce(143) if error is None else _Ended(error)


def cause() -> DistributedError | None:
    """Why a peer is lost: see `Heartbeat.cause`."""
    return None if _own is None else _own.cause()


def asked_of_any(asked: Callable[[], str | None]) -> Callable[[], str | None]:
    """What a signal has asked of this process, or where it waits, of any other; each must say what is asked of it."""
    if _own is None:
        return asked
    own, own.asks = _own, asked
    return lambda: asked() or own.asked


@contextmanager
def noting(note: Callable[[DistributedError], DistributedError]) -> Iterator[None]:
    """Inside, `note` is handed what ended another process before it is shown, from another thread."""
    if _own is None:
        yield
        return
    before, _own.noting = _own.noting, note
    yield
    _own.noting = before


def pass_on(problems: Sequence[Problem], exit_code: int, world: World) -> bool:
    """Let the other processes know what ends this one; whether somebody else shows it: see `Heartbeat.pass_on`.

    Before they have met, the first process of a machine speaks for the others there, which find the same: when it ends,
    torchrun ends them. They wait for that, else it might be ended before it has spoken.
    """
    if _own is not None:
        return _own.pass_on(problems, exit_code)
    if world.local_rank > 0:
        time.sleep(ENDED_BEATS * seconds("BEAT_S", BEAT_S))
    return False
