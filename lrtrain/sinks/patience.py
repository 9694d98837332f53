"""A full disk costs no step: training waits in memory until there is room."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial

from lrtrain.engine.events import Event
from lrtrain.errors import EnvironmentFault, Problem

FULL = (errno.ENOSPC, errno.EDQUOT)
EVERY_SECONDS, SAY_EVERY_SECONDS = 1.0, 60.0


class Patience:
    """Does what writes files, again and again while the disk is full.

    Args:
        seconds: how long to wait for room before giving up.
        say: is told, at once and every minute.
        stop: asked while waiting; an answer but None ends the wait.
    """

    def __init__(self, seconds: float, say: Callable[[str], object], stop: Callable[[], object]):
        self._seconds, self._say, self._stop = seconds, say, stop

    def __call__(self, write: Callable[[], None]) -> None:
        """Call `write` until it succeeds.

        Raises:
            EnvironmentFault: there was no room for so long, or something else is wrong.
        """
        began, said = time.monotonic(), -SAY_EVERY_SECONDS
        while True:
            try:
                write()
            except EnvironmentFault as fault:
                waited = time.monotonic() - began
                full = isinstance(fault.__cause__, OSError) and fault.__cause__.errno in FULL
                if not full or waited >= self._seconds or self._stop() is not None:
                    raise _gave_up(fault, waited) from fault.__cause__
                if waited - said >= SAY_EVERY_SECONDS:
                    said = waited
                    left = f"for {self._seconds - waited:,.0f} s more"
                    self._say(f"{fault.problems[0].what}; training waits {left} for room on {fault.problems[0].where}")
                time.sleep(min(EVERY_SECONDS, self._seconds))
            else:
                if said >= 0:
                    self._say("there is room again; training goes on")
                return

    def deliver(self, sink: Callable[[Event], None], event: Event) -> None:
        """Hand an event to a sink, as `__call__` does; a sink that fails is as it was before."""
        self(partial(sink, event))


def _gave_up(fault: EnvironmentFault, waited: float) -> EnvironmentFault:
    problem = fault.problems[0]
    what = problem.what + (f", for {waited:,.0f} s" if waited >= EVERY_SECONDS else "")
    return EnvironmentFault([Problem(what, problem.where, problem.hint)])
