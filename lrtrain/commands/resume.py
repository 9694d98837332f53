"""What must hold before a run goes on: its checkpoint is whole, and nothing that the result depends on has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lrtrain import lookup
from lrtrain.build import Job
from lrtrain.checkpoint import folder, format
from lrtrain.checkpoint.format import Checkpoint
from lrtrain.checkpoint.manifest import COPY
from lrtrain.commands.origin import FACTS, flat, free_to_change
from lrtrain.commands.together import the_leaders
from lrtrain.config.load import load, resolve
from lrtrain.config.schema import Extension, RunConfig
from lrtrain.config.yaml import Document
from lrtrain.data.fingerprint import differences, fingerprint
from lrtrain.data.open import open_source
from lrtrain.data.source import Source
from lrtrain.engine.consistent import refuse_contradictions, refuse_other_story
from lrtrain.engine.state import ROLLBACK_FACTOR, TrainState, restore
from lrtrain.errors import CheckpointError, ConfigError, Problem, quoted
from lrtrain.schedule.plan import Plan, make_plan, run_steps
from lrtrain.sinks.console import Screen
from lrtrain.sinks.jsonl import refuse_other_log, rows
from lrtrain.sinks.plan_view import show_extension
from lrtrain.sinks.run_dir import RunDir
from lrtrain.world import World

MOST_DIFFERENCES = 10
_LENGTH = ("epochs", "steps", "extended")
# Where our own datasets take their images, and the lists of them, from.
_PLACES = tuple(f"dataset.{key}" for key in ("root", "manifest", "skip_list", "classes", "train", "val", "test"))

# Where torchvision's do; what the arguments of one's own mean, nobody knows.
_ROOTS = ("dataset.root", *(f"dataset.splits.{split}.root" for split in ("train", "val", "test")))

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
    began = load(run_dir.config)
    kept = {key: getattr(began, key) for key in _LENGTH}
    if found is None:
        if wishes.extend is not None:
            what = f"--extend {wishes.extend}: the run had not saved anything yet, so there is nothing to extend"
            hint = f"lrtrain fit --resume --out {run_dir.typed}, and extend it once it has trained"
            raise ConfigError(what, hint=hint)
        return config
    made = refuse_edits(found, began, run_dir)
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
        hint = f"`lrtrain fit --resume --out {run_dir.typed}` goes on with that: extend it once more then"
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


def refuse_edits(found: Checkpoint, began: RunConfig, run_dir: RunDir) -> RunConfig:
    """The config that a checkpoint was made with; refused where config.yaml says something else.

    Between them may lie an extension that no checkpoint has been saved in yet.

    Raises:
        ConfigError: config.yaml was edited.
        CheckpointError: the manifest's config is none.
    """
    try:
        made = resolve(Document(str(found.path / "manifest.json"), found.manifest["config"]))
    except ConfigError as error:
        what = f"the manifest's config is not one: {error.problems[0].what}"
        raise CheckpointError(what, str(found.path), COPY) from error
    earlier, later = made.extended or (), (began.extended or ())[len(made.extended or ()) :]
    is_longer = (began.extended or ())[: len(earlier)] == earlier and all(e.at >= found.step for e in later)
    _refuse_differences(
        made,
        began,
        ("extended",) if is_longer else (),
        f"{{key}} is {{new}} in config.yaml, and was {{old}} when {found.path.name} was saved",
        "config.yaml is written by lrtrain: put the value back; to train otherwise, begin another run: "
        f"lrtrain fit {run_dir.config} --out DIR",
    )
    return made


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
    _refuse_differences(
        began,
        job.config,
        _LENGTH if wishes.extend else (),
        "{key} was {old} when the run began and is {new} now",
        f"a run is continued as it began (only {free} and where its images lie may change): "
        f"lrtrain fit --resume --out {run_dir.typed}",
    )
    if found is None:
        return job
    exact = _compared(found, job, known, allowed=wishes.allow_inexact)
    job = replace(job, exact=exact)
    restore(job.state, job.plan, found)
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
    if screen is not None:
        if wishes.extend:
            show_extension(_before(job), job.plan, wishes.extend or "", screen)
        screen.print(f"resuming {run_dir} at step {job.state.step:,} of {job.recipe.total_steps:,}")
        if not exact:
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


def _refuse_differences(before: RunConfig, now: RunConfig, free: Sequence[str], what: str, hint: str) -> None:
    """Refuse configs that differ in more than what may change always, and what is `free` now.

    Args:
        before: the earlier config.
        now: the later one, whose lines errors point to.
        free: further keys.
        what: the error, with places for `key`, `old` and `new`.
        hint: how to mend it.
    """
    old, new = flat(before.dump()), flat(now.dump())
    # The images are held against those of then by their names and sizes, wherever they lie.
    name = before.dataset.name
    moved = _PLACES if name in lookup.ours("dataset") else () if lookup.is_path(name) else _ROOTS
    free = (*free_to_change(before), *free, *moved)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and key not in free]
    if changed:
        raise ConfigError(
            Problem(
                what.format(key=key, old=quoted(old.get(key, "absent")), new=quoted(new.get(key, "absent"))),
                now.where(*key.split(".")),
                hint,
            )
            for key in changed
        )


def refuse_other_data(found: Checkpoint | None, config: RunConfig) -> None:
    """After a job could not be built: whether that is because the dataset is another one.

    Raises:
        CheckpointError: it is, and how.
        LrtrainError: it cannot be opened.
    """
    if found is not None:
        source = open_source(config.dataset, config.seed, config.where)
        _refuse_other_data(found, source, fingerprint(source))


def _refuse_other_data(found: Checkpoint, source: Source, now: Mapping[str, Any]) -> None:
    if changed := _of_the_data(found, source, now):
        raise CheckpointError(
            "the dataset is not the one that the run began with:\n" + "\n".join(changed[:MOST_DIFFERENCES]),
            str(found.path),
            "restore the dataset, or start a new run",
        )


def _of_the_data(found: Checkpoint, source: Source, now: Mapping[str, Any]) -> list[str]:
    before, classes = found.manifest["classes"], list(source.classes)
    lost, new = [c for c in before if c not in classes], [c for c in classes if c not in before]
    said = [
        f"{len(names)} of its classes are {word}: {', '.join(map(quoted, names[:4]))}{' ...' * (len(names) > 4)}"
        for names, word in ((lost, "gone"), (new, "new"))
        if names
    ]
    if not said and before != classes:
        said = ["the order of its classes differs"]
    try:
        return said or differences(found.manifest["dataset"], now)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise CheckpointError(f"the manifest's dataset cannot be read: {error}", str(found.path), COPY) from error


def _compared(found: Checkpoint, job: Job, known: Mapping[str, Any], *, allowed: bool) -> bool:
    """Whether the same bits can come out here; refused where they cannot and nobody allowed it."""
    began, now = found.manifest["origin"], known["origin"]
    if found.manifest["seed"] != job.config.seed or found.manifest["channels"] != job.source.channels:
        raise CheckpointError(
            "the checkpoint is of another run: seed or channels differ", str(found.path), "name its own directory"
        )
    _refuse_other_data(found, job.source, known["dataset"])
    if (said := found.manifest["steps_per_epoch"]) != job.plan.steps_per_epoch:
        what = f"the manifest's steps_per_epoch is {said:,}, and an epoch has {job.plan.steps_per_epoch:,} steps"
        raise CheckpointError(what, str(found.path), COPY)
    differ = [f"{key}: {began.get(key)!r} then, {now[key]!r} now" for key in now if began.get(key) != now[key]]
    if differ and not allowed:
        threads = f"set OMP_NUM_THREADS={began['threads']}; or " if began["threads"] != now["threads"] else ""
        raise CheckpointError(
            "the results would not be the same bits as those of an uninterrupted run:\n" + "\n".join(differ),
            str(found.path),
            f"{threads}go on all the same with --allow-inexact, which the checkpoints will say for ever",
        )
    return bool(found.manifest.get("exact", True)) and not differ
