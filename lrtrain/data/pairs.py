"""Map-style datasets of (image, class) pairs, as torchvision and most people write them, as splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lrtrain.data.decode import from_pil
from lrtrain.errors import DataError, LrtrainError

LOOKED_AT = 64  # images from which a common size is concluded


@dataclass(frozen=True, eq=False)
class PairSplit:
    """A dataset whose items are (PIL image or uint8 tensor, class index)."""

    name: str
    pairs: Any
    labels: NDArray[np.int64]
    channels: int

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> torch.Tensor:
        """Image i, uint8 (channels, height, width)."""
        try:
            image = self.pairs[i][0]
            if isinstance(image, Image.Image):
                return from_pil(image, self.channels)
            return self._from_tensor(image)
        except Exception as error:
            raise DataError(f"cannot read {self.path(i)}: {error or type(error).__name__}") from error

    def path(self, i: int) -> str:
        """The dataset's name and the image's number."""
        return f"image {i} of {self.name}"

    def _from_tensor(self, image: Any) -> torch.Tensor:
        tensor = torch.as_tensor(image)
        tensor = tensor[None] if tensor.ndim == 2 else tensor
        if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] not in (1, self.channels):
            raise ValueError(
                f"it must be a PIL image or a uint8 tensor (C, H, W), C = {self.channels}, "
                f"not {tensor.dtype} {tuple(tensor.shape)}"
            )
        return tensor.expand(self.channels, -1, -1).contiguous()


@contextmanager
def usable(name: str) -> Iterator[None]:
    """What a dataset raises that was opened and then fails when it is used is said of it by its name."""
    try:
        yield
    except LrtrainError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        hint = "correct its arguments under dataset, or its files"
        raise DataError(f"{name} was opened, but cannot be used: {why}", hint=hint) from error


def channels_of(pairs: Any) -> int:
    """1 where the first image is gray, else 3."""
    image = pairs[0][0]
    if isinstance(image, Image.Image):
        return 1 if image.mode in ("1", "L", "I", "I;16", "LA") else 3
    return 1 if torch.as_tensor(image).ndim == 2 or torch.as_tensor(image).shape[0] == 1 else 3


def labels_of(name: str, pairs: Any) -> NDArray[np.int64]:
    """The target of every item, from the dataset's own list where it has one, else by reading every item.

    Raises:
        DataError: the dataset is empty or fails, or a target is no single integer.
    """
    with usable(name):
        return _labels_of(name, pairs)


def _labels_of(name: str, pairs: Any) -> NDArray[np.int64]:
    if len(pairs) == 0:
        raise DataError(f"{name} is empty")
    target = pairs[0][1]
    if not _is_index(target):
        raise DataError(
            f"{name} is no classification dataset: a target must be one integer, not "
            f"{type(target).__name__} {str(target)[:60]!r}",
            hint="`lrtrain list datasets` shows what can be used",
        )
    for attribute in ("targets", "_labels", "labels", "y", "_samples", "samples"):
        listed = _as_labels(getattr(pairs, attribute, None), len(pairs))
        # A list that disagrees with the items means something else.
        looked_at = (0, len(pairs) // 2, len(pairs) - 1)
        if listed is not None and all(listed[i] == int(pairs[i][1]) for i in looked_at):
            return listed
    items = tqdm(range(len(pairs)), f"reading the labels of {name}", disable=None, delay=2, leave=False)
    return np.array([int(pairs[i][1]) for i in items], dtype=np.int64)


def _is_index(target: Any) -> bool:
    if isinstance(target, torch.Tensor | np.ndarray):
        return target.ndim == 0 and int(target) == target
    return isinstance(target, int | np.integer) and not isinstance(target, bool)


def _as_labels(listed: Any, n: int) -> NDArray[np.int64] | None:
    if not isinstance(listed, Sequence | np.ndarray | torch.Tensor) or len(listed) != n:
        return None
    if isinstance(listed, Sequence) and isinstance(listed[0], tuple | list):
        listed = [item[-1] for item in listed]
    if isinstance(listed, Sequence) and not all(_is_index(item) for item in listed):
        return None
    array = np.asarray(listed)
    return array.astype(np.int64) if array.ndim == 1 and np.issubdtype(array.dtype, np.integer) else None


def numbered(
    name: str, pairs: Any, labels: Sequence[NDArray[np.int64]]
) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Class names, and labels as indices into them.

    The names are the dataset's `classes` where these cover all labels, else the labels in train as text.

    Raises:
        DataError: a label that train does not have, or a negative one.
    """
    train = labels[0]
    if min(int(part.min()) for part in labels) < 0:
        raise DataError(
            f"{name} has negative labels, which torchvision uses for unlabelled images",
            hint="choose another split with `splits:`",
        )
    classes = getattr(pairs, "classes", None)
    if isinstance(classes, list | tuple) and max(int(part.max()) for part in labels) < len(classes):
        named = [", ".join(c) if isinstance(c, list | tuple) else str(c) for c in classes]
        return tuple(named), list(labels)
    found = np.unique(train)
    for part in labels[1:]:
        if len(unseen := np.setdiff1d(part, found)):
            raise DataError(f"{name}: classes {unseen[:10].tolist()} occur in another split but not in train")
    indices = [np.searchsorted(found, part).astype(np.int64) for part in labels]
    return tuple(str(label) for label in found.tolist()), indices


def side_of(splits: Sequence[PairSplit]) -> int | None:
    """The side of the square that the images are, judged by some of each split, or None."""
    sizes = {
        tuple(split.read(i).shape[1:])
        for split in splits
        for i in np.unique(np.linspace(0, len(split) - 1, LOOKED_AT).astype(int)).tolist()
    }
    (height, width), *others = sizes
    return height if not others and height == width else None
