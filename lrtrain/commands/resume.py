"""What must hold before a run goes on: its checkpoint is whole, and nothing that the result depends on has changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lrtrain.build import Job, build
from lrtrain.checkpoint import folder, format
from lrtrain.checkpoint.format import Checkpoint
from lrtrain.checkpoint.manifest import COPY
from lrtrain.commands.changes import refuse_differences, refuse_edits, refuse_other_data, weights_moved
from lrtrain.commands.origin import FACTS, free_to_change
from lrtrain.commands.start import again
from lrtrain.commands.together import the_leaders
from lrtrain.config.load import load
from lrtrain.config.schema import Extension, RunConfig
from lrtrain.data.fingerprint import fingerprint
from lrtrain.data.open import open_source
from lrtrain.engine.consistent import refuse_contradictions, refuse_other_story
from lrtrain.engine.fits import refuse_larger
from lrtrain.engine.state import ROLLBACK_FACTOR, TrainState, restore, tensors_as_built
from lrtrain.errors import CheckpointError, ConfigError, quoted
from lrtrain.models.weights import normalisation_of, trained_with
from lrtrain.schedule.plan import Plan, make_plan, run_steps
from lrtrain.sinks.console import Screen
from lrtrain.sinks.jsonl import refuse_other_log, rows
from lrtrain.sinks.plan_view import show_extension
from lrtrain.sinks.run_dir import RunDir
from lrtrain.world import World

_LENGTH = ("epochs", "steps", "extended")
_MOST_SHOWN = 4

Policy = Literal["hold", "rescale", "restart"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person says about how a run goes on.

    Attributes:
        extend: how the LR goes on where the config asks for a longer run.
        allow_inexact: go on though the results will not be the bits of an uninterrupted run.
    """

    extend: Policy | None = None
    allow_inexact: bool = False


NO_WISHES = Wishes()


def find(run_dir: RunDir, screen: Screen | None, world: World) -> Checkpoint | None:
    """The checkpoint to go on from, the same in every process; None where the run ended before it saved anything.

    Args:
        run_dir: locked by the leading process, which puts things in order: it has a `screen`.
        screen: is told of damaged checkpoints.
        world: the processes.

    Raises:
        CheckpointError: checkpoints were there, and none is whole; or this process has not the leading one's.
    """
    newest = None
    if screen is not None:
        folder.put_back(run_dir.checkpoints)
        newest = _newest(run_dir, screen)
    found = the_leaders(newest, run_dir.checkpoints, world)
    return None if found is None else _complete(found)


def _complete(found: Checkpoint) -> Checkpoint:
    """Refuse a checkpoint that does not say where it comes from; for its state, `restore` asks."""
    missing = [key for key in (*FACTS, "planned", "log_bytes", "log_sha256") if key not in found.manifest]
    if missing:
        raise CheckpointError(f"the manifest lacks {', '.join(missing)}", str(found.path), COPY)
    return found


def _newest(run_dir: RunDir, screen: Screen) -> Checkpoint | None:
    logged = run_dir.metrics.exists() and run_dir.metrics.stat().st_size > 0
    began = logged or run_dir.read_status().get("last_checkpoint") is not None
    if not began and not any(run_dir.checkpoints.glob("*step-*")):
        screen.print("nothing had been saved yet: this run begins at its first step")
        return None
    odd: list[CheckpointError] = []

    def fits_the_log(checkpoint: Checkpoint) -> None:
        try:
            if odd and checkpoint.step == 0:
                raise CheckpointError("nothing of the log fits, and from here the run would begin from scratch")
            refuse_other_log(run_dir.metrics, checkpoint)
        except CheckpointError as error:
            odd.append(error)
            raise

    checkpoint, damaged = format.newest(run_dir.checkpoints, also=fits_the_log)
    for name, why in damaged.items():
        screen.print(f"warning: {name} is damaged, the one before is used: {why}", "yellow")
    return checkpoint


def lengthened(config: RunConfig, run_dir: RunDir, found: Checkpoint | None, wishes: Wishes) -> RunConfig:
    """The config with the run's length as its directory says, and longer where that is wished.

    Raises:
        ConfigError: it would not be longer, or it would and no policy is given, or it has not begun.
    """
    if config.overridden("extended"):
        what = "`extended` says how the run was made longer, and is not set at resume"
        hint = "--extend hold, rescale or restart, with --set epochs or steps"
        raise ConfigError(what, config.where("extended"), hint)
    began = load(run_dir.config)
    kept = {key: getattr(began, key) for key in _LENGTH}
    if found is None:
        if wishes.extend is not None:
            what = f"--extend {wishes.extend}: the run had not saved anything yet, so there is nothing to extend"
            hint = f"{again(run_dir, config)}, and extend it once it has trained"
            raise ConfigError(what, hint=hint)
        return config
    made = refuse_edits(found, began, run_dir)
    if weights_moved(
        began.model.weights, config.model.weights
    ):  # they are not looked at: the run says what it began with
        config = config.model_copy(update={"model": config.model.model_copy(update={"weights": began.model.weights})})
    per_epoch, total = found.manifest["steps_per_epoch"], found.manifest["total_steps"]
    if (planned := run_steps(made, per_epoch)) != total:
        what = f"the manifest's total_steps is {total:,}, and by its config the run has {planned:,} steps"
        raise CheckpointError(what, str(found.path), COPY)
    wanted = run_steps(config.model_copy(update={"extended": None}), per_epoch)
    first = run_steps(began.model_copy(update={"extended": None}), per_epoch)
    key = "steps" if config.steps else "epochs"
    last = began.extended[-1] if began.extended else None
    if wishes.extend is not None and last is not None and (last.policy, last.steps) == (wishes.extend, wanted):
        return config.model_copy(update=kept)  # it was extended so already, and interrupted since
    if wishes.extend is not None and last is not None and len(began.extended or ()) > len(made.extended or ()):
        what = f"the run was extended to {last.steps:,} steps by {last.policy} already, and {found.path.name} is older"
        hint = f"`{again(run_dir, config)}` goes on with that: extend it once more then"
        raise ConfigError(what, str(run_dir.config), hint)
    if wishes.extend is not None:
        if wanted <= total:
            what = (
                f"the run has {total:,} steps, and {key}: {getattr(config, key)} makes {wanted:,}: that is not longer"
            )
            hint = f"--set {key}={2 * total // (per_epoch if key == 'epochs' else 1)}, for example"
            raise ConfigError(what, config.where(key), hint)
        extension = Extension(policy=wishes.extend, at=found.step, steps=wanted)
        return config.model_copy(update={**kept, "extended": (*(made.extended or ()), extension)})
    if wanted in (total, first) or (last is not None and wanted == last.steps):
        return config.model_copy(update=kept)
    if wanted > total:
        raise ConfigError(
            f"the run was planned for {total:,} steps, and {key}: {getattr(config, key)} makes {wanted:,}: "
            "how the LR goes on must be said",
            config.where(key),
            "--extend hold (the last LR stays), rescale (the same schedule, stretched over the longer run) or "
            "restart (the schedule once more over the further steps)",
        )
    return config


def built(config: RunConfig, found: Checkpoint | None, *, world: World) -> Job:
    """The job of a config, which is the run's own or one that a person wrote.

    A checkpoint has all weights. Those that the run started from are not looked at: they may be gone, or others now.

    Raises:
        LrtrainError: see `build`; of a checkpoint, that its dataset is another one.
    """
    known = None
    if found is not None:
        refuse_larger(config, found)
    if found is not None and (config.model.weights is not None or config.model.pretrained):
        # Numbers alone: lists of transforms of a foreign run may name code.
        known = normalisation_of(trained_with(found.manifest["config"], ("val", "train")), str(found.path))
    try:
        return build(config, load_weights=found is None, trained_with=known, world=world)
    except ConfigError:
        _refuse_moved_on(found, config)
        raise


def continued(
    job: Job, run_dir: RunDir, found: Checkpoint | None, known: Mapping[str, Any], wishes: Wishes, screen: Screen | None
) -> Job:
    """The job with the checkpoint's state, after everything else was found to be as it was.

    Args:
        job: built, at step 0.
        run_dir: the run's.
        found: its checkpoint.
        known: what this process would write into one, `facts`.
        wishes: what may be different.
        screen: of the leading process.

    Raises:
        ConfigError: the config differs where the result depends on it.
        CheckpointError: so does the machine, the dataset or the number of processes.
    """
    began = load(run_dir.config)
    free = ", ".join(free_to_change(began))
    extended = job.config.extended if wishes.extend else began.extended
    refuse_differences(
        began,
        job.config,
        (
            *(_LENGTH if wishes.extend else ()),
            *["model.weights"] * weights_moved(began.model.weights, job.config.model.weights),
        ),
        "{key} was {old} when the run began and is {new} now",
        f"a run is continued as it began (only {free} and where its images lie may change): "
        f"{again(run_dir, job.config)}",
    )
    if found is None:
        return job
    job = replace(job, exact=_compared(found, job, known, wishes))
    restore(job.state, job.plan, found)
    job.state.built = tensors_as_built(job.state.model)  # some of it may be computed from what was loaded
    factor = ROLLBACK_FACTOR if job.config.on_nonfinite == "rollback" else None
    refuse_contradictions(job.state, job.recipe, job.config.batch_size, factor, found)
    refuse_other_story(job.state, job.recipe, partial(rows, run_dir.metrics, found), found)
    if extended != began.extended and _stopped_early(job):
        rule = job.recipe.early_stop
        raise ConfigError(
            f"the run was stopped early, at step {job.state.step:,}, and would be again: it cannot be extended",
            job.config.where("early_stop"),
            f"begin another run with more patience than {rule.patience if rule else 0}, or without early_stop",
        )
    job = replace(job, plan=_lowered(job.plan, job.state))
    if other := _other_lr(job.plan, next(rows(run_dir.metrics, found, "train"), None), found):
        _refuse_inexact(found, [other], "undo what was changed, such as a scheduler of your own; or", wishes)
        job = replace(job, exact=False)
    if screen is not None:
        if wishes.extend:
            show_extension(_before(job), job.plan, wishes.extend or "", screen)
        screen.print(f"resuming {run_dir} at step {job.state.step:,} of {job.recipe.total_steps:,}")
        if not job.exact:
            screen.print("note: not exact: the bits are not those of an uninterrupted run", "yellow")
    return job


def _before(job: Job) -> Plan:
    """The plan before the last extension."""
    earlier = (job.config.extended or ())[:-1]
    config = job.config.model_copy(update={"extended": earlier or None})
    return _lowered(make_plan(config, job.plan.groups, job.plan.steps_per_epoch), job.state)


def _lowered(plan: Plan, state: TrainState) -> Plan:
    """The plan as it is since training went back."""
    for rollback in state.rollbacks:
        plan = plan.lowered(rollback.to, rollback.factor)
    return plan


def is_complete(job: Job) -> bool:
    """Whether there is nothing left to train."""
    return not job.state.pending and (job.state.step >= job.recipe.total_steps or _stopped_early(job))


def _stopped_early(job: Job) -> bool:
    rule = job.recipe.early_stop
    return rule is not None and job.state.early.stale >= rule.patience


def _refuse_moved_on(found: Checkpoint | None, config: RunConfig) -> None:
    """After a job could not be built: whether that is because the dataset is another one.

    Raises:
        CheckpointError: it is, and how.
        LrtrainError: it cannot be opened.
    """
    if found is not None:
        source = open_source(config.dataset, config.seed, config.where)
        refuse_other_data(found, source, fingerprint(source))


def _other_lr(plan: Plan, row: Mapping[str, Any] | None, found: Checkpoint) -> str | None:
    """How the plan differs, in words, from the LR that a step was logged to train with; None where it does not."""
    if row is None:
        return None
    step, logged = row.get("step"), row.get("lr")
    if type(step) is not int or not 0 < step <= found.step or not isinstance(logged, dict):
        what = f"metrics.jsonl is not this run's: it says {quoted(row)}"
        raise CheckpointError(what, str(found.path), "restore the whole run directory from a copy")
    if plan.live_from is not None and step > plan.live_from:
        return None
    named = zip((group.name for group in plan.groups), plan.lrs(step - 1, None), strict=True)
    other = next(((name, lr) for name, lr in named if logged.get(name) != lr), None)
    return other and f"LR of {quoted(other[0])} in step {step:,}: {logged.get(other[0])!r:.40} then, {other[1]} now"


def _compared(found: Checkpoint, job: Job, known: Mapping[str, Any], wishes: Wishes) -> bool:
    """Whether the same bits can come out here; refused where they cannot and nobody allowed it."""
    began, now = found.manifest["origin"], known["origin"]
    if found.manifest["seed"] != job.config.seed or found.manifest["channels"] != job.source.channels:
        raise CheckpointError(
            "the checkpoint is of another run: seed or channels differ", str(found.path), "name its own directory"
        )
    refuse_other_data(found, job.source, known["dataset"])
    if (said := found.manifest["steps_per_epoch"]) != job.plan.steps_per_epoch:
        what = f"the manifest's steps_per_epoch is {said:,}, and an epoch has {job.plan.steps_per_epoch:,} steps"
        raise CheckpointError(what, str(found.path), COPY)
    differ = [
        f"{key}: {repr(began[key]) if key in began else 'not recorded'} then, {now[key]!r} now"
        for key in now
        if key not in began or began[key] != now[key]
    ]
    if differ:
        alone = ", and unset MKL_NUM_THREADS" if "MKL_NUM_THREADS" in os.environ else ""
        threads = f"set OMP_NUM_THREADS={began['threads']}{alone}; or" if began["threads"] != now["threads"] else ""
        kernels = "set those variables as they were then; or" if began.get("kernels") != now["kernels"] else ""
        _refuse_inexact(found, differ, threads or kernels, wishes)
    return bool(found.manifest.get("exact", True)) and not differ


def _refuse_inexact(found: Checkpoint, differ: Sequence[str], instead: str, wishes: Wishes) -> None:
    if not wishes.allow_inexact:
        more = [f"and {len(differ) - _MOST_SHOWN} more"] if len(differ) > _MOST_SHOWN else []
        shown = "\n".join([*differ[:_MOST_SHOWN], *more])
        raise CheckpointError(
            f"the results would not be the same bits as those of an uninterrupted run:\n{shown}",
            str(found.path),
            f"{instead} go on all the same with --allow-inexact, which the checkpoints will say for ever".lstrip(),
        )
