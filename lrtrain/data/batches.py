"""Batches of training steps and of evaluation, on the training device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.data.ahead import ahead
from lrtrain.data.build import Pipeline
from lrtrain.data.cache import Kept, Mode, kept, kept_words
from lrtrain.data.loader import Order, Workshop, fulfilled
from lrtrain.data.moved import moved
from lrtrain.data.order import batch_of_step, steps_per_epoch
from lrtrain.data.source import Split
from lrtrain.data.transforms import Moment
from lrtrain.data.workers import never
from lrtrain.errors import ConfigError, about
from lrtrain.world import ALONE, World

AT_ONCE_BYTES = 2**25  # of float32 images that a GPU's batch stage makes together


@dataclass(frozen=True)
class Batch:
    """Images as the model takes them, with their labels and where they came from.

    Attributes:
        images: float32 (B, C, H, W), normalised, on the device.
        labels: int64 (B,), on the device.
        index: of each image in its split, shape (B,).
        total: images of the whole batch, those of other processes included; to evaluate, a batch of each process.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: NDArray[np.int64]
    total: int


class Batches:
    """Batches as a pure function of (config, step): the same for any number of workers, cache and start.

    Attributes:
        kept_words: where prepared images are kept, for a person.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        batch_size: int,
        where: Callable[..., str],
        drop_last: bool = False,
        workers: int = 0,
        cache: Mode = "auto",
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        world: World = ALONE,
    ):
        """Prepare the images that are kept.

        Args:
            pipeline: source and transforms.
            batch_size: images per optimizer step.
            where: `RunConfig.where`.
            drop_last: leave out an epoch's last batch where it is smaller.
            workers: processes for what is done image by image.
            cache: where prepared images are kept.
            device: where the batch stage runs and batches end up.
            channels_last: memory format of the images.
            world: the processes; each has its part of every batch, in the same order as one alone.

        Raises:
            ConfigError: drop_last leaves nothing, or `cache: memory` or `disk` cannot be.
            DataError, EnvironmentFault: see `kept`.
        """
        source = pipeline.source
        n = len(source.train)
        self.pipeline = pipeline
        self.batch_size, self.drop_last, self.workers = batch_size, drop_last, workers
        self.steps_per_epoch = steps_per_epoch(n, batch_size, drop_last)
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"with drop_last an epoch has no batch: batch_size {batch_size} is more than the {n} training images",
                where("batch_size"),
                f"write `batch_size: {n}` or less, or `drop_last: false`",
            )
        self.world = world
        self._refuse_too_few(n, where)
        self._device = torch.device(device)
        self._on_gpu = self._device.type == "cuda"
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._train, train = self._with_kept(Workshop("train", source.train, pipeline.train), cache, where)
        self._val, val = self._with_kept(Workshop("val", source.val, pipeline.val), cache, where)
        self.kept_words = kept_words({"train": train, "val": val})

    def _refuse_too_few(self, n: int, where: Callable[..., str]) -> None:
        """Every process needs two images of every batch, as BatchNorm does."""
        last = self.batch_size if self.drop_last else n - (self.steps_per_epoch - 1) * self.batch_size
        least = min(last, self.batch_size, n)
        if self.world.size > 1 and least < 2 * self.world.size:
            raise ConfigError(
                f"{self.world.size} processes share every batch, at least 2 images each; the smallest has {least}",
                where("batch_size"),
                f"take a batch_size of {2 * self.world.size} or more, or `drop_last: true`",
            )

    def _with_kept(self, workshop: Workshop, cache: Mode, where: Callable[..., str]) -> tuple[Workshop, Kept]:
        with about(self.pipeline.where):
            found = kept(workshop, cache, self.workers, where, self.world.local_size)
        return replace(workshop, ready=found.images), found

    def train(self, start: int, stop: int, *, asked: Callable[[], object] = never) -> Iterator[Batch]:
        """The batches of optimizer steps start .. stop - 1, counted from 0 over all epochs.

        No more come once `asked` answers while workers keep one waiting.
        """
        orders = (self._order(step) for step in range(start, stop))
        return self._batches(self._train, orders, asked)

    def _order(self, step: int) -> Order:
        seed, n = self.pipeline.seed, len(self._train.split)
        index = batch_of_step(seed, n, self.batch_size, step, self.drop_last)
        own = np.array_split(index, self.world.size)[self.world.rank]
        return Order(own, Moment(seed, step // self.steps_per_epoch), len(index))

    def evaluate(
        self, split: Split | str = "val", batch_size: int | None = None, *, asked: Callable[[], object] = never
    ) -> Iterator[Batch]:
        """Every image of a split exactly once over all processes, in order, with the transforms of val.

        Args:
            split: train, val or test, or a split of one's own.
            batch_size: images at a time; the training batch's when absent.
            asked: as in `train`.

        Raises:
            ConfigError: the dataset has no such split.
        """
        workshop = self._for_evaluation(split)
        n, size = len(workshop.split), batch_size or self.batch_size
        moment = Moment(self.pipeline.seed, "evaluate")
        first, together = self.world.rank * size, self.world.size * size
        orders = (
            Order(np.arange(start + first, min(start + first + size, n)), moment, min(together, n - start))
            for start in range(0, n - first, together)
        )
        return self._batches(workshop, orders, asked)

    def _for_evaluation(self, split: Split | str) -> Workshop:
        if not isinstance(split, str):
            return Workshop("val", split, self.pipeline.val)
        if split == "val":
            return self._val
        splits = self.pipeline.source.splits()
        if split not in splits:
            raise ConfigError(f"the dataset has no split {split!r}", hint=f"it has {', '.join(splits)}")
        return Workshop("val", splits[split], self.pipeline.val)

    def _batches(self, workshop: Workshop, orders: Iterator[Order], asked: Callable[[], object]) -> Iterator[Batch]:
        if isinstance(workshop.ready, torch.Tensor) and not workshop.stages.per_sample:
            # On the CPU a thread would take its time from the training. Nothing here draws from torch's generators.
            yield from self._ahead(workshop, orders) if self._on_gpu else self._ready(workshop, orders)
            return
        # The loader reads orders ahead of the images that it returns.
        begun: list[Order] = []

        def noted() -> Iterator[Order]:
            for order in orders:
                begun.append(order)
                yield order

        first = None
        with about(self.pipeline.where):
            for images in fulfilled(workshop, noted(), self.workers, pin=self._on_gpu, asked=asked):
                order = begun.pop(0)
                one = order.index[0], images.shape[1:]
                first = first or one
                workshop.refuse_other_size(first, one)  # a batch of one size by chance
                yield self._finished(workshop, images, order)

    def _ahead(self, workshop: Workshop, orders: Iterator[Order]) -> Iterator[Batch]:
        """On a thread and a CUDA stream of their own, so that neither host nor GPU waits for the next batch."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

        def made() -> Generator[tuple[Batch, torch.cuda.Event], None, None]:
            # A thread starts on the first GPU, whichever its process has chosen.
            with torch.cuda.device(self._device), torch.cuda.stream(stream):
                for batch in self._ready(workshop, orders, AT_ONCE_BYTES):
                    yield batch, stream.record_event()

        for batch, done in ahead(made()):
            trains = torch.cuda.current_stream(self._device)
            trains.wait_event(done)
            for tensor in (batch.images, batch.labels):
                tensor.record_stream(trains)
            yield batch

    def _ready(self, workshop: Workshop, orders: Iterator[Order], at_once_bytes: int = 0) -> Iterator[Batch]:
        """From the images in memory; nothing is left to do image by image.

        Args:
            workshop: has the images.
            orders: one a batch.
            at_once_bytes: so many of ready images go through the batch stage together: a GPU is done with a small
                batch before Python has launched the next kernel. At least one batch.
        """
        assert isinstance(workshop.ready, torch.Tensor)
        for together in _blocks(orders, at_once_bytes // (4 * workshop.ready[0].numel())):
            index = np.concatenate([order.index for order in together])
            block = self._finished(workshop, workshop.ready[torch.from_numpy(index)], Order(index, together[0].moment))
            first = 0
            for order in together:
                part = slice(first, first + len(order.index))
                yield Batch(block.images[part], block.labels[part], order.index, order.total or len(order.index))
                first = part.stop

    def _finished(self, workshop: Workshop, images: torch.Tensor, order: Order) -> Batch:
        """The batch stage, on the device."""
        assert order.moment is not None
        labels = torch.from_numpy(workshop.split.labels[order.index])
        images, labels = (moved(tensor, self._device) for tensor in (images, labels))
        images = workshop.stages.to_batch(images, order.index, order.moment)
        return Batch(
            images.contiguous(memory_format=self._layout), labels, order.index, order.total or len(order.index)
        )

    def close(self) -> None:
        """Let go of the images that are kept."""
        self._train, self._val = replace(self._train, ready=None), replace(self._val, ready=None)


def _blocks(orders: Iterator[Order], most_images: int) -> Iterator[list[Order]]:
    """Orders of one moment that follow each other, so many that they have `most_images` in all, or a single one."""
    together: list[Order] = []
    images = 0
    for order in orders:
        if together and order.moment != together[0].moment:
            yield together
            together, images = [], 0
        together.append(order)
        images += len(order.index)
        if images + len(order.index) > most_images:
            yield together
            together, images = [], 0
    if together:
        yield together
