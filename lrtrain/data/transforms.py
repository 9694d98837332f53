"""A list of transforms from the config becomes three stages: once per image, per sample, and per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

from lrtrain import lookup
from lrtrain.data.augment import BatchOp, batch_op
from lrtrain.data.composed import flat
from lrtrain.data.known_transforms import Size, TooLarge, is_theirs, nested, refuse_huge, size_after
from lrtrain.errors import ConfigError
from lrtrain.random import key, seeded, uniforms

Entry = dict[str, Any]
Located = tuple[int | None, Entry]

TO_FLOAT: Entry = {"name": "ToDtype", "dtype": "float32", "scale": True}
# uint8 in, uint8 out, nothing drawn: done once per image, and kept.
_ONCE = frozenset(("Resize", "CenterCrop", "Pad", "Grayscale", "RGB"))
_ENDING = ("ToDtype", "ConvertImageDtype", "ToTensor", "Normalize")
# Images are tensors from the start.
_NOTHING_TO_DO = frozenset(("ToImage", "PILToTensor", "ToPureTensor", "Identity"))
_REFUSED = {
    "MixUp": "it mixes a whole batch, labels included; write `mixup: 0.2` at the top level",
    "CutMix": "it mixes a whole batch, labels included; write `cutmix: 1.0` at the top level",
    "FiveCrop": "it makes five images of one",
    "TenCrop": "it makes ten images of one",
    "ToPILImage": "images are tensors here; leave it out",
}


@dataclass(frozen=True)
class Moment:
    """Which random numbers are drawn: those of an epoch, or the fixed ones of evaluation."""

    seed: int
    epoch: int | str

    def uniforms(self, position: int, index: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
        """Draws of the op at `position` of the list for the samples `index`, shape (B, draws)."""
        return uniforms(key(self.seed, "augment", self.epoch, position), index, draws)

    def seeded(self, index: int) -> AbstractContextManager[None]:
        """Inside, torch's, numpy's and Python's generators start from `index`; afterwards all is as before."""
        return seeded(key(self.seed, "augment", self.epoch, "sample", index))


@dataclass(frozen=True)
class Step:
    """One transform: torchvision's object, and the op that does the same to a batch where there is one."""

    position: int
    name: str
    transform: Any
    batched: BatchOp | None
    where: str | None
    entry: Entry
    """Name and arguments, as resolved."""

    def to_sample(self, image: torch.Tensor, index: int, moment: Moment) -> torch.Tensor:
        """Transform one image (C, H, W), by the batched op where there is one."""
        if self.batched is None:
            return self.alone(image)
        refuse_huge(self.transform, (image.shape[-2], image.shape[-1]))
        return self.to_batch(image[None], np.array([index]), moment)[0]

    def alone(self, image: torch.Tensor) -> torch.Tensor:
        """Transform one image (C, H, W), by torchvision's object.

        Raises:
            TooLarge: it would become larger than any image that is decoded.
        """
        made: torch.Tensor = self.transform(image)
        # A network with weights of its own.
        return made.detach() if isinstance(made, torch.Tensor) and made.requires_grad else made

    def to_batch(self, images: torch.Tensor, index: NDArray[np.int64], moment: Moment) -> torch.Tensor:
        """Transform images (B, C, H, W), by the batched op."""
        assert self.batched is not None
        return self.batched(images, moment.uniforms(self.position, index, self.batched.draws))


@dataclass(frozen=True)
class Stages:
    """A list of transforms, parted by where each runs; what comes out is the same as sample by sample."""

    once: tuple[Step, ...]
    per_sample: tuple[Step, ...]
    per_batch: tuple[Step, ...]
    size: Size | None
    """Height and width after `once`, where that is known beforehand."""

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        """The deterministic beginning: uint8 in, uint8 out."""
        for step in self.once:
            image = step.alone(image)
        return image

    def to_sample(self, image: torch.Tensor, index: int, moment: Moment) -> torch.Tensor:
        """What must be done sample by sample."""
        if not self.per_sample:
            return image
        with moment.seeded(index):
            for step in self.per_sample:
                image = step.to_sample(image, index, moment)
        return image

    def to_batch(self, images: torch.Tensor, index: NDArray[np.int64], moment: Moment) -> torch.Tensor:
        """The end of the list, which works on a batch."""
        for step in self.per_batch:
            images = step.to_batch(images, index, moment)
        return images

    def steps(self) -> tuple[Step, ...]:
        """The whole list."""
        return (*self.once, *self.per_sample, *self.per_batch)


def completed(entries: Sequence[Entry], ending: Callable[[int], Sequence[Entry]], channels: int) -> list[Located]:
    """The list with conversion to float32 and normalisation: each where it is written, else at the end.

    Args:
        entries: names and arguments.
        ending: conversion and normalisation for a number of channels, for what the list lacks of them.
        channels: of the images the list starts from.

    Returns:
        Pairs of the entry's place in `entries`, None for what was added, and the entry.
    """
    found: list[Located] = []
    for i, entry in flat(entries):
        name = entry["name"]
        channels = _channels_after(entry, channels)
        if name in ("ToTensor", "ConvertImageDtype"):
            found.append((i, {**TO_FLOAT, "dtype": str(entry.get("dtype", "float32"))}))
        elif name not in _NOTHING_TO_DO:
            if name == "Normalize" and not any(is_ending(earlier) for _, earlier in found):
                found.append((None, TO_FLOAT))
            found.append((i, dict(entry)))
    written = {entry["name"] for _, entry in found}
    if "Normalize" not in written:
        found += [(None, dict(entry)) for entry in ending(channels) if entry["name"] not in written]
    return found


def channels_after(entries: Sequence[Entry], channels: int) -> int:
    """Of the images that a list makes of those with `channels`."""
    for _, entry in flat(entries):
        channels = _channels_after(entry, channels)
    return channels


def _channels_after(entry: Entry, channels: int) -> int:
    return {"Grayscale": int(entry.get("num_output_channels", 1)), "RGB": 3}.get(entry["name"], channels)


def colouring(entries: Sequence[Entry], channels: int) -> tuple[list[Entry], list[Entry]]:
    """What in a list makes other colours or channels of images of `channels`, and another list must have too.

    Returns:
        What it must begin with, and where there is such a thing behind Normalize, what it must end with.
    """
    found: list[Entry] = []
    first = None  # of what is in floats
    for _, entry in completed(entries, lambda _: (), channels):
        if is_ending(entry) and first is None:
            first = len(found)
        if is_ending(entry) or entry["name"] == "Grayscale" or (entry["name"] == "RGB" and channels != 3):
            found.append(entry)
        channels = _channels_after(entry, channels)
    names = [entry["name"] for entry in found]
    if "Normalize" in names and not all(map(is_ending, found[names.index("Normalize") :])):
        return found[:first], found[first:]
    return [entry for entry in found if not is_ending(entry)], []


def is_ending(entry: Entry) -> bool:
    """Whether this is conversion to float32 or normalisation."""
    return entry["name"] in ("ToDtype", "Normalize")


def build_steps(entries: Sequence[Entry], places: Sequence[str]) -> list[Step]:
    """The objects that a complete list names; `places` says where each entry stands, for errors.

    Raises:
        ConfigError: a name or argument that torchvision does not take.
    """
    steps = []
    for i, entry in enumerate(entries):
        transform = _construct(entry, places[i])
        after = entries[i + 1]["name"] if i + 1 < len(entries) else None
        with _taken_by(entry["name"], places[i]):
            batched = batch_op(entry["name"], transform)
        if batched is not None and entry["name"] == "ToDtype" and after == "Normalize":
            continue  # Normalize takes uint8, and does both in one
        steps.append(Step(i, entry["name"], transform, batched, places[i], dict(entry)))
    return steps


def stages(steps: Sequence[Step], size: Size | None) -> Stages:
    """Part a list: its deterministic beginning, the longest end that works on batches, and what is between.

    Args:
        steps: the whole list.
        size: height and width of the images it starts from, where they are all the same.
    """
    sizes = [size]
    for step in steps:
        sizes.append(size_after(step.transform, step.name, sizes[-1]))
    first = 0
    while first < len(steps) and steps[first].name in _ONCE:
        first += 1
    last = len(steps)
    while last > first and steps[last - 1].batched is not None and sizes[last - 1] is not None:
        last -= 1
    return Stages(tuple(steps[:first]), tuple(steps[first:last]), tuple(steps[last:]), sizes[first])


@contextmanager
def _taken_by(name: str, where: str | None) -> Iterator[None]:
    """What fails inside fails by the arguments of the transform."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.problems[0].what, where, error.problems[0].hint) from error
    except Exception as error:
        raise ConfigError(f"the transform {name} does not take these arguments: {error}", where) from error


def _construct(entry: Mapping[str, Any], where: str | None) -> Any:
    name = entry["name"]
    if name in _REFUSED:
        raise ConfigError(f"the transform {name} cannot be used in a list: {_REFUSED[name]}", where)
    arguments = {k: _argument(k, v, where) for k, v in entry.items() if k != "name"}
    with _taken_by(name, where):
        made = lookup.find("transform", name)(**arguments)
        with suppress(TooLarge):  # that is said of the images
            refuse_huge(made, (1, 1))
    _refuse_hidden(made, name, where)
    if is_theirs(made):
        made.register_forward_pre_hook(_refuse_huge)  # wherever it stands: in a Compose nobody else looks
    return made


def _refuse_hidden(made: Any, name: str, where: str | None) -> None:
    """Conversion and normalisation that the list does not show would be done a second time at its end."""
    for part in nested(made):
        kind = type(part).__name__
        if type(part).__module__.startswith("torchvision.") and kind in _ENDING and kind != name:
            inside = f"in {name}" if part is not made else f"as {name}"
            raise ConfigError(
                f"{kind} must stand in the list itself, not {inside}: it is for every image, and done once",
                where,
                f"write {{name: {kind}, ...}} as an item of the list",
            )


def _refuse_huge(transform: Any, images: tuple[Any, ...]) -> None:
    if images and isinstance(images[0], torch.Tensor) and images[0].ndim >= 2:
        refuse_huge(transform, (images[0].shape[-2], images[0].shape[-1]))


def _argument(name: str, value: Any, where: str | None) -> Any:
    """An argument as torchvision takes it: a dtype, interpolation or policy instead of its name."""
    if name == "dtype" and isinstance(value, str):
        dtype = getattr(torch, value.removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(f"dtype must be a torch dtype such as float32, not {value!r}", where)
        return dtype
    kinds = {"interpolation": InterpolationMode, "policy": AutoAugmentPolicy}
    if name in kinds and isinstance(value, str):
        allowed = [kind.value for kind in kinds[name]]
        if value.lower() not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}", where)
        return kinds[name](value.lower())
    if name == "transforms" and isinstance(value, list):
        return [_construct({"name": item} if isinstance(item, str) else item, where) for item in value]
    return deepcopy(value)  # what a transform does to it is not done to the list that is written down
