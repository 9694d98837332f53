"""Transforms that work on a whole batch at once: one file an op, named like torchvision's class.

`like(transform)` makes an op from torchvision's object, or None where that has an option which the op lacks.
An op takes images (B, C, H, W) and uniform draws (B, draws); a sample depends on its own row of them only.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class BatchOp(Protocol):
    """What every op offers; `draws` is how many uniform numbers in [0, 1) one sample uses up."""

    draws: int

    def __call__(self, images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
        """Transform a batch."""
        ...


def batch_op(name: str, transform: Any) -> BatchOp | None:
    """The op that does what torchvision's `transform` does, where there is one."""
    if not _ours(name):
        return None
    op: BatchOp | None = getattr(importlib.import_module(f"{__name__}.{name}"), name).like(transform)
    return op


@lru_cache
def _ours(name: str) -> bool:
    return name.isidentifier() and find_spec(f"{__name__}.{name}") is not None
