"""A plain loop like torchvision's reference: ImageFolder, PIL transforms, DataLoader, loss.item() at each step."""

from __future__ import annotations

from torch import nn

from bench_parts.contestants.shared import loader, network, sgd
from bench_parts.task import Clock, Task

NEEDS = ("torchvision",)


def train(task: Task, clock: Clock) -> None:
    """Train in fp32, which is the reference's default."""
    batches = loader(task)
    model = network(task).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = sgd(task, model.parameters())
    clock.begin()
    while True:
        running = []
        for images, labels in batches:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running.append(loss.item())
            clock.step(len(labels), loss)
            if clock.done:
                return
        print(f"epoch ended, loss {sum(running) / len(running):.4f}")
