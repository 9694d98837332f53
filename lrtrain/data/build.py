"""A source, and the transforms of the config's `dataset` section, become a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lrtrain.config.schema import Dataset, Named
from lrtrain.data.default_transforms import (
    PHOTO,
    default_size,
    default_statistics,
    train_defaults,
    val_defaults,
)
from lrtrain.data.known_transforms import Size, TooLarge, draws, is_theirs, nested, refuse_huge, size_after
from lrtrain.data.loader import SAME_SIZE
from lrtrain.data.open import Where, place_of
from lrtrain.data.source import Source, Split
from lrtrain.data.transforms import (
    TO_FLOAT,
    Entry,
    Moment,
    Stages,
    Step,
    build_steps,
    channels_after,
    colouring,
    completed,
    is_ending,
    stages,
)
from lrtrain.errors import ConfigError, DataError, Problem, about

_MOST_MEAN = 10.0  # of pixels, which are from 0 to 1: many publish means of pixels from 0 to 255
_TRIED = 4  # images that a transform list is tried on before training


@dataclass(frozen=True)
class Pipeline:
    """A source, and what is done to its images for training and for evaluation.

    Attributes:
        shape: (channels, height, width) that the model sees while training.
        val_shape: the same in evaluation.
        resolved_transforms: the lists in full, as plain data; a config with them gives the same pipeline.
        where: the line of the config that errors of the images point to.
    """

    source: Source
    train: Stages
    val: Stages
    seed: int
    shape: tuple[int, int, int]
    val_shape: tuple[int, int, int]
    resolved_transforms: dict[str, list[Entry]]
    where: str


def make_pipeline(
    source: Source,
    dataset: Dataset,
    *,
    seed: int,
    where: Where,
    mean_std: tuple[Sequence[float], Sequence[float]] | None = None,
    photo_size: int = PHOTO,
    tried: Mapping[str, Sequence[int]] | None = None,
) -> Pipeline:
    """Complete the transform lists, part them into stages and try them on a few images.

    Args:
        source: what the images are.
        dataset: the section; lists that it lacks get the defaults of `default_transforms`.
        seed: of the run; keys the augmentation.
        where: `RunConfig.where`.
        mean_std: what the pretrained weights were trained with, per channel; the dataset's own when absent.
        photo_size: side in pixels that photos are brought to, where no list says otherwise.
        tried: the images of train and val to try them on, in place of some.

    Raises:
        ConfigError: a list cannot be built, or fails on the dataset's images.
        DataError: one of these images cannot be read.
    """
    written = {"train": _written(dataset.transforms.train), "val": _written(dataset.transforms.val)}
    place = place_of(dataset, where)
    with about(place):
        size = source.image_size

    _refuse_two_normalisations(written, where)
    shared = _ending(written)
    _refuse_two_scales(written, shared is None, where)

    def ending(channels: int) -> Sequence[Entry]:
        if shared is not None:
            return shared
        fitting = mean_std is not None and len(mean_std[0]) == channels
        mean, std = mean_std if mean_std is not None and fitting else default_statistics(source, channels)
        if max(map(abs, mean)) > _MOST_MEAN:
            what = f"the weights name a mean of {', '.join(map(str, mean))}, and here pixels are from 0 to 1"
            hint = "divide their mean and std by 255 if they are of pixels up to 255; or write Normalize in transforms"
            raise ConfigError(what, where("model", "weights"), hint)
        return [TO_FLOAT, {"name": "Normalize", "mean": list(mean), "std": list(std)}]

    def made(name: str, entries: Sequence[Entry]) -> tuple[list[Entry], list[Step]]:
        located = completed(entries, ending, source.channels)
        places = [
            where("dataset", "transforms", name, i)
            if written[name] is not None and i is not None
            else where("dataset", "transforms")
            for i, _ in located
        ]
        resolved = [entry for _, entry in located]
        return resolved, build_steps(resolved, places)

    on = {name: some(len(split)) for name, split in source.splits().items()} if tried is None else tried

    def shape_after(name: str, steps: Sequence[Step], changing: set[int]) -> tuple[int, int, int]:
        if name == "val":
            _refuse_random(steps)
        with about(place):
            _refuse_huge(name, steps, size)
            split = source.train if name == "train" else source.val
            return _tried(split, name, steps, on[name], seed, where, changing)

    train, val = _with_defaults(source, written, size, photo_size, made, shape_after)
    shape, val_shape = shape_after("train", train[1], set()), shape_after("val", val[1], set())
    if shape[0] != val_shape[0]:
        raise ConfigError(
            f"the train transforms leave images of {shape[0]} channels, and those of val of {val_shape[0]}",
            where("dataset", "transforms", "val"),
            "write Grayscale or RGB into both lists",
        )
    resolved = {"train": train[0], "val": val[0]}
    return Pipeline(source, stages(train[1], size), stages(val[1], size), seed, shape, val_shape, resolved, place)


def channels_seen(source: Source, dataset: Dataset) -> int:
    """Channels of the images that the model gets: the source's, or what Grayscale or RGB in a list make of them."""
    written = _written(dataset.transforms.train) or _written(dataset.transforms.val) or []
    return channels_after(written, source.channels)


def _written(items: tuple[Named, ...] | None) -> list[Entry] | None:
    return None if items is None else [{"name": item.name, **item.args} for item in items]


def _ending(written: dict[str, list[Entry] | None]) -> list[Entry] | None:
    """How a list that is written converts and normalises, where it does normalise; the other must do the same."""
    for entries in written.values():
        found = [entry for _, entry in completed(entries or (), lambda channels: (), 3) if is_ending(entry)]
        if any(entry["name"] == "Normalize" for entry in found):
            return found
    return None


def _refuse_two_normalisations(written: dict[str, list[Entry] | None], where: Where) -> None:
    found = {
        name: [
            (entry.get("mean"), entry.get("std"))
            for _, entry in completed(entries or (), lambda _: (), 3)
            if entry["name"] == "Normalize"
        ]
        for name, entries in written.items()
    }
    if all(found.values()) and found["train"] != found["val"]:
        words = {
            name: " then ".join(f"mean {mean}, std {std}" for mean, std in values) for name, values in found.items()
        }
        raise ConfigError(
            f"train and val normalise differently: {words['train']} against {words['val']}",
            where("dataset", "transforms", "val"),
            "the model must be evaluated on what it was trained on; a list without Normalize gets the other's",
        )


def _refuse_two_scales(written: dict[str, list[Entry] | None], added: bool, where: Where) -> None:
    """Refuse pixels of 0..255 where the other list has 0..1, or where Normalize, which is for those, is `added`."""
    scales: dict[str, bool] = {}
    for name, entries in written.items():
        for i, entry in completed(entries or (), lambda _: (), 3):
            if name not in scales and entry["name"] == "ToDtype" and "float" in str(entry.get("dtype")):
                scales[name] = bool(entry.get("scale"))
                if not scales[name] and (added or True in scales.values()):
                    what = "ToDtype without `scale` leaves pixels of 0..255, where Normalize is for those of 0..1"
                    at = where("dataset", "transforms", name, *([] if i is None else [i]))
                    raise ConfigError(what, at, "add `scale: true`")
    if len(set(scales.values())) > 1:
        what = "train and val scale differently: ToDtype has `scale: true` in one of them only"
        raise ConfigError(what, where("dataset", "transforms"), "write it in both, or in neither")


def _with_defaults(
    source: Source,
    written: dict[str, list[Entry] | None],
    size: Size | None,
    photo_size: int,
    made: Callable[[str, Sequence[Entry]], tuple[list[Entry], list[Step]]],
    shape_after: Callable[[str, Sequence[Step], set[int]], tuple[int, int, int]],
) -> tuple[tuple[list[Entry], list[Step]], tuple[list[Entry], list[Step]]]:
    """Both lists, built; one that is absent gets the default for the size that the other ends with."""
    train, val = (made(name, entries) if entries is not None else None for name, entries in written.items())
    if train and val:
        return train, val
    given, name = (train, "train") if train else (val, "val")
    changing: set[int] = set()
    target = shape_after(name, given[1], changing)[1:] if given else default_size(source, photo_size)
    sized = [(entry, i in changing) for i, entry in enumerate(given[0])] if given else []
    begin, end = colouring(written[name] or [], source.channels)

    def fitting(name: str, lists: Iterator[list[Entry]]) -> tuple[list[Entry], list[Step]]:
        """The first list that makes images of the size; the last one does."""
        *others, last = lists
        for entries in others if given else ():
            with suppress(ConfigError):
                found = made(name, [*begin, *entries, *end])
                if shape_after(name, found[1], set())[1:] == target:
                    return found
        return made(name, [*begin, *last, *end])

    return (
        train or fitting("train", train_defaults(source, target, sized)),
        val or fitting("val", val_defaults(source, target, sized)),
    )


def _refuse_random(steps: Sequence[Step]) -> None:
    problems = []
    for step in steps:
        drawn = next(filter(draws, nested(step.transform)), None)
        if drawn is not None:
            inside = "" if drawn is step.transform else f", in {step.name},"
            what = f"evaluation must not be random, and {type(drawn).__name__}{inside} is"
            hint = "move it to transforms.train; val usually has Resize and CenterCrop"
            problems.append(Problem(what, step.where, hint))
    if problems:
        raise ConfigError(problems)


def _refuse_huge(name: str, steps: Sequence[Step], size: Size | None) -> None:
    """Refuse what makes too large an image of any, or of those of `size` where all are of one."""
    for step in steps:
        try:
            for part in nested(step.transform):
                refuse_huge(part, size if part is step.transform else None)
        except TooLarge as error:
            raise ConfigError(f"the {name} transform {error}", step.where, "a smaller size") from error
        size = size_after(step.transform, step.name, size)


def some(n: int) -> list[int]:
    """A few of n things, from the first to the last."""
    return np.unique(np.linspace(0, n - 1, _TRIED).astype(int)).tolist() if n else []


def _tried(
    split: Split, name: str, steps: Sequence[Step], on: Sequence[int], seed: int, where: Where, changing: set[int]
) -> tuple[int, int, int]:
    """Run a list on a few images, so that what fails is known before training; the shape they end with.

    The entries that change the size of one are added to `changing`, by their place in the list.
    """
    if len(split) == 0:
        raise DataError(f"the {name} split has no images")
    shapes: dict[tuple[int, ...], int] = {}
    moment = Moment(seed, "try")
    own = not all(is_theirs(part) for step in steps for part in nested(step.transform))
    for i in on:
        image = split.read(i)
        made = []
        for step, after in _through(split, name, steps, i, moment):
            if after.shape[1:] != image.shape[1:]:
                changing.add(step.position)
            image = after
            if own:
                made.append(image.clone())
        if own:
            _refuse_unrepeatable(split.path(i), name, made, _through(split, name, steps, i, moment))
        if image.dtype != torch.float32:
            raise ConfigError(
                f"the {name} transforms must end with float32 images, not {image.dtype}",
                where("dataset", "transforms", name),
                "end with {name: ToDtype, dtype: float32, scale: true}",
            )
        shapes.setdefault(tuple(image.shape), i)
    if len(shapes) > 1:
        found = "; ".join(f"{split.path(i)}: {_shape(shape)}" for shape, i in list(shapes.items())[:2])
        raise ConfigError(
            f"the {name} transforms leave images of different sizes, which make no batch: {found}",
            where("dataset", "transforms", name),
            SAME_SIZE,
        )
    channels, height, width = next(iter(shapes))
    return channels, height, width


def _through(
    split: Split, name: str, steps: Sequence[Step], i: int, moment: Moment
) -> Iterator[tuple[Step, torch.Tensor]]:
    """An image after each step of a list."""
    image: Any = split.read(i)
    with moment.seeded(i):
        for step in steps:
            try:
                after: Any = step.to_sample(image, i, moment)
            except TooLarge as error:
                raise DataError(f"{split.path(i)}: {error}", step.where, TooLarge.hint) from error
            except Exception as error:
                raise ConfigError(
                    f"the {name} transform {step.name} fails on {split.path(i)}, {_described(image)}: {error}",
                    step.where,
                ) from error
            if not isinstance(after, torch.Tensor) or after.ndim != 3 or not after.numel():
                raise ConfigError(
                    f"the {name} transform {step.name} must make one image of one; it made {_described(after)}",
                    step.where,
                    "leave it out",
                )
            image = after
            yield step, image


def _refuse_unrepeatable(
    path: str, name: str, made: Sequence[torch.Tensor], again: Iterator[tuple[Step, torch.Tensor]]
) -> None:
    """Refuse a step that makes another image when it is asked again: what it makes would depend on who is asked.

    Worker processes each have a copy of it, and a run that goes on begins with a new one.
    """
    for before, (step, after) in zip(made, again, strict=True):
        if before.dtype != after.dtype or not torch.equal(_bits(before), _bits(after)):
            raise ConfigError(
                f"the {name} transform {step.name} makes another image of {path} when it is asked again: it draws "
                "from a generator of its own, or counts",
                step.where,
                "draw from torch's, numpy's or Python's own generator, which are seeded for each image and epoch",
            )


def _bits(image: torch.Tensor) -> torch.Tensor:
    plain = image.as_subclass(torch.Tensor)
    odd = plain.is_quantized or plain.layout != torch.strided or plain.is_complex()
    return torch.empty(0) if odd else plain.contiguous().view(torch.uint8)


def _described(image: Any) -> str:
    if isinstance(image, torch.Tensor):
        return f"{image.dtype} {_shape(tuple(image.shape))}".removeprefix("torch.")
    return type(image).__name__


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
