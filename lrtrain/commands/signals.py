"""Signals ask training to stop, or to save, at the next step; a second one stops at once."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from lrtrain.engine.events import Event, SaveDue
from lrtrain.errors import AtOnce
from lrtrain.world import ALONE, World

ECHO_S = 2.0
"""How long torchrun may take to pass on a signal that the process has heard already."""
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75}
SAVE = "SIGUSR2"


class Requests:
    """What signals have asked for: call it for the name of the one to act on, or None.

    Before `begin` there is nothing to save, and a signal ends the process.
    """

    def __init__(self, world: World):
        self._world, self._began = world, False
        self._stop: str | None = None
        self._stopped_at = 0.0
        self._knows_of_torchrun = False
        self._save = False
        self._heard: list[int] = []
        self._ended: int | None = None
        self._noted = _Noted() if world.size > 1 else None

    def __call__(self) -> str | None:
        """The request to act on."""
        return self._stop or (SAVE if self._save else None)

    def stop(self) -> str | None:
        """The request to stop, if there is one; of several processes also one that waits in torch for the others."""
        return self._stop or (self._noted.first() if self._noted is not None else None)

    def begin(self) -> None:
        """Training begins: from now on a signal waits for the end of the step."""
        if self._ended is not None:  # whatever it was raised in went on
            raise AtOnce(self._ended)
        self._began = True
        for number in self._heard:  # while processes meet, the heartbeat hears SIGTERM
            signal.signal(number, self.on_signal)
        if self._noted is not None:
            self._noted.begin()

    def end(self) -> None:
        """Nobody asks any more."""
        if self._noted is not None:
            self._noted.end()

    def hear(self) -> dict[int, Any]:
        """Listen to the signals that are not to be ignored; their handlers before."""
        before = {}
        for name in (*EXIT_CODES, SAVE):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self.on_signal)
        self._heard = list(before)
        return before

    def seen(self, event: Event) -> None:
        """The state is being saved, which is what `SIGUSR2` asked for."""
        if isinstance(event, SaveDue):
            self._save = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note a signal."""
        name = signal.Signals(number).name
        if name == SAVE:
            self._save = True
            return
        now = time.monotonic()
        if not self._began:
            self._end(EXIT_CODES[name])
        # torchrun sends on what it has heard itself, and where it has ended, the heartbeat sends SIGTERM, once.
        of_torchruns_end = os.getppid() != self._world.parent and not self._knows_of_torchrun
        self._knows_of_torchrun |= of_torchruns_end
        if self._stop is None:
            self._stop, self._stopped_at = name, now
        elif not self._world.launched or (now - self._stopped_at >= ECHO_S and not of_torchruns_end):
            self._end(EXIT_CODES[self._stop])

    def _end(self, code: int) -> NoReturn:
        self._ended = code
        raise AtOnce(code)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """What comes out, once a signal was to end the process at once, does just that: code may wrap any exception."""
        try:
            yield
        except BaseException as error:
            if self._ended is None or isinstance(error, AtOnce):
                raise
            raise AtOnce(self._ended) from error


class _Noted:
    """Signals that Python has noted, and calls no handler for while the main thread is in torch's code.

    There a process waits for the slowest, which may wait for room on its disk and would never hear of them.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._reader, self._writer = socket.socketpair()
        self._began = False
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def begin(self) -> None:
        """Note signals from now on."""
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._began = True

    def end(self) -> None:
        """Note no more."""
        if self._began:
            signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def first(self) -> str | None:
        """The first that asks to stop; from any thread."""
        with suppress(OSError):  # nothing came, or it has ended
            numbers = {getattr(signal, name, None): name for name in EXIT_CODES}
            came = (numbers[number] for number in self._reader.recv(4096) if number in numbers)
            self._name = self._name or next(came, None)
        return self._name


@contextmanager
def stop_requests(world: World = ALONE) -> Iterator[Requests]:
    """Inside, signals are requests.

    A signal that the parent process has set to be ignored (nohup) stays ignored. Where torchrun has launched the
    process, it passes on what it has heard too, of a second SIGINT a SIGTERM: only one that comes `ECHO_S` after the
    first or later stops at once. The first is the reason to stop, whatever comes after it.
    """
    requests = Requests(world)
    before = requests.hear()
    try:
        with requests.ending():
            yield requests
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == requests.on_signal:  # the heartbeat has had a process ignore SIGTERM
                signal.signal(number, handler)
        requests.end()
