"""Commands in processes of their own, which start in milliseconds: they are forked from one that has imported torch.

A new interpreter takes seconds to import it, and the tests start hundreds. A forked one differs in nothing else that
the command can see: its arguments, environment, folder, signals and exit are its own. What only a new interpreter
reads (PYTHONHASHSEED, a locale, the number of threads) is asked of `subprocess`, and so is what is about the start.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

REPOSITORY = Path(__file__).parents[1]
SERVER = Path(__file__).with_name("zygote.py")
# Variables that are read when an interpreter or a library starts begin so; PYTHONPATH is followed.
READ_EARLY = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH_", "CUDA_")


def environment(**more: str) -> dict[str, str]:
    """That of a command of the tests: one thread, and the repository's code wherever it runs."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


class Forked:
    """`lrtrain ARGS` in a process of its own; as `subprocess.Popen` where names agree.

    Args:
        args: of the command.
        cwd: where it runs.
        env: differs from `environment()` in nothing that is read early.
        new_session: give it one.
        module: whose command it is, if not lrtrain's; torchrun's starts its processes by forking, too.
    """

    def __init__(
        self,
        args: Sequence[object],
        cwd: Path,
        env: Mapping[str, str],
        *,
        new_session: bool = False,
        module: Literal["lrtrain", "torch.distributed.run"] = "lrtrain",
    ):
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (read at its end)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {"module": module, "args": [str(a) for a in args], "cwd": str(cwd), "env": dict(env)}
        asked["new_session"] = new_session
        with open(os.devnull, "rb") as nothing:
            descriptors = [nothing.fileno(), self._out.fileno(), self._err.fileno(), theirs.fileno()]
            socket.send_fds(_zygote(os.getpid()), [json.dumps(asked).encode()], descriptors)
        theirs.close()
        self._answers = ours
        self.pid = int(self._answered(60))
        self.returncode: int | None = None

    def _answered(self, seconds: float | None) -> str:
        self._answers.settimeout(seconds)
        answer = self._answers.recv(100).decode()
        assert answer, "the process that all are forked from has ended"
        return answer

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one."""
        if self.returncode is None:
            try:
                self.returncode = int(self._answered(timeout))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0) from None
            self._answers.close()
            self._printed = _whole(self._out), _whole(self._err)
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, if there is one."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Unless it has ended."""
        self.send_signal(9)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed on both streams, once it has ended."""
        self.wait(timeout)
        return self._printed


def _whole(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode()


def run(
    args: Sequence[object], cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`lrtrain ARGS` to its end; in a new interpreter where `env` asks for one, or the system cannot watch a fork."""
    wanted = environment() if env is None else env
    if needs_new_interpreter(wanted):
        command = [sys.executable, "-m", "lrtrain", *map(str, args)]
        return subprocess.run(
            command, cwd=cwd, env=wanted, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
    process = Forked(args, cwd, wanted)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(list(args), process.wait(), out, err)


def needs_new_interpreter(env: Mapping[str, str]) -> bool:
    """Whether an environment differs from `environment()` in what is read at the start."""
    usual = environment()
    differ = {key for key in usual.keys() | env.keys() if usual.get(key) != env.get(key)} - {"PYTHONPATH"}
    return any(key.startswith(READ_EARLY) for key in differ) or not hasattr(os, "pidfd_open")


@cache
def _zygote(_: int) -> socket.socket:
    """The one that forks for this process; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nothing: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.DEVNULL)
    command = [sys.executable, str(SERVER), str(theirs.fileno())]
    server = subprocess.Popen(command, env=environment(), pass_fds=[theirs.fileno()], start_new_session=True, **nothing)
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


def heed_signals() -> None:
    """What nohup and background jobs ignore is inherited; here it is to be heard."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def until(ready: Callable[[], object], process: Forked | subprocess.Popen[Any], seconds: float = 120) -> bool:
    """Look again and again, as long as a process runs, until something is so: whether it is."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(0.002)
    return False
