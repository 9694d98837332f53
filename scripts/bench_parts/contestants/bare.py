"""The limit: forward, backward and SGD on batches that are ready in memory, in a precision and layout."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from bench_parts.contestants.shared import loader, network, sgd
from bench_parts.task import Clock, Task

NEEDS = ("torchvision",)
READY = 8  # batches, trained on in turn


def train(task: Task, clock: Clock) -> None:
    """`variant`: precision fp32 or auto (what lrtrain takes on this machine), channels_last (with memory kept too)."""
    from lrtrain.engine.evaluate import autocast
    from lrtrain.engine.memory import keep_freed_memory
    from lrtrain.engine.precision import choose_precision

    device = torch.device(task.device)
    on_gpu = device.type == "cuda"
    precision = choose_precision(task.variant["precision"], device)
    layout = torch.channels_last if task.variant["channels_last"] else torch.contiguous_format
    if task.variant["channels_last"] and not on_gpu:
        keep_freed_memory()
    torch.backends.cudnn.benchmark = on_gpu
    ready = [(x.to(device, memory_format=layout), y.to(device)) for x, y in itertools.islice(loader(task), READY)]
    # On the CPU nothing of the model is channels-last: oneDNN orders weights its own way, and fused SGD wants
    # contiguous ones.
    model = network(task).train().to(device, memory_format=layout if on_gpu else torch.contiguous_format)
    optimizer = sgd(task, model.parameters(), fused=True)
    clock.begin()
    for images, labels in itertools.cycle(ready):
        with autocast(device, precision):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        clock.step(len(labels), loss)
        if clock.done:
            return
