"""Networks that the runs name by import path."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions with everything that has state or draws: batch norm and dropout."""

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


class BadAtFirst(Net):
    """Answers with NaN in the evaluation of the first epoch."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits = super().forward(x)
        seen = self.body[1].num_batches_tracked
        if self.training or seen == 0:
            return logits
        return torch.where(seen > 25, logits, torch.nan)


def small(num_classes: int, in_channels: int) -> nn.Module:
    """A `Net`."""
    return Net(num_classes, in_channels)


def bad_at_first(num_classes: int, in_channels: int) -> nn.Module:
    """A `BadAtFirst`."""
    return BadAtFirst(num_classes, in_channels)


def least(num_classes: int, in_channels: int) -> nn.Module:
    """The least that trains, for runs of very many steps."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * in_channels, num_classes))
