"""timm: its dataset, loader and optimizer, and a loop in the style of its train.py (loss fetched when logged)."""

from __future__ import annotations

import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter
from torch import nn

from bench_parts.contestants.shared import MEAN, STD, network, pil_transforms
from bench_parts.task import Clock, Task

NEEDS = ("timm",)
LOG_EVERY = 50  # train.py's --log-interval


def train(task: Task, clock: Clock) -> None:
    """Train in fp32, timm's default, without the prefetcher, which is for GPUs."""
    batches = create_loader(
        create_dataset("", root=task.root, split="train", is_training=True, batch_size=task.batch),
        input_size=(3, task.size, task.size),
        batch_size=task.batch,
        is_training=True,
        color_jitter=0.0,
        mean=MEAN,
        std=STD,
        num_workers=task.workers,
        device=torch.device("cpu"),
        use_prefetcher=False,
    )
    if task.augment == "crop":  # timm's own list always begins with a resized crop
        batches.dataset.transform = pil_transforms(task)
    model = network(task)
    optimizer = create_optimizer_v2(
        model,
        opt="sgd",  # with Nesterov momentum
        lr=task.lr,
        momentum=task.momentum,
        weight_decay=task.weight_decay,
        filter_bias_and_bn=False,
    )
    criterion = nn.CrossEntropyLoss()
    losses = AverageMeter()
    model.train()
    clock.begin()
    while True:
        for index, (images, labels) in enumerate(batches):
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if index % LOG_EVERY == 0:
                losses.update(loss.item(), len(labels))
                print(f"train: {index} loss {losses.val:.4g} ({losses.avg:.4g}) LR {optimizer.param_groups[0]['lr']}")
            clock.step(len(labels), loss)
            if clock.done:
                return
