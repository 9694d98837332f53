"""A process that has imported everything and computed nothing: it forks a run in milliseconds instead of seconds.

python -m torture_parts.zygote reads an `Ask` a line from stdin, runs it, and writes an `Answer` a line to stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import select
import signal
import socket
import sys
import time

from torture_parts import child
from torture_parts.ask import Answer, Ask, read_ask
from torture_parts.watch import Watch, install

_SUBREAPER = 36  # linux/prctl.h


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    child.import_everything()
    # Workers whose parent was killed become ours, so that we know when they are gone.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    gc.freeze()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(dataclasses.asdict(run(read_ask(line)))), file=answers, flush=True)


def run(ask: Ask) -> Answer:
    """Fork, wait, and leave no process behind."""
    began = time.monotonic()
    port = _free_port() if ask.ranks > 1 else 0
    pids, watch = [], None
    for rank in range(ask.ranks):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _become(ask, rank, port, theirs)
        theirs.close()
        pids.append(pid)
        if ask.watched is not None:
            watch = _watch(ask, ours)
        ours.close()
    try:
        codes, timed_out = _wait(ask, pids, watch, began)
    finally:
        for pid in pids:
            _end_group(pid)
        if watch is not None:
            os.close(watch.listener)
    seen, hit = (watch.seen, watch.hit) if watch is not None else ([], False)
    return Answer(codes, time.monotonic() - began, seen, hit, timed_out)


def _become(ask: Ask, rank: int, port: int, theirs: socket.socket) -> None:
    """In the forked process: run and end, whatever happens."""
    code = 99
    try:
        os.setsid()
        if ask.watched is not None:
            # What is forked and killed before it is watched would be waited for in vain.
            listener = install(ask.reads)
            socket.send_fds(theirs, [b"x"], [listener])
            os.close(listener)
        theirs.close()
        code = child.run(ask, rank, port)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _watch(ask: Ask, ours: socket.socket) -> Watch:
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise OSError("the process cannot be watched")
    assert ask.watched is not None
    return Watch(descriptors[0], ask.watched, ask.kill_at, ask.torn, ask.fail_at, ask.error, ask.stays)


def _wait(ask: Ask, pids: list[int], watch: Watch | None, began: float) -> tuple[list[int], bool]:
    """Exit codes; meanwhile decide about changes, and kill by the clock."""
    waiting = select.poll()
    running = {os.pidfd_open(pid): pid for pid in pids}
    for descriptor in (*running, *([watch.listener] if watch else [])):
        waiting.register(descriptor, select.POLLIN)
    codes: dict[int, int] = {}
    timed_out = False
    while running:
        now = time.monotonic() - began
        if now > ask.timeout_seconds or (ask.die_after_seconds is not None and now > ask.die_after_seconds):
            timed_out = now > ask.timeout_seconds
            for pid in running.values():
                os.killpg(pid, signal.SIGKILL)
        for descriptor, event in waiting.poll(10 if ask.die_after_seconds is not None else 200):
            if descriptor in running:
                waiting.unregister(descriptor)
                pid = running.pop(descriptor)
                os.close(descriptor)
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            elif watch is not None and event & select.POLLIN:
                watch.decide(pids[0])
            else:
                waiting.unregister(descriptor)
    return [codes[pid] for pid in pids], timed_out


def _end_group(pid: int) -> None:
    """Kill what a run has left, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-pid, 0)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    main()
