"""Every classification dataset of torchvision.datasets, with its own arguments."""

from __future__ import annotations

import inspect
import math
import os
import re
import struct
import subprocess
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrtrain import foreign
from lrtrain.config.messages import shortened
from lrtrain.data import files as image_files
from lrtrain.data.decode import MAX_BYTES
from lrtrain.data.default_transforms import Size
from lrtrain.data.opening import only_whole_files
from lrtrain.data.pairs import PairSplit, channels_of, common_size, labels_of, numbered, usable
from lrtrain.data.source import InFiles, Source, Split, with_notes
from lrtrain.data.stratify import hold_out
from lrtrain.data.torchvision_files import Listing, as_files, path_itself
from lrtrain.errors import BEYOND_FILES, ConfigError, DataError, EnvironmentFault, Key, LrtrainError, Problem

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
_OF_CONTENT = re.compile("invalid literal|could not convert|indices must be")  # what Python says of a file's
_MOST_MATLAB = 8_000_000  # bytes, some three times what the lists of 8,144 cars take
_MOST_LABELS = 10_000_000
_MATLAB_S = 20.0
# Folders within root that torchvision makes where they are not there, before it looks for anything.
_MADE = {"Caltech101": "caltech101", "Caltech256": "caltech256", "INaturalist": ""}
_MATLAB = ("cars_test_annos_withlabels.mat", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat")
# What reads MATLAB files in a process of its own, of 4 GB at most; torchvision says it where there is no SciPy.
_READ_MATLAB = """
import contextlib, resource, sys
try:
    import scipy.io
except Exception:
    sys.exit()
with contextlib.suppress(ValueError, OSError):  # less is allowed already, or macOS
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
for i, path in enumerate(sys.argv[1:]):
    print(i, flush=True)
    scipy.io.loadmat(path)
"""
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
    from torchvision.datasets import DatasetFolder

    # Not their `root`, which of some is the folder that they were downloaded into.
    roots = {
        os.path.realpath(os.path.commonpath({os.path.dirname(path) for path, _ in pairs.samples}))
        for pairs in opened.values()
        if isinstance(pairs, DatasetFolder) and len(set(pairs.targets)) > 1
    }
    with usable(name):
        for split, pairs in opened.items():
            _refuse_labels_beyond(f"{name} ({split})", pairs)
        opened = {split: as_files(f"{name} ({split})", pairs) for split, pairs in opened.items()}
    return with_notes(replace(pairs_source(name, opened, val_fraction, seed), class_roots=tuple(roots)), note)


def _refuse_labels_beyond(name: str, pairs: Any) -> None:
    """Refuse a damaged file of labels of MNIST or its kind, which torchvision holds against no MD5."""
    if not hasattr(pairs, "raw_folder"):
        return
    labels = labels_of(name, pairs)
    i = int(labels.argmax())
    if labels[i] >= len(pairs.classes):
        what = f"image {i} of {name} has the label {labels[i]}, and there are {len(pairs.classes)} classes"
        raise DataError(what, hint="its file of labels is damaged: restore it")


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
        with only_whole_files():
            cls(**{**arguments, "split": value, **({"download": False} if "download" in arguments else {})})
    except ValueError as error:
        return "Valid values are" not in str(error)
    except Exception:  # known, but not opened: `_open` says why
        return True
    return True


def _open(cls: type, arguments: Mapping[str, Any], own: Mapping[str, Any], place: str = "") -> Any:
    """The dataset opened with the section's arguments and the split's own, which stand at `place` in the section."""
    name, given = cls.__name__, {**arguments, **own}
    shape = given.get("image_size")
    if name == "FakeData" and _values(shape) * 12 > MAX_BYTES:  # float32, and a copy of each kind
        what = f"FakeData would draw images of {shape}, more than {MAX_BYTES / 1e6:,.0f} MB each"
        raise ConfigError(what, Key("image_size"), "a smaller one, such as [3, 224, 224]")
    if "download" in _parameters(cls):
        given.setdefault("download", False)  # torchvision's own default is true for one of them
    if "loader" in _parameters(cls):
        given.setdefault("loader", path_itself)
    try:
        with only_whole_files():
            if isinstance(root := given.get("root"), str):
                _refuse_files(cls, Path(root).expanduser(), given)
            pairs = cls(**given)
            _label(name, pairs)
        return pairs
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
        if isinstance(error, OSError) and error.errno in BEYOND_FILES:
            raise
        missing = error if isinstance(error, ImportError) else error.__context__  # some say in words what it is
        if not isinstance(missing, ImportError):
            raise _unopened(cls, given, error) from error
        raise EnvironmentFault(
            f"{name} needs a package that is missing: {error}", hint=f"pip install {missing.name or 'it'}"
        ) from error


def _label(name: str, pairs: Any) -> None:
    """Give a dataset labels that it has elsewhere, or otherwise."""
    if name == "PCAM":
        pairs.targets = _labels_of_pcam(pairs)
    # Of GTSRB the train split numbers the folders that are there, and the test split the signs.
    elif name == "GTSRB" and all(_sign(file) is not None for file, _ in pairs._samples):
        pairs._samples = [(file, _sign(file)) for file, _ in pairs._samples]


def _sign(file: str) -> int | None:
    """The number of a sign, by the folder of an image of it."""
    folder = Path(file).parent.name
    return int(folder) if re.fullmatch("[0-9]{1,9}", folder) else None


def _values(shape: Any) -> int:
    """The numbers that an image of this shape has; 0 where it is no shape, which torchvision says."""
    known = isinstance(shape, list | tuple) and all(type(n) is int for n in shape)
    return math.prod(map(abs, shape)) if known else 0


def _refuse_files(cls: type, root: Path, given: Mapping[str, Any]) -> None:
    """Refuse packed files that torchvision would unpack whole, however large, where it holds no MD5 against them.

    Raises:
        ValueError: a file of USPS is another than the class names, or one of StanfordCars unpacks to too much, or ends
            whatever reads it.
        OSError: it cannot be read.
    """
    if cls.__name__ == "USPS" and not given.get("download"):  # else it makes sure itself
        from torchvision.datasets.utils import check_integrity

        _, name, md5 = cls.split_list["train" if given.get("train", True) else "test"]  # type: ignore[attr-defined]
        if (root / name).exists() and not check_integrity(root / name, md5):
            raise ValueError(f"{name} is not the dataset's own file, whose MD5 is {md5}: remove it")
    made = _MADE.get(cls.__name__)
    if made is not None and not given.get("download") and not (root / made).is_dir():
        raise RuntimeError(f"Dataset not found: there is no folder {root / made}")
    if cls.__name__ == "Caltech101" and given.get("target_type", "category") not in ("category", ["category"]):
        raise ValueError("only `target_type: category` gives images classes")
    if cls.__name__ == "StanfordCars":
        lists: list[tuple[Path, int, int]] = []
        for name in _MATLAB:
            if (path := root / "stanford_cars" / name).exists():
                _refuse_large_matlab(path)
                lists.append((path.resolve(), path.stat().st_size, path.stat().st_mtime_ns))
        if lists:
            _refuse_unreadable_matlab(tuple(lists))


def _labels_of_pcam(pairs: Any) -> NDArray[np.int64]:
    """Torchvision opens two files for each label: 262,144 times.

    Raises:
        ValueError: there are more than `_MOST_LABELS`; the file need not hold what it says that it has.
    """
    with pairs.h5py.File(pairs._base_folder / pairs._FILES[pairs._split]["targets"][0]) as file:
        labels = file["y"]
        if math.prod(labels.shape) > _MOST_LABELS:
            raise ValueError(f"it has {math.prod(labels.shape):,} labels, where PCAM has 262,144")
        return np.asarray(labels, dtype=np.int64).reshape(-1)


def _refuse_large_matlab(path: Path) -> None:
    with foreign.opened(path, links=True) as file:
        left = _MOST_MATLAB - os.fstat(file.fileno()).st_size
        order = "<" if file.read(128).endswith(b"IM") else ">"
        while left >= 0 and len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            content = file.read(size)
            if kind == _COMPRESSED:
                try:
                    left -= len(zlib.decompressobj().decompress(content, left + 1))
                except zlib.error as error:
                    raise ValueError(f"{path.name} is damaged: {error}") from error
    if left < 0:
        raise ValueError(f"{path.name} unpacks to more than {_MOST_MATLAB:,} bytes; the dataset's own is far smaller")


@cache
def _refuse_unreadable_matlab(files: tuple[tuple[Path, int, int], ...]) -> None:
    """Refuse damaged MATLAB files, of which some end the process: SciPy's reader writes where it should not.

    Args:
        files: their paths, sizes and times, so that each is looked at once.
    """
    paths = [path for path, _, _ in files]
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-c", _READ_MATLAB, *paths],
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=_MATLAB_S,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"its lists (*.mat) take more than {_MATLAB_S:g} s to read") from None
    if ended.returncode:
        *_, at = [0, *map(int, ended.stdout.split())]
        name, why = files[at][0].name, ended.stderr.strip().rpartition("\n")[2]
        raise ValueError(f"{name} is damaged: {why or f'SciPy crashes as it reads it, by signal {-ended.returncode}'}")


def _of_arguments(error: Exception) -> bool:
    """Whether a constructor that was called by the catcher took no such arguments, and read no file yet."""
    _, *inside = traceback.walk_tb(error.__traceback__)
    raised_by = inside[-1][0].f_code.co_name if inside else "__init__"  # none where Python itself refused the call
    said = str(error)
    return raised_by in _CHECKS and bool(_ABOUT_ARGUMENTS.search(said)) and not _OF_CONTENT.search(said)


def _unopened(cls: type, given: Mapping[str, Any], error: Exception) -> DataError:
    can_download = "download" in _parameters(cls) and not given.get("download")
    # A run's own `download: true` is not obeyed when it is resumed or evaluated, but --set is.
    hint = "add `download: true` to dataset, or --set dataset.download=true; or " if can_download else ""
    hint += "correct root: --set dataset.root=FOLDER, or dataset.splits.train.root=FOLDER"
    what = f"cannot open {cls.__name__} in {str(given.get('root'))!r}: {str(error) or type(error).__name__}"
    return DataError(what, hint=hint)
