"""Mutation test: bugs are planted in a copy of lrtrain, one at a time, and a part of the matrix must catch each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lrtrain
from torture_parts.case import Case, numbered
from torture_parts.lab import Lab
from torture_parts.sections import damage, faults, invariance, kills, order
from torture_parts.trial import Trial

QUICK = ("rename before fsync", "EMA's count is dropped", "off-by-one LR", "no log truncation", "NaN kept as best")


@dataclass(frozen=True)
class Bug:
    """`old` must be found exactly once in `file`, and becomes `new`; then `caught_by` must find a problem."""

    name: str
    file: str
    old: str
    new: str
    how: str
    caught_by: Callable[[Trial], None]


def _variant_killed(variant: str, step: int) -> Callable[[Trial], None]:
    return partial(kills._variant_at_step, variant, step)


BUGS = (
    Bug(
        "fsync is skipped",
        "checkpoint/format.py",
        "    os.fsync(file.fileno())\n",
        "",
        "order of the changes",
        order._whole,
    ),
    Bug(
        "rename before fsync",
        "checkpoint/format.py",
        "        sync_folder(temporary)\n",
        "",
        "order of the changes",
        order._whole,
    ),
    Bug(
        "EMA's count is dropped",
        "engine/state.py",
        '            state.ema.n_averaged.fill_(manifest["ema_updates"])\n',
        "",
        "SIGKILL at a step",
        partial(kills._at_step, 25),
    ),
    Bug(
        "best is dropped",
        "engine/state.py",
        '_best(manifest["best"])',
        "Best()",
        "SIGKILL at a step",
        partial(kills._at_step, 25),
    ),
    Bug(
        "off-by-one LR",
        "engine/train.py",
        "plan.write(state.optimizer, state.step, state.live)",
        "plan.write(state.optimizer, max(state.step - 1, 0), state.live)",
        "LRs against the plan",
        partial(kills._at_step, 25),
    ),
    Bug(
        "LR clock per micro-batch",
        "engine/train.py",
        "plan.write(state.optimizer, state.step, state.live)",
        "plan.write(state.optimizer, min(state.step * recipe.accumulate, recipe.total_steps - 1), state.live)",
        "LRs against the plan",
        partial(kills._at_step, 25),
    ),
    Bug(
        "one batch is skipped after resuming",
        "data/batches.py",
        "for step in range(start, stop))",
        "for step in (start, *range(start + 1 + (start > 0), stop), *[stop - 1] * (start > 0))[: stop - start])",
        "SIGKILL at a step",
        partial(kills._at_step, 25),
    ),
    Bug(
        "evaluation draws from the global generator",
        "engine/evaluate.py",
        "                logits = model(batch.images).float()\n",
        "                logits = model(batch.images + 0.01 * torch.randn_like(batch.images)).float()\n",
        "SIGTERM in evaluation",
        partial(faults._signal, "SIGTERM", 143, {"at_evaluation": 7}, 40),
    ),
    Bug(
        "augmentation is seeded by the worker",
        "data/transforms.py",
        'key(self.seed, "augment", self.epoch, "sample", index)',
        'key(self.seed, "augment", self.epoch, "sample", index, getattr(torch.utils.data.get_worker_info(), "id", 0))',
        "batches of 2 workers",
        partial(invariance._batches, "fork", 2),
    ),
    Bug(
        "no log truncation",
        "sinks/jsonl.py",
        "        self._file.truncate(length)\n",
        "",
        "SIGKILL at a step",
        partial(kills._at_step, 25),
    ),
    Bug(
        "every rank loads the first one's sums",
        "engine/state.py",
        "        if state.world.leads:\n            state.losses.sums.copy_(",
        "        if True:\n            state.losses.sums.copy_(",
        "two ranks, SIGKILL at a step",
        _variant_killed("two ranks", 18),
    ),
    Bug(
        "fallback to scratch",
        "commands/resume.py",
        "    checkpoint, damaged = format.newest(run_dir.checkpoints, also=fits_the_log)\n",
        "    try:\n        checkpoint, damaged = format.newest(run_dir.checkpoints, also=fits_the_log)\n"
        "    except CheckpointError:\n        return None\n",
        "every checkpoint damaged",
        damage._all_damaged,
    ),
    Bug(
        "NaN kept as best",
        "engine/train.py",
        "better = math.isfinite(value) and (",
        "better = (",
        "NaN in an evaluation",
        damage._nan_is_not_best,
    ),
    Bug(
        "class map by the order of folders",
        "data/sources/imagefolder.py",
        "tuple(sorted({*known, *strange}))",
        'tuple(sorted({*known, *strange}, key=__import__("os").listdir(train.root).index))',
        "folders listed in another order",
        invariance._strange_folders,
    ),
    Bug(
        "scaler is not restored",
        "engine/state.py",
        '            state.scaler.load_state_dict(manifest["scaler"])\n',
        "            pass\n",
        "fp16, SIGKILL at a step",
        _variant_killed("fp16", 25),
    ),
)


def planted(lab: Lab) -> list[Case]:
    """Each bug, and what must catch it without one."""
    bugs = [bug for bug in BUGS if bug.name in QUICK] if lab.quick else BUGS
    return numbered("planted", [(f"{bug.name}; to be caught by {bug.how}", partial(_plant, bug)) for bug in bugs])


def _plant(bug: Bug, trial: Trial) -> None:
    trial.found.counts["bugs planted"] += 1
    bug.caught_by(trial)
    if trial.found.problems:
        trial.problem(f"this was without the bug, so that {bug.how} says nothing about it")
        return
    trial.found.counts.subtract({"kills": trial.found.counts["kills"]})
    sick = trial.beside(patched(bug, trial.folder / "package"), "sick")
    bug.caught_by(sick)
    if not sick.found.problems:
        trial.problem(f"{bug.how} does not catch it")
        return
    trial.found.counts["bugs caught"] += 1
    trial.found.notes.append(
        f"planted: {bug.name}\n  in      lrtrain/{bug.file}: {_short(bug.old)} -> {_short(bug.new) or '(nothing)'}\n"
        f"  caught  by {bug.how}: {sick.found.problems[0]}"
    )


def patched(bug: Bug, package: Path) -> Path:
    """A copy of lrtrain with the bug.

    Raises:
        ValueError: the code is another one than the bug was written for.
    """
    shutil.copytree(Path(lrtrain.__file__).parent, package / "lrtrain", ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "lrtrain" / bug.file
    text = file.read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.name!r}: lrtrain/{bug.file} has {text.count(bug.old)} times {bug.old!r}, not once")
    file.write_text(text.replace(bug.old, bug.new))
    return package


def _short(code: str) -> str:
    return " ".join(code.split())[:110]
