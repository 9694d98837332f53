"""What a GPU does in a few steps of training, from a profile."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench_parts.task import Clock, Task

STEPS = 20  # that are profiled, in the middle


class Profiling(Clock):
    """A clock that profiles the last steps but `STEPS`, and with it nothing that comes after training."""

    def __init__(self, task: Task):
        super().__init__(task.steps, task.device)
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self.profile = torch.profiler.profile(activities=activities)
        self._first = task.steps - 2 * STEPS

    def step(self, images: int, loss: Any = None) -> None:
        """A step has ended; the profile begins or ends with it."""
        super().step(images, loss)
        if len(self.images) in (self._first, self._first + STEPS):
            torch.cuda.synchronize()
            (self.profile.start if len(self.images) == self._first else self.profile.stop)()


def measure(task: Task) -> dict[str, Any]:
    """Milliseconds a step that some kernel runs, kernels a step, and how often the host waited for the GPU.

    `variant`: `of`, the module of the contestant, and the contestant's own.
    """
    variant = {key: value for key, value in task.variant.items() if key != "of"}
    clock = Profiling(task)
    importlib.import_module(f"bench_parts.contestants.{task.variant['of']}").train(
        replace(task, variant=variant), clock
    )
    clock.profile.export_chrome_trace("trace.json")
    events = [event for event in json.loads(Path("trace.json").read_text())["traceEvents"] if event.get("ph") == "X"]
    kernels = [event for event in events if event["cat"] in ("kernel", "gpu_memcpy", "gpu_memset")]
    waits = [e["name"] for e in events if e["cat"] in ("cuda_runtime", "cuda_driver") and "Synchronize" in e["name"]]
    # The profile itself waits once, when it ends.
    waits = [name for name in waits if name != "cudaDeviceSynchronize"]
    seconds = clock.report()["seconds"]
    plain = (seconds[task.steps - 2 * STEPS - 1] - seconds[task.steps - 4 * STEPS - 1]) / (2 * STEPS)
    busy = covered((event["ts"], event["ts"] + event["dur"]) for event in kernels) / STEPS / 1e3
    return {
        "value": busy,
        "beside": 1e3 * plain,
        "kernels": len(kernels) / STEPS,
        "waits": len(waits),
        "waited_in": sorted(set(waits)),
    }


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length that intervals cover together."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total
