"""A very long run: memory, open files and threads stay; and resuming costs what it costs, wherever it is."""

from __future__ import annotations

import json
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from torture_parts.case import Case, numbered
from torture_parts.compare import read_manifest
from torture_parts.lab import Lab
from torture_parts.sections.controls import sealed
from torture_parts.trial import KILLED, Trial

MOST_MIB = 1.0  # of growth in 10,000 steps
MOST_RATIO = 1.25
NEAR, FAR = 10, 1_000_000
LONG: dict[str, Any] = {
    "model": "torture_parts.nets:least",
    "epochs": None,
    "batch_size": 2,
    "accumulate": 1,
    "mixup": None,
    "dataset.transforms": {"train": ["RandomHorizontalFlip"]},
    "schedule": {"name": "fixed"},
    "log_every": "100step",
}


def endurance(lab: Lab) -> list[Case]:
    """The run, and the resuming."""
    steps, repeats = (3_000, 2) if lab.quick else (100_000, 7)
    return numbered(
        "endurance",
        [
            (f"{steps:,} steps", partial(_long_run, steps, not lab.quick)),
            (f"resumed at step {NEAR} and at step {FAR:,}", partial(_resume_cost, repeats, not lab.quick)),
        ],
    )


def _long_run(steps: int, judged: bool, trial: Trial) -> None:
    evaluated = f"{steps // 20}step"
    trial.of("base", {**LONG, "steps": steps, "eval_every": evaluated, "checkpoint.every": evaluated})
    answer = trial.ask(commands=[["fit", "c.yaml", "--out", "run"]], probes="probes.txt", timeout_seconds=1500)
    if not trial.ends(answer):
        return
    probes = [json.loads(line) for line in (trial.folder / "probes.txt").read_text().splitlines()]
    settled = [probe for probe in probes if probe["step"] >= steps // 5]
    at, memory = (np.array([probe[key] for probe in settled]) for key in ("step", "memory_mib"))
    slope = float(np.polyfit(at, memory, 1)[0]) * 10_000
    trial.found.figures |= {
        "growth of memory, MiB in 10,000 steps": slope,
        "microseconds a step": 1e6 * answer.seconds / steps,
    }
    for key in ("files", "threads"):
        values = {probe[key] for probe in settled}
        trial.found.figures[f"most {key} open" if key == "files" else f"most {key}"] = max(values)
        if len(values) != 1:
            trial.problem(f"the number of {key} was not constant: {sorted(values)}")
    if judged and slope >= MOST_MIB:
        trial.problem(f"memory grew by {slope:.2f} MiB in 10,000 steps; less than {MOST_MIB:g} is wanted")


def _resume_cost(repeats: int, judged: bool, trial: Trial) -> None:
    """Two runs that differ in their checkpoint's step alone, resumed in turns up to their next update."""
    trial.of("base", {**LONG, "steps": FAR + 100, "eval_every": "100%", "checkpoint.every": "100%"})
    trial.ends(trial.ask(commands=[["fit", "c.yaml", "--out", "near"]], at_step=NEAR, act="SIGTERM"), 143)
    near, far = trial.folder / "near", trial.folder / "far"
    shutil.copytree(near, far)
    _moved(far / "checkpoints", FAR)
    seconds: dict[Path, list[float]] = {near: [], far: []}
    for i in range(2 * repeats + 2):
        run = (near, far)[i % 2]
        answer = trial.ask(commands=[["fit", "c.yaml", "--out", run.name, "--resume"]], at_step=1, after=True)
        if answer.code != KILLED:
            trial.problem(f"the resumed run was to be killed after its first step, and ended with {answer.code}")
        if i >= 2:  # the first ones bring the files into memory
            seconds[run].append(answer.seconds)
    ratio = statistics.median(seconds[far]) / statistics.median(seconds[near])
    trial.found.figures |= {
        f"seconds to resume at step {NEAR} and take a step": statistics.median(seconds[near]),
        f"times as long at step {FAR:,}": ratio,
    }
    if judged and ratio > MOST_RATIO:
        trial.problem(f"resuming at step {FAR:,} takes {ratio:.2f} times as long as at {NEAR}")


def _moved(checkpoints: Path, step: int) -> None:
    """Make a run's last checkpoint one of another step."""
    last = checkpoints / json.loads((checkpoints / "last.json").read_text())["checkpoint"]
    for other in checkpoints.glob("step-*"):
        if other != last:
            shutil.rmtree(other)
    moved = last.rename(checkpoints / f"step-{step:08d}")
    said = read_manifest(moved)
    averaged = {} if said.get("ema_updates") is None else {"ema_updates": step}
    sealed(moved, {**said, "step": step, **averaged})
    (checkpoints / "last.json").write_text(json.dumps({"checkpoint": moved.name}))
