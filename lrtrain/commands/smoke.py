"""`lrtrain fit --smoke`: a few steps of everything, for CI."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lrtrain.build import Job, build
from lrtrain.checkpoint import format
from lrtrain.config.schema import RunConfig
from lrtrain.data.batches import Batch
from lrtrain.engine.evaluate import evaluate
from lrtrain.engine.state import restore, snapshot
from lrtrain.engine.train import train
from lrtrain.errors import CheckpointError
from lrtrain.sinks.console import Screen
from lrtrain.sinks.plan_view import show_plan

# Steps at most, half of them before the resume; images of each step, or two a part where `accumulate` makes that more,
# since BatchNorm needs them; batches evaluated.
STEPS, IMAGES, EVAL_BATCHES = 4, 8, 2


def run(config: RunConfig) -> int:
    """Train, save, evaluate, resume, and hold the resumed run against the one that went on."""
    began = time.perf_counter()
    screen = Screen()
    job = build(config)
    taken = min(STEPS, job.plan.total_steps)
    show_plan(job, screen)
    with tempfile.TemporaryDirectory(prefix="lrtrain-smoke-") as folder:
        root = Path(folder)
        _train(job, taken // 2)
        parts, manifest = snapshot(job.state)
        path = format.write(root, job.state.step, parts, manifest)
        _train(job, taken)
        again = build(config)
        restore(again.state, again.plan, format.verify(path))
        _train(again, taken)
    _compare(job, again)
    steps = evaluate(job.state.evaluated, _Few(job).evaluate("val"), EVAL_BATCHES * IMAGES, job.recipe.precision)
    images = sum(1 for _ in steps) * IMAGES
    job.batches.close()
    again.batches.close()
    screen.print(
        f"smoke test passed in {time.perf_counter() - began:.1f} s: {taken} {'step' if taken == 1 else 'steps'} "
        f"trained, saved, resumed in the same bits, evaluated on {images} images"
    )
    return 0


class _Few:
    """The same batches, cut to a few images; what is kept of each is what training would have seen."""

    def __init__(self, job: Job):
        self._batches = job.batches
        self._most = max(IMAGES, 2 * job.recipe.accumulate)

    def train(self, start: int, stop: int, **_: object) -> Iterator[Batch]:
        for batch in self._batches.train(start, stop):
            few = batch.labels[: self._most]
            yield Batch(batch.images[: self._most], few, batch.index[: self._most], len(few))

    def evaluate(self, split: str, **_: object) -> Iterator[Batch]:
        yield from itertools.islice(self._batches.evaluate(split, batch_size=IMAGES), EVAL_BATCHES)


def _train(job: Job, steps: int) -> None:
    """Take the job to step `steps` of its own plan."""
    recipe = dataclasses.replace(job.recipe, total_steps=steps, log_every=1, eval_every=None, checkpoint_every=None)
    for _ in train(job.state, job.plan, _Few(job), recipe):
        pass


def _compare(job: Job, again: Job) -> None:
    (whole, _), (resumed, _) = snapshot(job.state), snapshot(again.state)
    for part, tensors in whole.items():
        for name, tensor in tensors.items():
            if not torch.equal(tensor, resumed[part][name]):
                raise CheckpointError(f"the resumed run differs from the one that went on, first in {part}: {name}")
