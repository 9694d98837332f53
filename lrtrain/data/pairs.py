"""Map-style datasets of (image, class) pairs, as torchvision and most people write them, as splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lrtrain.data.decode import from_pil, only_formats
from lrtrain.data.default_transforms import SMALL, Size
from lrtrain.data.opening import only_whole_files
from lrtrain.errors import BEYOND_FILES, DataError, LrtrainError
from lrtrain.random import seeded

LOOKED_AT = 64  # images from which it is concluded how all are

# Where datasets list the targets of their items, and where what these are called.
_LISTS = dict.fromkeys(("targets", "_labels", "labels", "y", "_samples", "samples"), "classes")
_LISTS["_bin_labels"] = "bin_classes"  # OxfordIIITPet's cats and dogs
_LISTS["y"] = "classes categories"  # the latter in Caltech101 and Caltech256


@dataclass(frozen=True, eq=False)
class PairSplit:
    """A dataset whose items are (PIL image, uint8 tensor or array, class index)."""

    name: str
    pairs: Any
    labels: NDArray[np.int64]
    channels: int

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> torch.Tensor:
        """Image i, uint8 (channels, height, width)."""
        try:
            image = _item(self.pairs, i)[0]
            if isinstance(image, Image.Image):
                return from_pil(image, self.channels, kept=True)
            return self._from_tensor(image)
        except Exception as error:
            raise _unread(self.path(i), error) from error

    def path(self, i: int) -> str:
        """The dataset's name and the image's number."""
        return _called(i, self.name)

    def digest_of(self, chosen: NDArray[np.int64]) -> bytes:
        """SHA-256 of those of the chosen images that are looked at, some of the whole split, by their pixels."""
        found = hashlib.sha256()
        for i in np.intersect1d(chosen, _spread(len(self))).tolist():
            with suppress(DataError):  # told when it is used
                image = self.read(i)
                found.update(f"{i} {tuple(image.shape)}".encode() + image.numpy().tobytes())
        return found.digest()

    def _from_tensor(self, image: Any) -> torch.Tensor:
        tensor = _tensor(image)
        tensor = tensor[None] if tensor.ndim == 2 else tensor
        if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] not in (1, self.channels):
            raise ValueError(
                f"it must be a PIL image or a uint8 tensor (C, H, W), C = {self.channels}, "
                f"not {tensor.dtype} {tuple(tensor.shape)}"
            )
        # A copy: the dataset may hold this very tensor, and a transform may work in place.
        return tensor.expand(self.channels, -1, -1).clone(memory_format=torch.contiguous_format)


def _called(i: int, name: str) -> str:
    return f"image {i} of {name}"


def _unread(called: str, error: Exception) -> Exception:
    """What is raised for an item that cannot be read: by its name, but where the machine lacks what it takes."""
    if isinstance(error, OSError) and error.errno in BEYOND_FILES:
        return error
    return DataError(f"cannot read {called}: {str(error) or type(error).__name__}")


def _is_torchvisions(pairs: Any) -> bool:
    return type(pairs).__module__.startswith("torchvision.")


def _item(pairs: Any, i: int) -> Any:
    """Item i; torchvision's datasets open whatever Pillow can, in whichever process reads them."""
    if not _is_torchvisions(pairs):
        return _in_pil(pairs[i])
    only_formats()
    with only_whole_files():
        return pairs[i]


def _in_pil(item: Any) -> Any:
    """An item whose image is an array of (height, width, channels), as OpenCV and Keras make it, with one of PIL."""
    image = item[0] if isinstance(item, tuple | list) and item else None
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        return item
    in_rows = image.shape[0] not in (1, 3) and image.shape[2] in (1, 3, 4)
    gray = image.shape[2] == 1
    return (Image.fromarray(image[..., 0] if gray else image), *item[1:]) if in_rows else item


def _some(pairs: Any) -> Iterator[tuple[int, Any]]:
    """At most `LOOKED_AT` items with their numbers; one that cannot be read is passed over: it is told when it is used.

    Raises:
        Exception: what the first one raises, where none can be read.
    """
    failed: Exception | None = None
    read = False
    for i in _spread(len(pairs)):
        try:
            item = _item(pairs, i)
        except Exception as error:
            failed = failed or error
            continue
        read = True
        yield i, item
    if failed is not None and not read:
        raise failed


@contextmanager
def usable(name: str) -> Iterator[None]:
    """What a dataset raises that was opened and then fails when it is used is said of it by its name."""
    try:
        yield
    except LrtrainError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in BEYOND_FILES:
            raise
        why = f"{type(error).__name__}: {error}"
        hint = "correct its arguments under dataset, or its files"
        raise DataError(f"{name} was opened, but cannot be used: {why}", hint=hint) from error


def refuse_drawing(split: PairSplit) -> None:
    """Refuse images that are drawn where they are read: kept in memory, each would be drawn once for the whole run.

    Raises:
        DataError: the same item, read again, is another image.
    """
    for i in _spread(len(split)):
        try:
            with seeded(i):
                image = split.read(i)
            with seeded(i + 1):
                again = split.read(i)
        except DataError:  # told when it is used
            continue
        if len({_label_under(seed, split.pairs, i) for seed in (i, i + 1)}) > 1:
            raise DataError(
                f"{split.name} draws at random: {split.path(i)} has another label whenever it is read",
                hint="let __getitem__ give one label, drawn beforehand where it is drawn",
            )
        if not torch.equal(image, again):
            raise DataError(
                f"{split.name} draws at random: {split.path(i)} is another one whenever it is read",
                hint="let __getitem__ give the plain image, and put what is random under dataset.transforms.train",
            )


def _label_under(seed: int, pairs: Any, i: int) -> int | None:
    """The label of item i as it is read with generators that begin at `seed`; None where it is no class."""
    with suppress(Exception), seeded(seed):  # told when it is used
        label = _item(pairs, i)[1]
        return int(label) if _is_index(label) else None
    return None


def channels_of(pairs: Any) -> int:
    """1 where the images are gray, by those that are looked at, else 3."""
    return 1 if all(_is_gray(item[0]) for _, item in _some(pairs)) else 3


def _is_gray(image: Any) -> bool:
    if isinstance(image, Image.Image):
        return image.mode in ("1", "L", "I", "I;16", "LA")
    tensor = _tensor(image)
    return tensor.ndim == 2 or tensor.shape[0] == 1


def _tensor(image: Any) -> torch.Tensor:
    """Of an array a copy: it may be read only, or run backwards, which torch takes amiss."""
    return torch.as_tensor(image.copy() if isinstance(image, np.ndarray) else image)


def _spread(n: int) -> list[int]:
    """At most `LOOKED_AT` of n numbers, from the first to the last."""
    places: list[int] = np.unique(np.linspace(0, n - 1, LOOKED_AT).astype(int)).tolist()
    return places


def labels_of(name: str, pairs: Any) -> NDArray[np.int64]:
    """The target of every item, from the dataset's own list where it has one, else by reading every item.

    Raises:
        DataError: the dataset is empty or fails, a target is no single integer, or there are more or fewer labels
            than images.
    """
    return labelled(name, pairs)[0]


def labelled(name: str, pairs: Any) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The target of every item, and the dataset's own names of them; none where it has none, or not of all.

    Raises:
        DataError: as `labels_of`.
    """
    with usable(name):
        labels, names_in = _listed(name, pairs)
        names = next((found for key in names_in.split() if (found := getattr(pairs, key, None)) is not None), None)
    if not isinstance(names, list | tuple) or int(labels.max()) >= len(names):
        return labels, ()
    return labels, tuple(", ".join(c) if isinstance(c, list | tuple) else str(c) for c in names)


def _listed(name: str, pairs: Any) -> tuple[NDArray[np.int64], str]:
    """The target of every item, and the attribute that names them."""
    if len(pairs) == 0:
        raise DataError(f"{name} is empty")
    _refuse_other_labels(name, pairs)
    target = next(_some(pairs))[1][1]
    if target is None:
        raise DataError(f"{name} has no labels", hint="hold images out of train instead: `val_fraction: 0.1`")
    _refuse_no_index(target, f"{name} is no classification dataset")
    others = False
    for attribute, names in _LISTS.items():
        listed = _as_labels(getattr(pairs, attribute, None), len(pairs))
        if listed is None:
            continue
        if all(listed[i] == int(item[1]) for i, item in _some(pairs)):
            return listed, names
        others = True  # a list that disagrees with the items means something else
    labels = np.array([_target(name, pairs, i) for i in _with_progress(name, len(pairs))], dtype=np.int64)
    classes = getattr(pairs, "classes", ())
    # Names of what is listed, where that has more kinds than the items have.
    named = not (others and hasattr(classes, "__len__") and len(np.unique(labels)) < len(classes))
    return labels, "classes" if named else ""


def _target(name: str, pairs: Any, i: int) -> int:
    try:
        target = _item(pairs, i)[1]
    except Exception as error:
        raise _unread(_called(i, name), error) from error
    _refuse_no_index(target, f"{_called(i, name)} has no class")
    return int(target)


def _refuse_no_index(target: Any, what: str) -> None:
    if not _is_index(target):
        raise DataError(
            f"{what}: a target must be one integer, not {type(target).__name__} {str(target)[:60]!r}",
            hint="`lrtrain list datasets` shows what can be used",
        )


def _with_progress(name: str, n: int) -> Iterable[int]:
    return tqdm(range(n), f"reading the labels of {name}", disable=None, delay=2, leave=False)


def _refuse_other_labels(name: str, pairs: Any) -> None:
    """Torchvision counts images and labels, which are in two files, nowhere; a user's `labels` may mean anything."""
    for attribute in ("targets", "labels") if _is_torchvisions(pairs) else ():
        listed = getattr(pairs, attribute, None)
        if listed is not None and len(listed) != len(pairs):
            raise DataError(
                f"{name} holds {len(pairs):,} images and {len(listed):,} labels; there must be one label an image",
                hint="one of its files is of another split: restore the dataset's files",
            )


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


def numbered(name: str, opened: Mapping[str, Any]) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Class names, and the labels of each split as indices into them.

    The names are train's `classes` where these cover all labels, else the labels in train as text.

    Args:
        name: the dataset's.
        opened: datasets by split, train first. One with `classes` of its own is read by its names, not its numbers.

    Raises:
        DataError: a label that train does not have, or a negative one.
    """
    found_in = [labelled(f"{name} ({split})", pairs) for split, pairs in opened.items()]
    labels, named = [part for part, _ in found_in], [names for _, names in found_in]
    train = labels[0]
    if min(int(part.min()) for part in labels) < 0:
        raise DataError(
            f"{name} has negative labels, which torchvision uses for unlabelled images",
            hint="choose another split with `splits:`",
        )
    if classes := named[0]:
        for i, (split, own) in enumerate(zip(opened, named, strict=True)):
            if own and own != classes:
                labels[i] = _by_name(f"{name} ({split})", labels[i], own, classes)
        if max(int(part.max()) for part in labels) < len(classes):
            return classes, labels
    found = np.unique(train)
    for part in labels[1:]:
        if len(unseen := np.setdiff1d(part, found)):
            raise DataError(f"{name}: classes {unseen[:10].tolist()} occur in another split but not in train")
    indices = [np.searchsorted(found, part).astype(np.int64) for part in labels]
    return tuple(str(label) for label in found.tolist()), indices


def _by_name(name: str, labels: NDArray[np.int64], own: tuple[str, ...], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Labels of a dataset whose classes are `own`, as indices into `classes`."""
    place = {c: i for i, c in enumerate(classes)}
    strange = [own[label] for label in np.unique(labels).tolist() if own[label] not in place]
    if strange or len(place) < len(classes):
        listed = ", ".join(map(repr, classes[:10]))
        what = f"{name} has the class {strange[0]!r}" if strange else f"{name} numbers its classes otherwise than train"
        raise DataError(f"{what}, and train has {listed}", hint="give both splits the same classes")
    return np.array([place.get(c, -1) for c in own], dtype=np.int64)[labels]


def common_size(splits: Sequence[PairSplit]) -> Size | None:
    """Height and width that all images have, or None.

    Judged by some of each split where that is all that there are, or where they are small or parts of one array;
    photos of other sizes may be among those that look alike.
    """
    sizes = {size for split in splits for size in _sizes(split)}
    if len(sizes) != 1:
        return None
    (size,) = sizes
    known = max(size) <= SMALL or all(len(split) <= LOOKED_AT or _one_array(split.pairs, size) for split in splits)
    return size if known else None


def _sizes(split: PairSplit) -> Iterator[Size]:
    for i in _spread(len(split)):
        with suppress(DataError):  # told when it is used
            _, height, width = split.read(i).shape
            yield height, width


def _one_array(pairs: Any, size: Size) -> bool:
    """Whether a dataset's images are one array, as torchvision keeps those of MNIST, CIFAR10, STL10 ..."""
    data = getattr(pairs, "data", None)
    if not isinstance(data, np.ndarray | torch.Tensor) or len(data) != len(pairs):
        return False
    return tuple(data.shape[1:3]) == size or tuple(data.shape[2:4]) == size
