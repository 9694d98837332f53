"""What a zygote is asked to run, and what it answers: plain data, one line of JSON each way."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ask:
    """A run of one process, or of several that train together.

    Attributes:
        commands: arguments of `lrtrain`, one command after the other in the same process; each ranks alone.
        function: `pkg.mod:attr` to call instead, with `arguments`; its answer is JSON.
        folder: where it runs.
        log: the file that gets stdout and stderr.
        watched: the folder whose changes are counted; None for no watching.
        reads: count what is opened for reading too.
        kill_at, torn, fail_at, error, stays: see `watch.Watch`.
        die_after_seconds: SIGKILL by the clock.
        at_step: what happens at the n-th update of this process, counted from 1: see `child.py`.
        at_evaluation: the same before the n-th batch that is evaluated, counted from 1 over all evaluations.
        act: `kill`; `worker`, which kills one of the data workers; or signals: see `child.py`.
        after: act when the update is done, not before it.
        lrs: file that gets the LR of every update, exactly.
        probes: file that gets memory, open files and threads, every so many updates.
        package: folder with another copy of lrtrain.
        strange_folders: the file system lists what is in a folder in another order.
        start_method: how data workers start.
        ranks: processes that train together.
        only_rank: the one that `at_step` is for; None for all.
    """

    folder: str
    log: str
    commands: list[list[str]] = field(default_factory=list)
    function: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    watched: str | None = None
    reads: bool = False
    kill_at: int | None = None
    torn: bool = False
    fail_at: int | None = None
    error: int = 5
    stays: bool = False
    die_after_seconds: float | None = None
    at_step: int | None = None
    at_evaluation: int | None = None
    act: str = "kill"
    after: bool = False
    lrs: str | None = None
    probes: str | None = None
    package: str | None = None
    strange_folders: bool = False
    start_method: str | None = None
    ranks: int = 1
    only_rank: int | None = None
    timeout_seconds: float = 120.0

    def dump(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True)
class Answer:
    """How it ended.

    Attributes:
        codes: exit code of each process, less than 0 for a signal.
        seen: every change of a file, in words; empty where nothing was watched.
        hit: a change was the last, or was refused.
    """

    codes: list[int]
    seconds: float
    seen: list[str] = field(default_factory=list)
    hit: bool = False
    timed_out: bool = False
    error: str = ""

    @property
    def code(self) -> int:
        """Of the first process."""
        return self.codes[0]


def read_ask(line: str) -> Ask:
    """From one line."""
    return Ask(**json.loads(line))


def read_answer(line: str) -> Answer:
    """From one line."""
    return Answer(**json.loads(line))
