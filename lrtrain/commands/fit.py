"""`lrtrain fit`: train, or go on where a run stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import lrtrain
from lrtrain.build import Job, build
from lrtrain.checkpoint import format
from lrtrain.commands.signals import EXIT_CODES, stop_requests
from lrtrain.commands.start import Start
from lrtrain.config import yaml
from lrtrain.config.load import load
from lrtrain.config.schema import RunConfig
from lrtrain.engine.distributed import joined, needing_peers
from lrtrain.engine.events import Event, Finished, SaveDue, Stopped
from lrtrain.engine.precision import choose_device
from lrtrain.engine.state import restore
from lrtrain.engine.train import train
from lrtrain.errors import CheckpointError, ConfigError, DataError, LrtrainError, Problem, printable
from lrtrain.schedule.csv import write_csv
from lrtrain.sinks.checkpoints import Checkpoints
from lrtrain.sinks.console import Progress, Screen
from lrtrain.sinks.jsonl import Metrics, Timing
from lrtrain.sinks.plan_view import show_plan
from lrtrain.sinks.run_dir import RunDir, create, write_atomically
from lrtrain.sinks.status import Status
from lrtrain.world import ALONE, World

# What may differ between a run and its continuation, because no result depends on it.
FREE_TO_CHANGE = ("workers", "cache", "log_every", "checkpoint.every", "checkpoint.keep")
CURVE_ROWS = 10_000


def run(start: Start, out: Path | None, resumed: RunDir | None, world: World = ALONE) -> int:
    """Train, or go on with a run; the exit code says how it ended."""
    config = start.config
    with joined(world, choose_device(config.device, config.where("device"), world)):
        try:
            job = build(config, world=world)
        except DataError as error:
            if world.leads:
                raise
            return error.exit_code  # the leading process finds the same, and says so
        if not world.leads:
            return _follow_silently(job, resumed)
        screen = Screen()
        if resumed is not None:
            return _continue(job, resumed, screen)
        return _begin(start, job, out, screen)


def _begin(start: Start, job: Job, out: Path | None, screen: Screen) -> int:
    run_dir = create(out, start.name)
    origin = f"# {printable(start.label)}, as lrtrain {lrtrain.__version__} resolved it"
    header = f"{origin}: `lrtrain fit` on this file repeats the run.\n"
    write_atomically(run_dir.config, header + yaml.dump(job.config.dump()))
    with run_dir.curve.open("w", encoding="utf-8", newline="") as file:
        write_csv(job.plan, file, CURVE_ROWS)
    return follow(job, run_dir, screen, log_bytes=0)


def _follow_silently(job: Job, resumed: RunDir | None) -> int:
    """Train as the leading process does, which alone writes and prints."""
    if resumed is not None:
        restore(job.state, job.plan, format.newest(resumed.checkpoints)[0])
    end: Event | None = None
    with stop_requests(launched=True) as stop:
        for event in train(job.state, job.plan, job.batches, job.recipe, stop):
            end = event
    job.batches.close()
    return EXIT_CODES.get(end.reason, 0) if isinstance(end, Stopped) else 0


def _continue(job: Job, run_dir: RunDir, screen: Screen) -> int:
    _refuse_changes(load(run_dir.config), job.config, run_dir)
    format.sweep(run_dir.checkpoints)
    checkpoint, damaged = format.newest(run_dir.checkpoints)
    for line in damaged:
        screen.print(f"warning: damaged, the one before is used: {line}", "yellow")
    _refuse_other_machine(checkpoint, job)
    restore(job.state, job.plan, checkpoint)
    rule = job.recipe.early_stop
    stopped_early = rule is not None and job.state.early.stale >= rule.patience
    if not job.state.pending and (job.state.step >= job.recipe.total_steps or stopped_early):
        screen.print(f"already complete: {run_dir} ended at step {job.state.step:,}")
        return 0
    screen.print(f"resuming {run_dir} at step {job.state.step:,} of {job.recipe.total_steps:,}")
    return follow(job, run_dir, screen, log_bytes=checkpoint.manifest["log_bytes"]["metrics.jsonl"])


def follow(job: Job, run_dir: RunDir, screen: Screen, log_bytes: int) -> int:
    """Train a job into its run directory and tell how it ended."""
    show_plan(job, screen, run_dir)
    state = job.state
    metrics = Metrics(run_dir.metrics, log_bytes)
    checkpoints = Checkpoints(
        run_dir.checkpoints, state, job.config.checkpoint.keep, facts(job), lambda: metrics.length
    )
    status = Status(run_dir, state, job.recipe.best)
    progress = Progress(screen, job.recipe.total_steps, job.plan.steps_per_epoch, state.step, len(job.groups) > 1)
    sinks = (metrics, Timing(run_dir.timing), progress, checkpoints, status)
    end: Event | None = None
    with stop_requests(launched=state.world.size > 1) as stop, _told(status, progress), needing_peers(state.world):
        if state.step == 0:
            # So that a run killed before its first checkpoint goes on as exactly as any other.
            end = _hand(SaveDue(0, best=False), (metrics, checkpoints, status))
        for event in train(state, job.plan, job.batches, job.recipe, stop):
            end = _hand(event, sinks)
    progress.close()
    job.batches.close()
    return _conclude(end, job, run_dir, screen, status)


def _hand(event: Event, sinks: Sequence[Any]) -> Event:
    for sink in sinks:
        sink(event)
    return event


@contextmanager
def _told(status: Status, progress: Progress) -> Iterator[None]:
    """An error on the way is written to status.json too."""
    try:
        yield
    except BaseException as error:
        progress.close()
        code = error.exit_code if isinstance(error, LrtrainError) else 1
        message = error.problems[0].what if isinstance(error, LrtrainError) else f"{type(error).__name__}: {error}"
        with suppress(LrtrainError):
            status.write("failed", code, message)
        raise


def _conclude(end: Event | None, job: Job, run_dir: RunDir, screen: Screen, status: Status) -> int:
    code = 0
    again = f"lrtrain fit --resume --out {run_dir}"
    screen.print()
    if isinstance(end, Stopped) and end.reason in EXIT_CODES:
        code = EXIT_CODES[end.reason]
        status.write("stopped", code, f"saved after {end.reason}")
        screen.print(
            f"stopped by {end.reason}; saved at step {end.step:,} of {job.recipe.total_steps:,}, nothing is lost",
            "bold",
        )
    elif isinstance(end, Stopped):
        screen.print(
            f"stopped early at step {end.step:,}: {job.config.early_stop.monitor if job.config.early_stop else ''} "
            "did not improve any more",
            "bold",
        )
    else:
        assert isinstance(end, Finished)
    best = job.state.best
    rows = []
    if best.value is not None:
        epoch = best.step / job.plan.steps_per_epoch
        rows.append(("best", f"{job.recipe.best} {best.value:.4f} at epoch {epoch:g} (step {best.step:,})"))
    rows += [
        ("run", f"{run_dir}  (config.yaml, curve.csv, metrics.jsonl, checkpoints/)"),
        ("next", again if code else f"lrtrain evaluate {run_dir}"),
    ]
    screen.facts(rows)
    return code


def facts(job: Job) -> dict[str, Any]:
    """What a checkpoint says of where it comes from."""
    import torchvision

    return {
        "classes": list(job.source.classes),
        "channels": job.source.channels,
        "seed": job.config.seed,
        "total_steps": job.recipe.total_steps,
        "steps_per_epoch": job.plan.steps_per_epoch,
        "threads": torch.get_num_threads(),
        "processes": job.state.world.size,
        "device": job.device.type,
        "versions": {
            "lrtrain": lrtrain.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": sys.version.split()[0],
        },
    }


def _refuse_changes(before: RunConfig, now: RunConfig, run_dir: RunDir) -> None:
    old, new = _flat(before.dump()), _flat(now.dump())
    changed = [
        key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and key not in FREE_TO_CHANGE
    ]
    if changed:
        raise ConfigError(
            Problem(
                f"{key} was {old.get(key, 'absent')!r} when the run began and is {new.get(key, 'absent')!r} now",
                now.where(*key.split(".")),
                f"a run is continued as it began (only {', '.join(FREE_TO_CHANGE)} may change): "
                f"lrtrain fit --resume --out {run_dir}",
            )
            for key in changed
        )


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, dict):
        return {
            key: value
            for name, item in data.items()
            for key, value in _flat(item, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: data}


def _refuse_other_machine(checkpoint: format.Checkpoint, job: Job) -> None:
    """The same bits need the same number of threads: sums are split among them."""
    threads = checkpoint.manifest.get("threads")
    if job.device.type == "cpu" and threads != torch.get_num_threads():
        raise CheckpointError(
            f"the run computed with {threads} threads, this process has {torch.get_num_threads()}: "
            "its results would not be the same bits",
            str(checkpoint.path),
            f"set OMP_NUM_THREADS={threads}",
        )
    if checkpoint.manifest.get("classes") != list(job.source.classes):
        raise CheckpointError(
            "the dataset's classes are not those that the run began with",
            str(checkpoint.path),
            "restore the dataset, or start a new run",
        )
