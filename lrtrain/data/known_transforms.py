"""What is known of torchvision's transforms: how large the image is that each makes, and which of them draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch.nn import ModuleList

Size = tuple[int, int]

MOST_PIXELS = 61_000_000  # that a transform may make, as few as `decode` reads of colour
_SETS_SIZE = frozenset(("CenterCrop", "RandomCrop", "RandomResizedCrop"))
# A name missing here costs time only: batched ops after it run sample by sample, and the size is found by trying.
KEEPS_SIZE = frozenset(
    (
        "AugMix",
        "AutoAugment",
        "ColorJitter",
        "ElasticTransform",
        "GaussianBlur",
        "GaussianNoise",
        "Grayscale",
        "JPEG",
        "Normalize",
        "RGB",
        "RandAugment",
        "RandomAdjustSharpness",
        "RandomAffine",
        "RandomAutocontrast",
        "RandomChannelPermutation",
        "RandomEqualize",
        "RandomErasing",
        "RandomGrayscale",
        "RandomHorizontalFlip",
        "RandomInvert",
        "RandomPerspective",
        "RandomPhotometricDistort",
        "RandomPosterize",
        "RandomSolarize",
        "RandomVerticalFlip",
        "ToDtype",
        "TrivialAugmentWide",
    )
)
_RESIZES_BY_CHANCE = frozenset(("RandomIoUCrop", "RandomResize", "RandomShortestSize", "RandomZoomOut", "ScaleJitter"))
_RESIZES = _RESIZES_BY_CHANCE | _SETS_SIZE | {"Pad", "Resize"}
# Those that draw, besides all whose name starts with Random, and when.
_DRAWS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("AugMix", "AutoAugment", "ColorJitter", "RandAugment", "TrivialAugmentWide"), lambda t: True),
    "ElasticTransform": lambda t: any(t.alpha),
    "GaussianBlur": lambda t: t.sigma[0] != t.sigma[1],
    "GaussianNoise": lambda t: t.sigma != 0,
    "JPEG": lambda t: t.quality[0] != t.quality[1],
    "ScaleJitter": lambda t: len(set(t.scale_range)) > 1,
}


class TooLarge(ValueError):
    """A transform would make an image that takes more memory than any that is decoded."""

    hint = "give both sides, such as `size: [224, 224]`, or leave the image out"


def nested(transform: Any) -> Iterator[Any]:
    """A transform, and those that it holds, such as a Compose's."""
    yield transform
    inner = getattr(transform, "transforms", None)
    for one in inner if isinstance(inner, list | tuple | ModuleList) else ():
        yield from nested(one)


def may_resize(entry: dict[str, Any]) -> bool:
    """Whether what a config names is known to change the size of some images, and perhaps of none that are tried."""
    return entry["name"] in _RESIZES_BY_CHANCE or any(map(_resizes, _inner(entry)))


def _resizes(entry: dict[str, Any]) -> bool:
    name = entry.get("name")
    return (
        name in _RESIZES
        or (name == "RandomRotation" and bool(entry.get("expand")))
        or any(map(_resizes, _inner(entry)))
    )


def _inner(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What it holds, such as a RandomApply's transforms."""
    inner = entry.get("transforms")
    named = inner if isinstance(inner, list) else []
    return [one if isinstance(one, dict) else {"name": one} for one in named]


def is_theirs(transform: Any) -> bool:
    """Whether it is of torchvision.transforms.v2 itself."""
    return type(transform).__module__.startswith("torchvision.transforms.v2.")


def draws(transform: Any) -> bool:
    """Whether a transform of torchvision's draws random numbers; of those that it holds, see `nested`."""
    return any(
        cls.__name__.startswith("Random") or (cls.__name__ in _DRAWS and _DRAWS[cls.__name__](transform))
        for cls in type(transform).__mro__
        if cls.__module__.startswith("torchvision.")
    )


def size_after(transform: Any, name: str, size: Size | None) -> Size | None:
    """Height and width that a transform makes of an image, where that is known beforehand.

    Args:
        transform: torchvision's object.
        name: as in the config.
        size: height and width of the image, where they are known.
    """
    if name in KEEPS_SIZE or (name == "RandomRotation" and not transform.expand):
        return size
    if name in _SETS_SIZE:
        height, width = transform.size
        return int(height), int(width)
    if name == "Pad" and size is not None:
        return _padded(transform, size)
    if name == "Resize" and transform.max_size is None and transform.size:
        wanted = transform.size
        sides = [wanted] if isinstance(wanted, int) else list(wanted)
        if len(sides) == 2:
            return int(sides[0]), int(sides[1])
        if size is not None:  # the shorter side is given, and the longer one in proportion
            longer = int(sides[0] * max(size) / max(1, min(size)))
            return (longer, int(sides[0])) if size[0] > size[1] else (int(sides[0]), longer)
    return None


def refuse_huge(transform: Any, size: Size | None) -> None:
    """Refuse to make an image larger than any that is decoded, of one of a height and width; None where not known.

    Raises:
        TooLarge: says how large.
    """
    name = type(transform).__name__
    for height, width in _makes(transform, name, size) if is_theirs(transform) else ():
        if height * width > MOST_PIXELS:
            raise TooLarge(f"{name} would make {height:,} x {width:,} pixels, more than {MOST_PIXELS:,}")


def _makes(transform: Any, name: str, size: Size | None) -> Iterator[Size]:
    """The largest images that a transform can make of one of this size, or at least makes of any, on its way too."""
    height, width = size or (1, 1)
    if name == "RandomZoomOut":
        yield int(height * transform.side_range[1]), int(width * transform.side_range[1])
    elif name == "RandomResize":
        yield _shortest(max(transform.min_size, transform.max_size - 1), None, (height, width))
    elif name == "RandomShortestSize" and (size or transform.max_size is None):
        yield _shortest(max(transform.min_size), transform.max_size, (height, width))
    elif name == "Resize" and (transform.size is None or (transform.max_size is not None and size)):
        shortest = math.inf if transform.size is None else min(transform.size)
        yield _shortest(shortest, transform.max_size, (height, width))
    elif name == "ScaleJitter" and size:
        longest, widest = transform.target_size[1], transform.target_size[0]
        factor = min(longest / height, widest / width) * max(transform.scale_range)
        yield int(height * factor), int(width * factor)
    elif name == "RandomRotation" and transform.expand:
        yield _turned(transform.degrees, height, width)
    elif name == "RandomCrop":
        left, right, top, bottom = transform.padding or (0, 0, 0, 0)
        height, width = height + top + bottom, width + left + right
        if transform.pad_if_needed:  # on both sides, by what is missing
            height, width = (max(have, 2 * s - have) for have, s in zip((height, width), transform.size, strict=True))
        yield height, width
    if (made := size_after(transform, name, (height, width))) is not None:
        yield made


def _padded(transform: Any, size: Size) -> Size:
    sides = transform.padding
    left, top, *others = [sides] * 4 if isinstance(sides, int) else list(sides) * (4 // len(sides))
    return size[0] + top + others[1], size[1] + left + others[0]


def _shortest(side: float, longest: int | None, size: Size) -> Size:
    """The size in proportion whose shorter side is `side`, or less where the longer one would be above `longest`."""
    factor = min(side / min(size), math.inf if longest is None else longest / max(size))
    return int(size[0] * factor), int(size[1] * factor)


def _turned(degrees: Any, height: int, width: int) -> Size:
    """The frame around an image that is turned by the angle, of those from the first to the second, that needs most."""
    first, last = degrees
    diagonal = 45 + 90 * math.ceil((first - 45) / 90)
    angle = max(
        (first, last, *([diagonal] if diagonal <= last else [])),
        key=lambda angle: abs(math.sin(math.radians(2 * angle))),
    )
    sin, cos = abs(math.sin(math.radians(angle))), abs(math.cos(math.radians(angle)))
    return int(height * cos + width * sin), int(height * sin + width * cos)
