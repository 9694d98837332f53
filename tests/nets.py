"""Networks that tests name by import path."""

from __future__ import annotations

from torch import Tensor, nn


class _WithDropout(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


def with_dropout(num_classes: int, in_channels: int) -> nn.Module:
    """Batch norm and dropout: both have state that a resume must get right."""
    return _WithDropout(num_classes, in_channels)


def linear(num_classes: int, in_channels: int) -> nn.Module:
    """Two layers that a large LR blows up: nothing normalises."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, 64), nn.Linear(64, num_classes))
