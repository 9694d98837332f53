"""What all contestants have in common: network, optimizer, transforms and statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bench_parts.task import Task

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(task: Task) -> nn.Module:
    """The task's network, freshly initialised."""
    torch.manual_seed(1)
    if task.model == "small_cnn":
        from lrtrain.models.small_cnn import small_cnn

        return small_cnn(task.classes)
    from torchvision import models

    module: nn.Module = models.get_model(task.model, num_classes=task.classes)
    return module


def sgd(task: Task, parameters: Iterable[nn.Parameter], **kernel: Any) -> torch.optim.SGD:
    """SGD of torch with the task's numbers."""
    return torch.optim.SGD(
        parameters, lr=task.lr, momentum=task.momentum, nesterov=True, weight_decay=task.weight_decay, **kernel
    )


def pil_transforms(task: Task) -> Any:
    """Augmentation and normalisation image by image on PIL images, as torchvision's reference does it."""
    from torchvision import transforms

    crop = (
        transforms.RandomCrop(task.size, padding=4)
        if task.augment == "crop"
        else transforms.RandomResizedCrop(task.size)
    )
    before = [transforms.Resize((256, 256))] if task.augment == "resized_crop_of_256" else []
    return transforms.Compose(
        [*before, crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )


def loader(task: Task) -> Any:
    """A DataLoader of torch over torchvision's ImageFolder: JPEG to PIL to tensor in the workers."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(task.train_folder, pil_transforms(task))
    return DataLoader(dataset, batch_size=task.batch, shuffle=True, num_workers=task.workers)
