"""`lrtrain evaluate RUN`: loss and accuracy of what a run has saved."""

from __future__ import annotations

import json as json_module
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from lrtrain.build import Job, build
from lrtrain.checkpoint import format
from lrtrain.commands.changes import MOST_DIFFERENCES, changes_of_data, refuse_edits
from lrtrain.config.load import load
from lrtrain.config.schema import RunConfig
from lrtrain.data.batches import Batch
from lrtrain.data.fingerprint import fingerprint
from lrtrain.engine.evaluate import answer, evaluate
from lrtrain.engine.events import Metrics
from lrtrain.engine.fits import refuse_larger
from lrtrain.engine.state import load_module
from lrtrain.errors import CheckpointError, ConfigError, DataError, printable
from lrtrain.sinks.console import Screen
from lrtrain.sinks.run_dir import RunDir, refuse_unwritable
from lrtrain.writing import write_atomically

MOST_CLASSES = 50
_TRIES = 5  # to load from a run that trains meanwhile


def run(path: Path, config: RunConfig, split: str, which: str, json: Path | None) -> None:
    """Evaluate one split with one checkpoint; print, and write JSON where asked."""
    refuse_unwritable(json, "--json")
    screen = Screen()
    job, checkpoint = _ready(RunDir(path), config, which, split, screen)
    metrics, seen, right = _measure(job, split)
    screen.facts(
        [
            ("run", f"{path}, {checkpoint.path.name} ({which})"),
            ("split", f"{split}, {metrics.images:,} images"),
            ("loss", f"{metrics.loss:.4f}"),
            ("acc1", f"{metrics.acc1:.4f}"),
            *([("acc5", f"{metrics.acc5:.4f}")] if len(job.source.classes) > 5 else []),
        ]
    )
    screen.print()
    screen.print(_by_class(job.source.classes, seen, right))
    if json is not None:
        classes = job.source.classes
        named = Counter(classes)
        by_class = {
            name if named[name] == 1 else f"{name} ({i})": {"images": n, "acc1": k / n if n else None}
            for i, (name, n, k) in enumerate(zip(classes, seen, right, strict=True))
        }
        write_atomically(
            json,
            json_module.dumps(
                {
                    "run": str(path),
                    "checkpoint": checkpoint.path.name,
                    "step": checkpoint.step,
                    "split": split,
                    "images": metrics.images,
                    "loss": metrics.loss if math.isfinite(metrics.loss) else None,
                    "acc1": metrics.acc1,
                    "acc5": metrics.acc5,
                    "classes": by_class,
                },
                indent=1,
                allow_nan=False,
            )
            + "\n",
            then="try again",
        )
        screen.print(f"\nwrote {json}")


def _ready(run_dir: RunDir, config: RunConfig, which: str, split: str, screen: Screen) -> tuple[Job, format.Checkpoint]:
    """The network with the weights that are evaluated, and the checkpoint that has them."""
    job, tries = None, _TRIES
    while True:
        try:
            checkpoint = _checkpoint(run_dir, which, screen)
            own = load(run_dir.config)
            refuse_edits(checkpoint, own, run_dir)
            _refuse_other_held_out(config, own)
            refuse_larger(config, checkpoint)
            job = job or build(config, load_weights=False, trains=False)
            if split != "test":
                _refuse_moved_hold_out(job, own, checkpoint, screen)
            _load(job, checkpoint)
            return job, checkpoint
        except CheckpointError:
            tries -= 1
            if not tries or run_dir.read_status().get("state") != "running":
                raise  # else the run may have deleted it meanwhile, and has a newer one


def _refuse_other_held_out(config: RunConfig, own: RunConfig) -> None:
    """Of the run's own data another seed or `val_fraction` holds out images that were trained on."""
    if _data_of(config) != _data_of(own):
        return
    asked, trained = ((c.seed, c.dataset.val_fraction) for c in (config, own))
    if asked != trained and (asked[1] is not None or trained[1] is not None):
        what = "seed {}, val_fraction {}".format
        raise ConfigError(
            f"{what(*asked)} would hold out other images than were held out while training ({what(*trained)})",
            hint="leave both as they are; `--set dataset.root=FOLDER` evaluates other images",
        )


def _data_of(config: RunConfig) -> tuple[Any, ...]:
    """What the images are that val is held out of."""
    dataset, others = config.dataset, ("skip_list", "classes", "test", "download")
    return dataset.name, dataset.root, {key: value for key, value in dataset.args.items() if key not in others}


def _refuse_moved_hold_out(job: Job, own: RunConfig, checkpoint: format.Checkpoint, screen: Screen) -> None:
    """Which images `val_fraction` holds out of train depends on all of them: of other ones some were trained on.

    Elsewhere than where the run's images were, and where there are as many as then, nobody can tell whether others are
    held out: by their names, and their sizes may differ alone. That is said.

    Raises:
        DataError: the run's own data has other images now, or a skip list leaves others out.
    """
    if job.config.dataset.val_fraction is None:
        return
    now = fingerprint(job.source)
    changed = changes_of_data(checkpoint, job.source, now)
    same_classes = checkpoint.manifest["classes"] == list(job.source.classes)  # else the rest was not looked at
    as_many = same_classes and _counts(now) == _counts(checkpoint.manifest["dataset"])
    if changed and not as_many and _data_of(job.config) == _data_of(own):
        raise DataError(
            "images were added or left out since training, so that `val_fraction` now holds out some that were trained "
            "on:\n" + "\n".join(changed[:MOST_DIFFERENCES]),
            hint="restore the dataset and its skip list; `--set dataset.root=FOLDER` evaluates other images",
        )
    if changed and same_classes:
        screen.print(
            f"warning: these are not the run's images as they were ({changed[0]}): if some are the same, "
            "`val_fraction` may hold out now what was trained on",
            "yellow",
        )


def _counts(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[tuple[str, str], Any]:
    """How many images each class of train and val has."""
    return {(split, name): part["images"] for split in ("train", "val") for name, part in parts.get(split, {}).items()}


def _measure(job: Job, split: str) -> tuple[Metrics, list[int], list[int]]:
    classes = len(job.source.classes)
    seen, right = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)

    def count(logits: Tensor, batch: Batch) -> None:
        labels = batch.labels.cpu()
        seen.add_(torch.bincount(labels, minlength=classes))
        right.add_(torch.bincount(labels[answer(logits).cpu() == labels], minlength=classes))

    images = {"train": job.source.train, "val": job.source.val, "test": job.source.test}[split]
    if images is None:
        raise DataError(
            f"the dataset has no {split} split beside the one that is evaluated while training", hint="--split val"
        )
    steps = evaluate(
        job.state.evaluated,
        job.batches.evaluate(split),
        len(images),
        job.recipe.precision,
        each=count,
        flip=job.recipe.flip,
        seed=job.recipe.seed,
    )
    with tqdm(total=len(images), desc="evaluating", unit="img", leave=False, disable=None, dynamic_ncols=True) as bar:
        metrics = _exhaust(steps, bar)
    job.batches.close()
    return metrics, seen.tolist(), right.tolist()


def _exhaust(steps: Iterator[Any], bar: tqdm[Any]) -> Metrics:
    while True:
        try:
            bar.update(next(steps).done - bar.n)
        except StopIteration as end:
            metrics: Metrics = end.value
            return metrics


def _load(job: Job, checkpoint: format.Checkpoint) -> None:
    """Put a checkpoint's weights into the job's network."""
    if checkpoint.manifest.get("classes") != list(job.source.classes):
        raise CheckpointError("the dataset's classes are not those that the run was trained on", str(checkpoint.path))
    load_module(job.state.evaluated, checkpoint, "model" if job.state.ema is None else "ema", job.state.infinite)


def _checkpoint(run_dir: RunDir, which: str, screen: Screen) -> format.Checkpoint:
    """The newest that is whole, or the one that it names as the best: a kill may have left the pointers behind."""
    root = run_dir.checkpoints
    if not format.there_are(root):
        raise CheckpointError("the run has no checkpoint yet", str(root), "train it first: lrtrain fit CONFIG")
    last, damaged = format.newest(root)
    for name, why in damaged.items():
        screen.print(f"warning: {name} is damaged, the one before is used: {why}", "yellow")
    if which == "last":
        return last
    if last.manifest["best"]["value"] is None:
        raise CheckpointError("the run has no best checkpoint yet", str(root), "--checkpoint last")
    step = last.manifest["best"]["step"]
    try:
        return last if step == last.step else format.verify(root / f"step-{step:08d}")
    except CheckpointError as error:
        what = f"the best checkpoint, step-{step:08d}, cannot be used: {error.problems[0].what}"
        raise CheckpointError(
            what, str(root), "--checkpoint last takes the newest; or restore it from a copy"
        ) from error


def _by_class(classes: Sequence[str], seen: Sequence[int], right: Sequence[int]) -> Table:
    """Accuracy by class, the worst first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class, worst first", overflow="fold")
    table.add_column("images", justify="right")
    table.add_column("acc1", justify="right")
    rows = sorted((k / n if n else 1.0, name, n) for name, n, k in zip(classes, seen, right, strict=True))
    for accuracy, name, n in rows[:MOST_CLASSES]:
        table.add_row(printable(name), f"{n:,}", f"{accuracy:.4f}" if n else "")
    if len(rows) > MOST_CLASSES:
        table.add_row(f"and {len(rows) - MOST_CLASSES} more", "", "")
    return table
