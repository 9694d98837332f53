"""Lightning: Trainer.fit with a LightningModule, everything else at its default."""

from __future__ import annotations

from typing import Any

import lightning
import torch.nn.functional as F
from torch import Tensor, optim

from bench_parts.contestants.shared import loader, network, sgd
from bench_parts.task import Clock, Task

NEEDS = ("lightning",)


class Classifier(lightning.LightningModule):
    """The network, its loss and its optimizer."""

    def __init__(self, task: Task):
        super().__init__()
        self.task, self.model = task, network(task)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss, logged to the progress bar."""
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> optim.Optimizer:
        """SGD."""
        return sgd(self.task, self.parameters())


class Watch(lightning.Callback):
    """Tells the clock."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The first batch is next."""
        self.clock.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step has ended."""
        self.clock.step(len(batch[1]), outputs["loss"])


def train(task: Task, clock: Clock) -> None:
    """Train in fp32, Lightning's default, with its logger, progress bar and checkpoint at the end of an epoch."""
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=task.steps, callbacks=[Watch(clock)], default_root_dir="lightning"
    )
    trainer.fit(Classifier(task), loader(task))
