"""Fresh processes, one after the other, in turns."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench_parts.task import Task

SCRIPTS = Path(__file__).resolve().parents[1]
LAST = 4_000  # bytes of a process's output that are kept, to say why it failed

T = TypeVar("T")
Found = dict[str, Any]


def in_turns(
    contestants: Mapping[str, T],
    repeats: int,
    run: Callable[[T], Found],
    tell: Callable[[str], object],
) -> dict[str, list[Found]]:
    """Run every contestant `repeats` times, round robin, so that what else the machine does hits all alike.

    Each round starts with another one. One that fails is not tried again; its list ends with {"error": why}.
    """
    names = list(contestants)
    found: dict[str, list[Found]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            if found[name] and "error" in found[name][-1]:
                continue
            tell(f"{repeat + 1} of {repeats}: {name}")
            found[name].append(run(contestants[name]))
            if "error" in found[name][-1]:
                tell(f"{name} failed: {found[name][-1]['error']}")
    return found


def run_task(task: Task) -> Found:
    """Run a task in a process of its own, on a terminal of its own, as a person would see it."""
    with tempfile.TemporaryDirectory(prefix="lrtrain-bench-", dir=task.work) as folder:
        asked, answer = Path(folder) / "task.json", Path(folder) / "result.json"
        asked.write_text(task.dump())
        command = [sys.executable, "-m", "bench_parts.child", str(asked), str(answer)]
        code, output = _on_terminal([*command, str(time.perf_counter())], environment(task.threads), folder)
        if code != 0 or not answer.exists():
            return {"error": f"exit code {code}: {_reason(output)}", "output": output}
        found: Found = json.loads(answer.read_text())
        return found


def run_command(command: Sequence[str], code: int, threads: int, folder: str) -> Found:
    """Run a command to its end: seconds and peak memory. It must end with the exit code given.

    The peak is never less than what this process itself takes: Linux counts from before the command replaced it.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            list(command), stdout=output, stderr=output, env=environment(threads), cwd=folder, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            output.seek(0)
            return {"error": f"exit code {process.returncode}: {_reason(output.read().decode(errors='replace'))}"}
    return {"value": seconds, "peak_mib": round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1)}


def environment(threads: int) -> dict[str, str]:
    """The same for all: number of threads, this checkout's lrtrain, no colours that depend on the caller."""
    path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    fixed = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # compiled once
    return {**own, **fixed, "PYTHONPATH": path, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}


def _on_terminal(command: Sequence[str], env: Mapping[str, str], folder: str) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=dict(env), cwd=folder
    )
    os.close(theirs)
    kept = bytearray()
    reader = threading.Thread(target=_keep_last, args=(ours, kept))
    reader.start()
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        reader.join(timeout=10)
        os.close(ours)
    return code, kept.decode(errors="replace")


def _keep_last(terminal: int, kept: bytearray) -> None:
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody writes any more
            return
        if not read:
            return
        kept += read
        del kept[:-LAST]


def _reason(output: str) -> str:
    """The first line that says it is an error, else the last of all."""
    lines = [line.strip() for line in output.replace("\r", "\n").splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "no output")
