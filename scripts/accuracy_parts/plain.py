"""Plain torchvision as lrtrain's engine takes images: PIL, transforms sample by sample in workers, shuffling."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from accuracy_parts.lists import NORMALIZE, Entry, torchvisions
from lrtrain.data.batches import Batch


class Plain:
    """What `lrtrain.engine.train.Images` asks for, made of a DataLoader over ImageFolders and nothing of lrtrain.

    Every worker draws from torch's global generator in its own process, which the DataLoader seeds.
    """

    def __init__(self, root: str, entries: Sequence[Entry], *, seed: int, batch_size: int, workers: int):
        """Find the images.

        Args:
            root: folder with train/CLASS and test/CLASS.
            entries: the transforms of training; evaluation converts and normalises.
            seed: of shuffling and augmentation.
            batch_size: images per optimizer step; an epoch's last, smaller batch is left out.
            workers: processes, at least 1: the engine reseeds the generator of this one at every step.
        """
        # The order and the workers' seeds come from a generator of their own for the same reason.
        self._train: DataLoader[Any] = DataLoader(
            ImageFolder(f"{root}/train", torchvisions(entries)),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            generator=torch.Generator().manual_seed(seed),
        )
        self._test: DataLoader[Any] = DataLoader(
            ImageFolder(f"{root}/test", torchvisions(NORMALIZE)), batch_size=batch_size, num_workers=workers
        )

    def train(self, start: int, stop: int, **_: object) -> Iterator[Batch]:
        """The batches of steps 0 .. stop - 1: an epoch after the other, each shuffled anew."""
        if start:
            raise ValueError(f"a shuffling DataLoader begins at step 0, not {start}")
        epochs = itertools.chain.from_iterable(self._train for _ in itertools.count())
        return map(_batch, itertools.islice(epochs, stop))

    def evaluate(self, split: str, **_: object) -> Iterator[Batch]:
        """The test images in order, whatever the split is called."""
        return map(_batch, self._test)


def _batch(loaded: Sequence[torch.Tensor]) -> Batch:
    """As the engine takes it, in the memory format that lrtrain's own have; it never asks which images they are."""
    images, labels = loaded
    unknown = np.full(len(labels), -1, dtype=np.int64)
    return Batch(images.contiguous(memory_format=torch.channels_last), labels, unknown, len(labels))
