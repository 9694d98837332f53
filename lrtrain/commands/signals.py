"""Signals ask training to stop at the next step; a second one stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75}


@contextmanager
def stop_requests(launched: bool = False) -> Iterator[Callable[[], str | None]]:
    """Inside, the yielded function answers the name of the signal that asked to stop, or None.

    A signal that the parent process has set to be ignored (nohup) stays ignored. Where torchrun has launched the
    process, it sends SIGTERM after a terminal's SIGINT: only the same signal again stops at once.
    """
    received: list[str] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if received and (not launched or name == received[0]):
            raise SystemExit(EXIT_CODES[received[0]])
        received.append(name)

    before = {}
    for name in EXIT_CODES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, on_signal)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
