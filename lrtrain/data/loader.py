"""What must be done image by image, in this process or in workers."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from lrtrain.data.disk_cache import StoredImages
from lrtrain.data.source import Split
from lrtrain.data.transforms import Moment, Stages
from lrtrain.data.workers import ENLARGE, PATIENCE_S, SHARED_MEMORY, by_workers, never, one_made
from lrtrain.errors import LACKING, DataError, EnvironmentFault, LrtrainError

SAME_SIZE = "end the list with RandomResizedCrop, RandomCrop or CenterCrop, or with Resize to `size: [224, 224]`"


@dataclass(frozen=True)
class Order:
    """Which images to make, as indices of the split; without `moment`, the deterministic beginning only.

    `total` counts the images of the batch that these are part of; None where they are all.
    """

    index: NDArray[np.int64]
    moment: Moment | None
    total: int | None = None


@dataclass(frozen=True, eq=False)
class Workshop(Dataset[Any]):
    """Fulfils orders: images (B, C, H, W) ready for the batch stage.

    Errors for people are returned, not raised, since torch changes the text of one that a worker raises.
    """

    name: str
    split: Split
    stages: Stages
    ready: torch.Tensor | StoredImages | None = None
    """All images after the deterministic beginning, where they are kept."""

    def __getitem__(self, order: Order) -> torch.Tensor | LrtrainError:
        try:
            # Read in the order of the files, which disks like; what is drawn for an image does not depend on it.
            images = {i: self._image(i, order.moment) for i in np.sort(order.index).tolist()}
            return self._stacked([images[i] for i in order.index.tolist()], order.index)
        except LrtrainError as error:
            return error

    def _image(self, i: int, moment: Moment | None) -> torch.Tensor:
        image = self.split.read(i) if self.ready is None else self.ready[i].clone()  # a transform may work in place
        try:
            image = image if self.ready is not None else self.stages.prepare(image)
            if moment is not None and self.stages.per_sample:
                # A copy: a transform of one's own may fill one memory again and again.
                image = self.stages.to_sample(image, i, moment).clone()
        except Exception as error:
            raise DataError(
                f"the {self.name} transforms fail on {self.split.path(i)}, {'x'.join(map(str, image.shape))}: {error}",
                hint=getattr(error, "hint", None),
            ) from error
        one_made()
        return image

    def _stacked(self, images: list[torch.Tensor], index: NDArray[np.int64]) -> torch.Tensor:
        for i, image in zip(index, images, strict=True):
            if image.dtype != images[0].dtype:
                kinds = f"{images[0].dtype} of {self.split.path(int(index[0]))}, {image.dtype} of "
                raise DataError(
                    f"the {self.name} transforms leave images of different types: {kinds}{self.split.path(int(i))}",
                    hint="a transform must return the same type for every image",
                )
            self.refuse_other_size((index[0], images[0].shape), (i, image.shape))
        return torch.stack(images, out=_shared(len(images), images[0]) if get_worker_info() else None)

    def refuse_other_size(self, *images: tuple[int, torch.Size]) -> None:
        """Refuse two images, each an index and the size that the transforms leave it, that make no batch, or no split.

        Raises:
            DataError: names both.
        """
        if len({size for _, size in images}) == 1:
            return
        sizes = "; ".join(f"{self.split.path(int(i))}: {'x'.join(map(str, size))}" for i, size in images)
        raise DataError(
            f"the {self.name} transforms leave images of different sizes, which make no batch: {sizes}", hint=SAME_SIZE
        )


def _shared(n: int, image: torch.Tensor) -> torch.Tensor:
    """Room for `n` such images in memory that the main process shares.

    torch would copy a batch there as it is sent, on a thread whose errors reach nobody.

    Raises:
        EnvironmentFault: there is too little of it.
    """
    try:
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(n * image.nbytes)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        for left in glob.glob(f"{SHARED_MEMORY}/torch_{os.getpid()}_*"):  # empty; torch unlinks what succeeds only
            with suppress(OSError):
                os.unlink(left)
        said = str(error).partition("\n")[0]
        if any(os.strerror(number) in said for number in LACKING):
            raise
        what = f"shared memory has no room for a batch of {n * image.nbytes / 1e6:.3g} MB: {said.rpartition(': ')[2]}"
        fix = "allow longer files (ulimit -f)" if os.strerror(errno.EFBIG) in said else ENLARGE
        raise EnvironmentFault(what, SHARED_MEMORY, f"{fix}; or use fewer workers, or `workers: 0`") from error
    return torch.empty(0, dtype=image.dtype).set_(storage).view(n, *image.shape)


def fulfilled(
    workshop: Workshop,
    orders: Iterable[Order],
    workers: int,
    pin: bool = False,
    patience_s: float = PATIENCE_S,
    asked: Callable[[], object] = never,
) -> Iterator[torch.Tensor]:
    """The images of each order, in order.

    Args:
        workshop: what makes them.
        orders: what is asked for; read ahead by the workers.
        workers: processes; with 0, each order is fulfilled here when it is asked for.
        pin: page-locked memory, for copies to a GPU that do not wait.
        patience_s: seconds in which workers may make no image and do nothing; ten times as many if they compute.
        asked: whether to end, asked while workers keep the caller waiting.

    Raises:
        DataError: an image cannot be read or transformed; it is named.
        EnvironmentFault: a worker died or hangs, or shared memory is lacking.
    """
    if workers == 0:
        for order in orders:
            yield _checked(workshop[order])
        return
    for images in by_workers(workshop, orders, workers, pin, patience_s, asked):
        yield _checked(images)


def _checked(made: torch.Tensor | LrtrainError) -> torch.Tensor:
    if isinstance(made, LrtrainError):
        raise made
    return made
