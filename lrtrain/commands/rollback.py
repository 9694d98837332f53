"""What follows when a loss or gradient is not finite: a report, and if the config says so, a lower LR from before."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from torch.amp import GradScaler

from lrtrain.build import Job
from lrtrain.checkpoint import folder, format
from lrtrain.checkpoint.manifest import MAX_ROLLBACKS
from lrtrain.commands.together import the_leaders
from lrtrain.engine.finite import Gate, NotFinite
from lrtrain.engine.state import ROLLBACK_FACTOR, Rollback, restore
from lrtrain.errors import CheckpointError, EnvironmentFault, Problem
from lrtrain.sinks.console import Screen, lr_words
from lrtrain.sinks.jsonl import Metrics
from lrtrain.sinks.run_dir import RunDir
from lrtrain.writing import write_atomically


def roll_back(
    job: Job,
    run_dir: RunDir,
    error: NotFinite,
    screen: Screen | None = None,
    metrics: Metrics | None = None,
    patience: Callable[[Callable[[], None]], None] = lambda write: write(),
) -> Job:
    """The job as its last good checkpoint holds it, with the LR halved from there on.

    Args:
        job: its state is put back.
        run_dir: where the checkpoints are.
        error: what happened.
        screen: of the leading process, which alone writes.
        metrics: is cut back to the checkpoint, and says that training went back.
        patience: does what writes, as soon as there is room.

    Raises:
        NotFinite: the config says `stop`, or training went back too often already.
        CheckpointError: no checkpoint is whole, or this process has not the leading one's.
    """
    earlier = list(job.state.rollbacks)
    report = _write_report(job, run_dir, error) if screen is not None else ""
    if job.config.on_nonfinite == "stop" or len(earlier) >= MAX_ROLLBACKS:
        raise _final(error, _kept(run_dir), report, len(earlier)) from error
    world = job.state.world
    target, damaged = _target(run_dir, earlier) if world.leads else (None, {})
    checkpoint = the_leaders(target, run_dir.checkpoints, world)
    assert checkpoint is not None  # else the leading process has ended
    job.state.optimizer.state.clear()  # what came after the checkpoint would pass for what it lacks
    if job.state.scaler is not None:  # it remembers that it has unscaled the gradients of the step that failed
        job.state.scaler = GradScaler(job.device.type)
    restore(job.state, job.plan, checkpoint)
    job.state.gate = Gate(job.state.optimizer, job.device)
    rollback = Rollback(error.trouble.step, checkpoint.step, ROLLBACK_FACTOR)
    job.state.rollbacks = [*earlier, rollback]
    job = replace(job, plan=job.plan.lowered(rollback.to, ROLLBACK_FACTOR))
    if screen is not None and metrics is not None:
        best = job.state.best
        best_step = None if best.value is None else best.step
        metrics.refuse_changed()
        patience(partial(folder.drop_after, run_dir.checkpoints, rollback.to, best_step, damaged))
        metrics.cut(checkpoint.manifest["log_bytes"]["metrics.jsonl"])
        lrs = job.plan.lrs(min(rollback.to, job.plan.total_steps - 1), job.state.live)
        lr = {group.name: value for group, value in zip(job.plan.groups, lrs, strict=True)}
        # Going back further than the last time has cut away what was said then.
        for said in (*(one for one in earlier if one.to > rollback.to), rollback):
            row = {"event": "rollback", "step": said.to, "failed": said.failed, "factor": said.factor}
            patience(partial(metrics.note, {**row, "lr": lr} if said is rollback else row))
        for name, why in damaged.items():
            screen.print(f"warning: {name} is damaged, the one before is used: {why}", "yellow")
        screen.print(f"{error.problems[0].what}", "yellow")
        screen.print(
            f"went back to {checkpoint.path.name}; every LR is halved from there ({lr_words(lr)} at first); {report}",
            "yellow",
        )
    return job


def _target(run_dir: RunDir, earlier: list[Rollback]) -> tuple[format.Checkpoint, dict[str, str]]:
    """The newest checkpoint, and what is wrong with newer ones that are damaged, by name.

    Where training went back to it and failed again, it is the one before if there is one.
    """
    newest, damaged = _newest(run_dir)
    if earlier and earlier[-1].to == newest.step:
        with suppress(CheckpointError):
            before, more = _newest(run_dir, before=newest.step)
            return before, {**damaged, **more}
    return newest, damaged


def _newest(run_dir: RunDir, before: int | None = None) -> tuple[format.Checkpoint, dict[str, str]]:
    """The newest that a run left alone would have too: where training goes back to is no matter of interruptions."""
    unplanned: set[str] = set()

    def planned(checkpoint: format.Checkpoint) -> None:
        if not checkpoint.manifest["planned"]:
            unplanned.add(checkpoint.path.name)
            raise CheckpointError("it was saved when the run was interrupted", str(checkpoint.path))

    try:
        found, wrong = format.newest(run_dir.checkpoints, before, also=planned)
    except CheckpointError:
        if before is not None:
            raise
        return format.newest(run_dir.checkpoints)  # the others are damaged, and this is better than the end
    return found, {name: why for name, why in wrong.items() if name not in unplanned}


def _kept(run_dir: RunDir) -> str:
    try:
        return f"the last good checkpoint is {format.newest(run_dir.checkpoints)[0].path.name}"
    except CheckpointError:
        return "no checkpoint is whole"


def _write_report(job: Job, run_dir: RunDir, error: NotFinite) -> str:
    """Write all that is known of the step; where it is, in words."""
    trouble = error.trouble
    content: dict[str, Any] = {
        "error": error.problems[0].what,
        **trouble.dump(),
        "images": [job.source.train.path(i) for i in trouble.index],
        "rollbacks_before": [{"failed": r.failed, "to": r.to, "factor": r.factor} for r in job.state.rollbacks],
    }
    path = run_dir.path / f"nonfinite-{trouble.step:08d}.json"
    try:
        write_atomically(path, json.dumps(content, indent=1) + "\n")
    except EnvironmentFault as fault:  # that training has diverged matters more
        return f"no report: {fault.problems[0].what}"
    return f"report in {path}"


def _final(error: NotFinite, kept: str, report: str, gone_back: int) -> NotFinite:
    problem = error.problems[0]
    what = problem.what + (f"\ntraining went back {gone_back} times already" if gone_back else "")
    hint = f"{problem.hint}\n{kept}; {report}"
    if not gone_back:
        hint += "; `on_nonfinite: rollback` goes back there by itself and halves the LR"
    final = NotFinite(error.trouble)
    final.problems = (Problem(what, problem.where, hint),)
    final.args = (str(final.problems[0]),)
    return final
