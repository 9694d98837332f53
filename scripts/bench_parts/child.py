"""Run one task in this process: python -m bench_parts.child TASK RESULT BEGAN."""

from __future__ import annotations

import importlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

from bench_parts.task import Clock, Task, read_task


def main() -> None:
    """Do what the task says and write what was found."""
    task, result, spawned = read_task(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    part = importlib.import_module(f"bench_parts.{task.part}")
    found = _train(task, part, spawned) if task.part.startswith("contestants.") else part.measure(task)
    result.write_text(json.dumps({**found, **_memory()}))


def _train(task: Task, part: Any, spawned: float) -> dict[str, Any]:
    clock = Clock(task.steps, task.device)
    part.train(task, clock)
    seen, wanted = sum(clock.images), task.steps * task.batch
    if len(clock.images) != task.steps or seen != wanted:
        raise SystemExit(f"{task.part} saw {seen} images in {len(clock.images)} steps; {wanted} in {task.steps} wanted")
    # Linux and macOS count perf_counter from the same moment in all processes.
    return {**clock.report(), "start_up_seconds": clock.began - spawned}


def _memory() -> dict[str, float]:
    """Peak of this process and of its largest worker, which shares pages with it."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"peak_mib": round(own / unit, 1), "worker_peak_mib": round(worker / unit, 1)}


if __name__ == "__main__":
    main()
