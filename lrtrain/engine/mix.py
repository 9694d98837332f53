"""mix-up and CutMix, torchvision's own, drawn from (seed, step)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrtrain.random import seeded


@dataclass(frozen=True)
class Mix:
    """Mixes a batch with itself by one of `ways`, each as likely as the others."""

    ways: tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], ...]

    def __call__(self, images: Tensor, labels: Tensor, mix_key: int) -> tuple[Tensor, Tensor]:
        """Mixed images, and labels as class probabilities of shape (batch, classes)."""
        with seeded(mix_key):
            way = self.ways[int(torch.randint(len(self.ways), ()))]
            return way(images, labels)


def make_mix(mixup: float | None, cutmix: float | None, num_classes: int) -> Mix | None:
    """The mixing that a config asks for.

    Args:
        mixup: alpha of the Beta distribution (Zhang et al., arXiv:1710.09412), or None.
        cutmix: alpha of the Beta distribution (Yun et al., arXiv:1905.04899), or None.
        num_classes: width of the mixed labels.
    """
    if mixup is None and cutmix is None:
        return None
    from torchvision.transforms import v2

    ways = [
        kind(alpha=alpha, num_classes=num_classes)
        for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha is not None
    ]
    return Mix(tuple(ways))
