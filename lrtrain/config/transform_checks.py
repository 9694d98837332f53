"""What torchvision's transforms would take and must not be given: found before any image, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lrtrain.config.messages import shortened, such_as
from lrtrain.config.yaml import Document, Loc
from lrtrain.errors import Problem

_Rule = tuple[Callable[[Any], bool], str]


MEANS, STDS = (-1e6, 1e6), (1e-6, 1e6)
"""What a normalisation may subtract and divide by."""


def _is_number(value: Any, low: float, high: float, *, whole: bool = False) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high


def _whole(low: int, high: int) -> _Rule:
    return lambda v: _is_number(v, low, high, whole=True), f"a whole number of at least {low} and at most {high}"


def _each(low: float, high: float, *, alone: bool) -> _Rule:
    """Numbers in a list, or one `alone`."""

    def holds(value: Any) -> bool:
        values = [value] if alone and not isinstance(value, list) else value
        return isinstance(values, list) and bool(values) and all(_is_number(item, low, high) for item in values)

    words = "a number or a list of numbers, each" if alone else "a list of numbers, each"
    return holds, f"{words} at least {low:g} and at most {high:g}"


def _rising(low: float, high: float) -> _Rule:
    def holds(value: Any) -> bool:
        two = isinstance(value, list) and len(value) == 2 and all(_is_number(item, low, high) for item in value)
        return two and value[0] <= value[1] and value[1] > 0

    return holds, f"two numbers, the lower first, from {low:g} to {high:g}, and not both 0"


# A kernel of 1001 x 1001 is a million weights; more would be made before an image is found to be too small for it.
_RULES: dict[tuple[str, str], _Rule] = {
    ("AugMix", "alpha"): (lambda v: _is_number(v, 0.01, 1000), "a number from 0.01 to 1000"),
    ("AugMix", "chain_depth"): _whole(-1, 100),
    ("AugMix", "mixture_width"): _whole(1, 100),
    ("AugMix", "severity"): _whole(1, 10),
    ("ElasticTransform", "sigma"): _each(0, 125, alone=True),
    ("GaussianBlur", "kernel_size"): _each(1, 1001, alone=True),
    ("Grayscale", "num_output_channels"): (lambda v: _is_number(v, 1, 3, whole=True) and v != 2, "1 or 3"),
    ("Normalize", "mean"): _each(*MEANS, alone=False),
    ("Normalize", "std"): _each(*STDS, alone=False),
    ("RandAugment", "num_magnitude_bins"): _whole(2, 1000),
    ("RandAugment", "num_ops"): _whole(0, 100),
    ("RandomAffine", "degrees"): _each(-1e6, 1e6, alone=True),
    ("RandomErasing", "ratio"): _rising(0.001, 1000),
    ("RandomErasing", "scale"): _rising(0, 1),
    ("RandomResizedCrop", "ratio"): _rising(0.001, 1000),
    ("RandomResizedCrop", "scale"): _rising(0, 100),
    ("RandomRotation", "degrees"): _each(-1e6, 1e6, alone=True),
    ("TrivialAugmentWide", "num_magnitude_bins"): _whole(2, 1000),
}
_EXAMPLES = {
    ("Grayscale", "num_output_channels"): "num_output_channels: 3",
    ("Normalize", "mean"): "mean: [0.485, 0.456, 0.406]",
    ("Normalize", "std"): "std: [0.229, 0.224, 0.225]",
    ("GaussianBlur", "kernel_size"): "kernel_size: 5",
}


def check_transform(
    name: str, args: dict[str, Any], defaults: dict[str, str | None], loc: Loc, document: Document
) -> Iterator[Problem]:
    """Arguments of a transform that end in a crash, in NaN or never, though torchvision takes them.

    Args:
        name: of the transform.
        args: as given in the config.
        defaults: what `lookup.arguments` knows.
        loc: its keys in the config.
        document: the config.
    """
    for key, value in args.items():
        holds, words = _RULES.get((name, key), (None, ""))
        if holds is not None and not holds(value):
            example = _EXAMPLES.get((name, key))
            hint = f"such as {example}" if example else such_as(key, defaults.get(key))
            yield Problem(f"{name}'s {key} must be {words}; got {shortened(value)}", document.where(*loc, key), hint)
    bins, magnitude = args.get("num_magnitude_bins", 31), args.get("magnitude", 9)
    if name == "RandAugment" and isinstance(bins, int) and not _is_number(magnitude, 0, bins - 1, whole=True):
        what = f"RandAugment's magnitude must be a whole number below num_magnitude_bins, {bins}; got {magnitude!r:.80}"
        yield Problem(what, document.where(*loc), "leave both out: they are 9 and 31 then")
    if "transforms" in args:
        yield from _check_inner(name, args["transforms"], (*loc, "transforms"), document)


def _check_inner(name: str, inner: Any, loc: Loc, document: Document) -> Iterator[Problem]:
    """A transform that holds others is given them as the config's own lists are."""
    hint = "such as transforms: [RandomHorizontalFlip, {name: RandomRotation, degrees: 10}]"
    if not isinstance(inner, list):
        yield Problem(f"{name}'s transforms must be a list; got {shortened(inner)}", document.where(*loc), hint)
        return
    for i, item in enumerate(inner):
        if not isinstance(item["name"] if isinstance(item, dict) and "name" in item else item, str):
            what = f"each of {name}'s transforms must be a name, or a mapping with a name; got {shortened(item)}"
            yield Problem(what, document.where(*loc, i), hint)
