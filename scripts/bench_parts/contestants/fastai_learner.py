"""fastai: Learner.fit with ImageDataLoaders."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper
from fastai.vision.augment import CropPad, FlipItem, PadMode, RandomCrop, RandomResizedCrop
from fastai.vision.data import ImageDataLoaders
from torch import optim

from bench_parts.contestants.shared import network
from bench_parts.task import Clock, Task

NEEDS = ("fastai",)


class Watch(Callback):
    """Tells the clock, ends after the task's steps, and leaves out validation, which nobody else does."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def before_fit(self) -> None:
        """The first batch is next."""
        self.clock.begin()

    def after_batch(self) -> None:
        """A step has ended."""
        if self.training:
            self.clock.step(len(self.learn.yb[0]), self.learn.loss)
            if self.clock.done:
                raise CancelFitException

    def before_validate(self) -> None:
        """Train only."""
        raise CancelValidException


def train(task: Task, clock: Clock) -> None:
    """Train in fp32, fastai's default. Its batch transform is the normalisation that it adds itself."""
    from fastai.data.transforms import Normalize

    from bench_parts.contestants.shared import MEAN, STD

    crops: list[Any] = (
        [CropPad(task.size + 8, pad_mode=PadMode.Zeros), RandomCrop(task.size)]
        if task.augment == "crop"
        else [RandomResizedCrop(task.size)]
    )
    batches = ImageDataLoaders.from_folder(
        task.root,
        valid="test",
        item_tfms=[*crops, FlipItem()],
        batch_tfms=[Normalize.from_stats(MEAN, STD)],
        bs=task.batch,
        num_workers=task.workers,
        drop_last=False,
        device="cpu",
    )
    learner = Learner(
        batches,
        network(task),
        loss_func=CrossEntropyLossFlat(),
        opt_func=partial(OptimWrapper, opt=optim.SGD, momentum=task.momentum, nesterov=True),
        wd=task.weight_decay,
        wd_bn_bias=True,
        cbs=[Watch(clock)],
    )
    learner.fit(-(-task.steps // task.per_epoch), task.lr)
