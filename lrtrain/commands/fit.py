"""`lrtrain fit`: train, or go on where a run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import lrtrain
from lrtrain.build import Job, replicate
from lrtrain.checkpoint import folder, format
from lrtrain.commands import resume
from lrtrain.commands.changes import tell_of_edits
from lrtrain.commands.faults import no_bug
from lrtrain.commands.kept import naming_kept, with_kept
from lrtrain.commands.origin import facts
from lrtrain.commands.rollback import roll_back
from lrtrain.commands.signals import EXIT_CODES, Requests
from lrtrain.commands.start import Start, again, code_of
from lrtrain.commands.together import refuse_other_config, refuse_other_start
from lrtrain.config import yaml
from lrtrain.data.workers import needing_workers
from lrtrain.engine.distributed import gathered, joined, needing_peers, told_by_the_leader
from lrtrain.engine.events import Event, Finished, SaveDue, Stopped
from lrtrain.engine.finite import NotFinite
from lrtrain.engine.heartbeat import asked_of_any, noting
from lrtrain.engine.precision import choose_device
from lrtrain.engine.train import save_after_fault, train
from lrtrain.errors import AtOnce, LrtrainError, Problem, printable
from lrtrain.schedule.csv import write_csv
from lrtrain.sinks import Sink
from lrtrain.sinks.checkpoints import Checkpoints, point_again
from lrtrain.sinks.console import Progress, Screen
from lrtrain.sinks.jsonl import Metrics, Timing
from lrtrain.sinks.lock import locked
from lrtrain.sinks.patience import Patience
from lrtrain.sinks.plan_view import show_plan
from lrtrain.sinks.run_dir import (
    ORIGIN,
    RunDir,
    begun_with,
    check_free,
    create,
    mark_begun,
    refuse_among_classes,
    refuse_small_disk,
)
from lrtrain.sinks.status import Status
from lrtrain.world import ALONE, World
from lrtrain.writing import write_atomically

CURVE_ROWS = 10_000

E = TypeVar("E", bound=BaseException)


def run(
    start: Start,
    out: Path | None,
    resumed: RunDir | None,
    requests: Requests,
    *,
    world: World = ALONE,
    wishes: resume.Wishes = resume.NO_WISHES,
    complain: Callable[[str], None] = lambda _: None,
) -> int:
    """Train, or go on with a run; the exit code says how it ended.

    Args:
        start: the checked config.
        out: the run directory.
        resumed: the run to go on with.
        requests: what signals have asked for.
        world: the processes that train together.
        wishes: what a person says about how a run goes on.
        complain: prints an error of another process.
    """
    config = start.config
    choose = partial(choose_device, config.device, config.where("device"), world)
    with ExitStack() as held:
        held.enter_context(joined(world, choose, lambda error: complain(str(error))))
        resumed = _begun(resumed, world)
        options = {"--resume": resumed is not None, "--extend": wishes.extend, "--allow-inexact": wishes.allow_inexact}
        refuse_other_config(config, options, world)
        locks: list[Sink] = []
        if resumed is not None and world.leads:
            locks = [held.enter_context(locked(resumed))]
        screen = Screen() if world.leads else None
        found = None if resumed is None else resume.find(resumed, screen, world)
        if resumed is not None:
            if screen is not None and out is None and start.path == resumed.config and not world.restarts:
                tell_of_edits(resumed, screen)
            config = resume.lengthened(config, resumed, found, wishes)
        job = resume.built(config, found, world=world)
        if resumed is None:
            refuse_among_classes(out or Path("runs"), job.source.class_roots)
        known = facts(job)
        refuse_other_start(known, world)
        replicate(job)
        if resumed is not None:
            job = resume.continued(job, resumed, found, known, wishes, screen)
            if screen is not None:
                _put_in_order(resumed.checkpoints, found, screen)
            if resume.is_complete(job):
                return 0 if screen is None else _already_complete(job, resumed, screen)
        run_dir = resumed
        launches = gathered(world.launch, world)
        if run_dir is None and screen is not None:
            refuse_small_disk(out, _checkpoint_bytes(job))
            run_dir = create(out, start.name)
            locks = [held.enter_context(locked(run_dir))]
            check_free(run_dir.path)  # another process may have put another folder in its place
            mark_begun(run_dir, world, launches)
        run_dir = RunDir(Path(told_by_the_leader(str(run_dir), world)))
        if screen is None:
            return _train_silently(job, run_dir, requests)
        if found is None or wishes.extend is not None:
            write_plan(job, run_dir, printable(start.label))
        else:  # a kill may have come before it was written, or somebody's edit after it
            write_curve(job, run_dir)
        log_bytes = 0 if found is None else found.manifest["log_bytes"]["metrics.jsonl"]
        drawn = wishes.extend is not None
        return follow(job, run_dir, screen, requests, {**known, "exact": job.exact}, log_bytes, locks, drawn=drawn)


def _put_in_order(checkpoints: Path, found: format.Checkpoint | None, screen: Screen) -> None:
    """What a kill has left behind."""
    folder.sweep(checkpoints)
    if found is None:
        return
    folder.set_aside_after(checkpoints, found.step)
    if (lost := point_again(checkpoints, found)) is not None:
        screen.print(f"warning: {lost}, the best so far, is gone: evaluate has the last alone", "yellow")


def _begun(resumed: RunDir | None, world: World) -> RunDir | None:
    """The run to go on with: after a restart, the leading process says whether its torchrun began it."""
    if not world.restarts:
        return resumed
    name = told_by_the_leader("" if resumed is None else str(resumed), world)
    return RunDir(Path(name)) if name else None


def _pruned(run_dir: RunDir, keep: int) -> list[Path]:
    """Delete checkpoints that are no longer kept; returns those that no plan asks for.

    A kill may have come between a commit and this: where training goes back to is then the same all the same.
    """
    there = format.readable(run_dir.checkpoints)
    unplanned = [checkpoint.path for checkpoint in there if not checkpoint.manifest.get("planned", True)]
    folder.prune(run_dir.checkpoints, keep, unplanned)
    return unplanned


def _already_complete(job: Job, run_dir: RunDir, screen: Screen) -> int:
    early = job.state.step < job.recipe.total_steps
    _pruned(run_dir, job.config.checkpoint.keep)
    screen.print(f"already complete: {run_dir} ended at step {job.state.step:,}")
    if not early:
        total, per_epoch = job.recipe.total_steps, job.plan.steps_per_epoch
        key, length = ("steps", total) if job.config.steps else ("epochs", -(-total // per_epoch))
        longer = f"--set {key}={2 * length} --extend hold"
        screen.print(f"for longer: {again(run_dir, job.config)} {longer}", whole=True)
    if run_dir.read_status().get("state") != "done":  # killed after the last checkpoint, before it said so
        Status(run_dir, job.state, job.recipe.best).write("done", 0, "stopped early: no improvement" if early else None)
    return 0


def write_plan(job: Job, run_dir: RunDir, label: str) -> None:
    """Write config.yaml as resolved, and the LR as planned."""
    header = ORIGIN.format(printable(begun_with(run_dir) or label), lrtrain.__version__)
    then = "`--resume`" if run_dir.config.exists() else "begin anew, without --resume"
    write_atomically(run_dir.config, header + yaml.dump(job.config.dump()), then)
    write_curve(job, run_dir)


def write_curve(job: Job, run_dir: RunDir) -> None:
    """Write the LR of every step as it is planned now."""
    text = StringIO(newline="")
    write_csv(job.plan, text, CURVE_ROWS)
    write_atomically(run_dir.curve, text.getvalue())


def _checkpoint_bytes(job: Job) -> int:
    """About what a checkpoint takes on disk."""
    model = sum(t.numel() * t.element_size() for t in job.state.model.state_dict().values())
    slots = 2 if any("betas" in group for group in job.state.optimizer.param_groups) else 1
    return int(model * (1 + slots + (job.state.ema is not None)))


def _train_silently(job: Job, run_dir: RunDir, requests: Requests) -> int:
    """Train as the leading process does, which alone writes and prints."""
    asked_of_any(requests.stop)  # while the leading process waits for room on the disk
    requests.begin()
    while True:
        try:
            end = _trained(job, requests, [requests.seen])
        except NotFinite as error:
            job = roll_back(job, run_dir, error)
        else:
            job.batches.close()
            return EXIT_CODES.get(end.reason, 0) if isinstance(end, Stopped) else 0


def _trained(job: Job, requests: Requests, sinks: list[Sink]) -> Event:
    """Train to the end, or until something asks to stop: the last event."""
    end: Event = Finished(job.state.step)
    for end in train(job.state, job.plan, job.batches, job.recipe, requests):
        for sink in sinks:
            sink(end)
    return end


def follow(
    job: Job,
    run_dir: RunDir,
    screen: Screen,
    requests: Requests,
    known: Mapping[str, Any],
    log_bytes: int,
    locks: Sequence[Sink],
    *,
    drawn: bool = False,
) -> int:
    """Train a job into its run directory, while its locks hold, and tell how it ended.

    Its LR may have been `drawn` already.
    """
    show_plan(job, screen, run_dir, drawn=drawn)
    state, config = job.state, job.config
    _hand(SaveDue(state.step, best=False), locks)  # before anything is cut or deleted
    metrics, timing = Metrics(run_dir.metrics, log_bytes), Timing(run_dir.timing)
    unplanned = _pruned(run_dir, config.checkpoint.keep)
    checkpoints = Checkpoints(run_dir.checkpoints, state, config.checkpoint.keep, known, metrics.safe, unplanned, locks)
    status = Status(run_dir, state, job.recipe.best)
    command = again(run_dir, config)
    progress = Progress(screen, job.recipe.total_steps, job.plan.steps_per_epoch, state.step, len(job.groups) > 1)
    say = partial(screen.print, style="yellow")
    patience = Patience(config.checkpoint.disk_full_wait, say, asked_of_any(requests.stop))
    written: list[Sink] = [metrics, timing, checkpoints, status]
    sinks: list[Sink] = [progress, *locks, *(partial(patience.deliver, sink) for sink in written), requests.seen]
    with (
        noting(lambda error: with_kept(_note(error, status), run_dir, command)),
        _told(status, progress),
        closing(metrics),
        closing(timing),
        requests.ending(),
        naming_kept(run_dir, command),
        needing_workers(),
        needing_peers(state.world),
    ):
        requests.begin()
        if state.step == 0:
            # So that a run killed before its first checkpoint goes on as exactly as any other.
            _hand(SaveDue(0, best=False), sinks)
        while True:
            try:
                end = _trained(job, requests, sinks)
                break
            except NotFinite as error:
                progress.close()
                job = roll_back(job, run_dir, error, screen, metrics, patience)
                patience(partial(write_curve, job, run_dir))
                # What is decided is saved, so that a kill does not make it anew from another checkpoint.
                _hand(SaveDue(state.step, best=False), sinks)
            except Exception:
                # A data worker that died or an image that cannot be read costs no step that is done.
                with suppress(LrtrainError):
                    for event in save_after_fault(state, job.plan):
                        _hand(event, sinks)
                raise
    progress.close()
    job.batches.close()
    return _conclude(end, job, run_dir, screen, status)


def _hand(event: Event, sinks: Sequence[Sink]) -> None:
    for sink in sinks:
        sink(event)


@contextmanager
def _told(status: Status, progress: Progress) -> Iterator[None]:
    """An error on the way is written to status.json too."""
    try:
        yield
    except AtOnce as ended:
        progress.close()
        with suppress(LrtrainError):
            code = ended.code if isinstance(ended.code, int) else 1
            status.write("stopped", code, "stopped at once by a second signal; the last checkpoint is what is kept")
        raise
    except BaseException as error:
        progress.close()
        _note(error, status)
        raise


def _note(error: E, status: Status) -> E:
    if isinstance(error, LrtrainError):
        problem, code = error.problems[0], error.exit_code
    else:
        problem, code = no_bug(error) or (Problem(f"{type(error).__name__}: {error}"), 1)
    with suppress(LrtrainError):
        status.write("failed", code, problem.what)
    return error


def _conclude(end: Event | None, job: Job, run_dir: RunDir, screen: Screen, status: Status) -> int:
    code = 0
    trust = " --trust" if code_of(job.config) else ""
    screen.print()
    if isinstance(end, Stopped) and end.reason in EXIT_CODES:
        code = EXIT_CODES[end.reason]
        at = f"step {end.step:,} of {job.recipe.total_steps:,}"
        said = f"saved at {at}, nothing is lost"
        if not end.saved:
            said = f"the weights of {at} are not finite and were not saved: the last checkpoint is what is kept"
        status.write("stopped", code, f"saved after {end.reason}" if end.saved else said)
        screen.print(f"stopped by {end.reason}; {said}", "bold")
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
        ("next", again(run_dir, job.config) if code else f"lrtrain evaluate {run_dir.typed}{trust}"),
    ]
    screen.facts(rows)
    return code
