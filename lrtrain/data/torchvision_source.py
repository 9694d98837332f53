"""Every classification dataset of torchvision.datasets, with its own arguments."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import struct
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrtrain import foreign
from lrtrain.config.messages import shortened
from lrtrain.data import files as image_files
from lrtrain.data.default_transforms import Size
from lrtrain.data.pairs import PairSplit, channels_of, common_size, labels_of, numbered, usable
from lrtrain.data.source import InFiles, Source, Split, with_notes
from lrtrain.data.stratify import hold_out
from lrtrain.data.torchvision_files import Listing, as_files, path_itself
from lrtrain.errors import ConfigError, DataError, EnvironmentFault, Key, LrtrainError, Problem

# What torchvision keeps in these files is no classification of single images.
_OTHER_TASKS = {
    "_optical_flow": "optical flow",
    "_stereo_matching": "stereo matching",
    "coco": "detection and captions",
    "voc": "detection and segmentation",
    "cityscapes": "segmentation",
    "kitti": "detection",
    "sbd": "segmentation",
    "widerface": "face detection",
    "flickr": "captions",
    "sbu": "captions",
    "phototour": "matching of patches",
    "moving_mnist": "video",
    "hmdb51": "video",
    "ucf101": "video",
    "kinetics": "video",
    "vision": "any task: it is the base class",
}
_OTHER_CLASSES = {"LFWPairs": "pairs of faces", "CelebA": "attributes, many to an image", "DatasetFolder": "any files"}
_VAL_NAMES = ("val", "valid", "validation")
# Where arguments are checked, and what is said of them there; whatever else goes wrong is in the files.
_CHECKS = ("__init__", "verify_str_arg", "_verify_folds")
_ABOUT_ARGUMENTS = re.compile(r"argument|alid values|xpected type|must be|should be|nknown", re.IGNORECASE)
_LARGE = 2**29  # bytes: from here on it takes seconds to read a file
_LOOKED_AT = 10_000  # files and folders near the root, where packed files are
_MOST_MATLAB = 32_000_000  # bytes, some ten times what the lists of 8,144 cars take
_COMPRESSED = 15  # an element of a MATLAB file: zlib
# Mean and standard deviation of the training images, on the scale 0..1.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
}
_GRAY = ("Omniglot",)  # of those that are read as files
# A mirrored digit, letter or traffic sign is another one, or none.
_NOT_MIRRORED = ("EMNIST", "GTSRB", "KMNIST", "MNIST", "Omniglot", "QMNIST", "RenderedSST2", "SEMEION", "SVHN", "USPS")


def torchvision_source(
    cls: type,
    *,
    seed: int,
    val_fraction: float | None = None,
    splits: Mapping[str, Mapping[str, Any]] | None = None,
    **arguments: Any,
) -> Source:
    """A torchvision dataset as a source.

    Which arguments make the splits follows from the signature: `train=True/False`, or `split=` the training
    split and "val" or "test"; with both, val is evaluated and test held back. With neither, `val_fraction` must
    be given.

    Args:
        cls: the class in torchvision.datasets.
        seed: chooses what `val_fraction` holds out.
        val_fraction: share of each class of the training split held out for val, which leaves test held back.
        splits: `{train: {...}, val: {...}, test: {...}}`, arguments of each split, instead of the above.
        arguments: passed to every split.

    Raises:
        ConfigError: no classification dataset, or arguments that contradict each other.
        DataError: torchvision could not open it.
    """
    name = cls.__name__
    task = _OTHER_TASKS.get(cls.__module__.rpartition(".")[2]) or _OTHER_CLASSES.get(name)
    if task:
        raise ConfigError(
            f"{name} is no image classification dataset but for {task}", hint="`lrtrain list datasets` shows all"
        )
    if splits is not None:
        opened, note = _explicit(cls, splits, arguments), ""
    else:
        opened, note = _found(cls, arguments, held_out=val_fraction is not None)
    if val_fraction is not None and "val" in opened:
        if "test" in opened:
            raise ConfigError(
                f"val_fraction {val_fraction:g} contradicts the val split that {name} has",
                hint="leave val_fraction out",
            )
        opened["test"] = opened.pop("val")
    if "val" not in opened and val_fraction is None:
        raise ConfigError(
            f"nothing to evaluate on: {name} has no split for it, and no val_fraction is given",
            hint="add `val_fraction: 0.1`, or `splits: {train: {...}, val: {...}}`",
        )
    with usable(name):
        opened = {split: as_files(f"{name} ({split})", pairs) for split, pairs in opened.items()}
    return with_notes(pairs_source(name, opened, val_fraction, seed), note)


def pairs_source(name: str, opened: Mapping[str, Any], val_fraction: float | None, seed: int) -> Source:
    """Opened datasets of (image, class) pairs, by split, as a source."""
    with usable(name):
        classes, indices = numbered(name, opened)
        channels, parts, measured = _splits(name, opened, indices)
    train: Split = parts["train"]
    val: Split | None = parts.get("val")
    words = f"the dataset's own {'split' if 'test' in parts else 'evaluation split'}"
    if val is None:
        assert val_fraction is not None  # the callers have refused it
        called = train.name if isinstance(train, InFiles) else str
        train, val, words = hold_out(train, classes, val_fraction, seed, called)
    mean, std = _STATISTICS.get(name, (None, None))
    source = Source(
        classes,
        channels,
        train,
        val,
        parts.get("test"),
        words,
        mean,
        std,
        measured,
        name not in _NOT_MIRRORED,
    )
    if len(classes) < 2:
        only = Problem(f"there must be two classes or more; {name} has only {classes[0]!r}")
        source = replace(source, problems=(only,))
    absent = [c for c, n in source.counts()["train"].items() if n == 0]
    return with_notes(source, f"classes without training images: {', '.join(absent[:10])}" if absent else "")


def _splits(
    name: str, opened: Mapping[str, Any], labels: Sequence[NDArray[np.int64]]
) -> tuple[int, Mapping[str, Split], Callable[[], Size | None]]:
    """Channels, the splits, and what finds their common size."""
    each = list(zip(opened.items(), labels, strict=True))
    if isinstance(opened["train"], Listing):
        channels = 1 if name in _GRAY else 3
        files = {split: pairs.split(part, channels) for (split, pairs), part in each}
        return channels, files, partial(image_files.common_size, list(files.values()))
    channels = channels_of(opened["train"])
    parts = {split: PairSplit(f"{name} ({split})", pairs, part, channels) for (split, pairs), part in each}
    return channels, parts, partial(common_size, list(parts.values()))


def _explicit(cls: type, splits: Mapping[str, Mapping[str, Any]], arguments: Mapping[str, Any]) -> dict[str, Any]:
    such = "such as splits: {train: {split: train}, val: {split: test}}"
    if not isinstance(splits, Mapping):
        raise ConfigError(f"splits must be a mapping; got {shortened(splits)}", Key("splits"), such)
    if "train" not in splits or set(splits) - {"train", "val", "test"}:
        names = f"splits must name train, and may name val and test; it names {', '.join(map(str, splits))}"
        raise ConfigError(names, Key("splits"), such)
    for split, own in splits.items():
        if not isinstance(own, Mapping):
            what = f"splits.{split} must be a mapping of arguments; got {shortened(own)}"
            raise ConfigError(what, Key(f"splits.{split}"), such)
    return {split: _open(cls, arguments, own, f"splits.{split}") for split, own in splits.items()}


def _found(cls: type, arguments: Mapping[str, Any], held_out: bool) -> tuple[dict[str, Any], str]:
    """The splits that the signature offers, opened, and a note where one could not be.

    Where val is `held_out` of train, or there is one, test is held back: training does without it.
    """
    parameters = _parameters(cls)
    default = parameters["split"].default if "split" in parameters else None
    by = "train" if "train" in parameters else "split" if str(default).startswith("train") else None
    if by is None:
        return {"train": _open(cls, arguments, {})}, ""
    if by in arguments:
        raise ConfigError(
            f"{by}: {arguments[by]!r} picks one split, and training needs two",
            Key(by),
            f"leave it out, or write splits: {{train: {{{by}: ...}}, val: {{{by}: ...}}}}",
        )
    if by == "train":
        return _with_test(cls, arguments, {"train": _open(cls, arguments, {"train": True})}, {"train": False}, held_out)
    opened = {"train": _open(cls, arguments, {"split": default})}
    for value in _VAL_NAMES if default != "trainval" else ():  # of which val is a part
        if _is_value(cls, arguments, value):
            opened["val"] = _open(cls, arguments, {"split": value})
            break
    if not _is_value(cls, arguments, "test"):
        return opened, ""
    return _with_test(cls, arguments, opened, {"split": "test"}, held_out or "val" in opened)


def _with_test(
    cls: type, arguments: Mapping[str, Any], opened: dict[str, Any], own: Mapping[str, Any], held_back: bool
) -> tuple[dict[str, Any], str]:
    """With the test split, which is val where it is not held back; held back, there may be none, and a note says so."""
    if not held_back:
        return {**opened, "val": _open(cls, arguments, own)}, ""
    try:
        test = _open(cls, arguments, own)
        labels_of(cls.__name__, test)
    except LrtrainError as error:
        return opened, f"no test split: {error.problems[0].what}"
    return {**opened, "test": test}, ""


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters, with those of the bases that `**kwargs` are passed on to."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in base.__dict__:
            own = inspect.signature(base.__dict__["__init__"]).parameters
            found = {**own, **found}
            if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
                break
    return found


def _is_value(cls: type, arguments: Mapping[str, Any], value: str) -> bool:
    """Whether torchvision knows this value of `split`; it checks that before it looks for any file."""
    try:
        cls(**{**arguments, "split": value, **({"download": False} if "download" in arguments else {})})
    except ValueError as error:
        return "Valid values are" not in str(error)
    except Exception:  # known, but not opened: `_open` says why
        return True
    return True


def _open(cls: type, arguments: Mapping[str, Any], own: Mapping[str, Any], place: str = "") -> Any:
    """The dataset opened with the section's arguments and the split's own, which stand at `place` in the section."""
    name, given = cls.__name__, {**arguments, **own}
    if "download" in _parameters(cls):
        given.setdefault("download", False)  # torchvision's own default is true for one of them
    if "loader" in _parameters(cls):
        given.setdefault("loader", path_itself)
    try:
        if isinstance(root := given.get("root"), str):
            _refuse_files(cls, Path(root).expanduser(), given)
        return cls(**given)
    except (TypeError, ValueError) as error:
        if not _of_arguments(error):
            raise _unopened(cls, given, error) from error
        said = re.search(r"argument '?(\w+)", str(error))
        key = said[1] if said else ""
        where = Key(f"{place}.{key}") if place and key in own else Key(key) if key in arguments else None
        raise ConfigError(f"{name} does not take these arguments: {error}", where) from error
    except MemoryError:
        raise
    except Exception as error:
        missing = error if isinstance(error, ImportError) else error.__context__  # some say in words what it is
        if not isinstance(missing, ImportError):
            raise _unopened(cls, given, error) from error
        raise EnvironmentFault(
            f"{name} needs a package that is missing: {error}", hint=f"pip install {missing.name or 'it'}"
        ) from error


def _refuse_files(cls: type, root: Path, given: Mapping[str, Any]) -> None:
    """Refuse packed files that torchvision would unpack whole, however large, where it holds no MD5 against them.

    Where it does, it reads to the end what may say that it is endless and never was written.

    Raises:
        ValueError: a file of USPS is another than the class names, one of StanfordCars unpacks to too much, or one that
            the class names was never written.
        OSError: it cannot be read.
    """
    named = _named_by(cls)
    packed = "loader" not in _parameters(cls)  # else its files are images, and many
    depths = ("*", "*/*", "*/*/*") if packed else ()
    near = itertools.chain.from_iterable(root.glob(depth) for depth in depths)
    for path in itertools.islice(near, _LOOKED_AT):
        if {path.name, f"{path.name}.gz"}.isdisjoint(named):
            continue
        with suppress(OSError), foreign.opened(path, links=True) as file:  # torchvision says which it cannot read
            if os.fstat(file.fileno()).st_size > _LARGE:
                try:
                    foreign.refuse_holes(file)
                except ValueError as error:
                    raise ValueError(f"{path.name}: {error}") from error
    if cls.__name__ == "USPS" and not given.get("download"):  # else it makes sure itself
        from torchvision.datasets.utils import check_integrity

        _, name, md5 = cls.split_list["train" if given.get("train", True) else "test"]  # type: ignore[attr-defined]
        if (root / name).exists() and not check_integrity(root / name, md5):
            raise ValueError(f"{name} is not the dataset's own file, whose MD5 is {md5}: remove it")
    if cls.__name__ == "StanfordCars":
        for folder in ("stanford_cars", "stanford_cars/devkit"):
            for path in (root / folder).glob("*.mat"):
                _refuse_large_matlab(path)


def _named_by(cls: type) -> set[str]:
    """Names of the files that a class of torchvision's lists, with whatever other text it does."""
    found, left = set(), [value for base in cls.__mro__ for key, value in vars(base).items() if key[:2] != "__"]
    while left:
        value = left.pop()
        if isinstance(value, str):
            found.add(value.rpartition("/")[2])
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
    return found


def _refuse_large_matlab(path: Path) -> None:
    with foreign.opened(path, links=True) as file:
        left = _MOST_MATLAB - os.fstat(file.fileno()).st_size
        order = "<" if file.read(128).endswith(b"IM") else ">"
        while left >= 0 and len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            content = file.read(size)
            if kind == _COMPRESSED:
                left -= len(zlib.decompressobj().decompress(content, left + 1))
    if left < 0:
        raise ValueError(f"{path.name} unpacks to more than {_MOST_MATLAB:,} bytes; the dataset's own is far smaller")


def _of_arguments(error: Exception) -> bool:
    """Whether a constructor that was called by the catcher took no such arguments, and read no file yet."""
    _, *inside = traceback.walk_tb(error.__traceback__)
    raised_by = inside[-1][0].f_code.co_name if inside else "__init__"  # none where Python itself refused the call
    return raised_by in _CHECKS and bool(_ABOUT_ARGUMENTS.search(str(error)))


def _unopened(cls: type, given: Mapping[str, Any], error: Exception) -> DataError:
    can_download = "download" in _parameters(cls) and not given.get("download")
    # A run's own `download: true` is not obeyed when it is resumed or evaluated, but --set is.
    hint = "add `download: true` to dataset, or --set dataset.download=true; or " if can_download else ""
    hint += "correct root: --set dataset.root=FOLDER, or dataset.splits.train.root=FOLDER"
    what = f"cannot open {cls.__name__} in {str(given.get('root'))!r}: {str(error) or type(error).__name__}"
    return DataError(what, hint=hint)
