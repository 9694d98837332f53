"""What is done to images where the config does not say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lrtrain.data.known_transforms import KEEPS_SIZE, may_resize
from lrtrain.data.source import Source

SMALL = 64  # px: up to this as their larger side, images of one size are trained on as they are
PHOTO = 224  # px: what others are brought to, torchvision's and timm's usual size
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,), (0.5,))

Entry = dict[str, Any]
Size = tuple[int, int]
Sized = tuple[Entry, bool]  # of a list as `completed`, and whether it was seen to change the size of an image


def is_small(source: Source) -> bool:
    """Whether the images are trained on at their own size."""
    return source.image_size is not None and max(source.image_size) <= SMALL


def default_size(source: Source, photo_size: int = PHOTO) -> Size:
    """Height and width that the model sees where neither list is given."""
    size = source.image_size if is_small(source) else None
    return size or (photo_size, photo_size)


def train_defaults(source: Source, size: Size, val: Sequence[Sized]) -> Iterator[list[Entry]]:
    """Lists that may do, the first whose images are of `size`: small images as `val` makes them, and the usual one.

    Small images are padded by an eighth and cropped; of others a random part is taken (Szegedy 2015). Both are
    mirrored at odds of 1/2, unless the source says that a mirrored image is another thing.
    """
    flip: list[Entry] = [{"name": "RandomHorizontalFlip", "p": 0.5}] if source.mirrored_is_same else []
    if not is_small(source):
        yield [{"name": "RandomResizedCrop", "size": list(size)}, *flip]
        return
    crop: Entry = {"name": "RandomCrop", "size": list(size), "padding": [size[1] // 8, size[0] // 8]}
    same = _without_chance(source, val, "RandomCrop")
    if same is not None:
        cropped = any(entry["name"] == "RandomCrop" for entry in same)
        yield [*same, *([] if cropped else [crop]), *flip]
        # CenterCrop pads what is too small.
        yield [*({**entry, "pad_if_needed": True} if entry["name"] == "RandomCrop" else entry for entry in same), *flip]
    yield [*_resized(source, size), crop, *flip]


def val_defaults(source: Source, size: Size, train: Sequence[Sized]) -> Iterator[list[Entry]]:
    """Lists that may do, the first whose images are of `size`: what `train` does but without chance, and the usual one.

    That takes the middle 7/8 of the shorter side, also where a random part is taken of photos; small ones stay whole.
    """
    same = _without_chance(source, train, "CenterCrop")
    if is_small(source):
        whole = source.image_size
        if size == whole and all(e["name"] == "CenterCrop" and _covers(e["size"], whole) for e in same or ()):
            yield []
        if same is not None:
            yield same
        yield _resized(source, size)
        return
    if same is not None and not any(entry["name"] == "RandomResizedCrop" for entry, _ in train):
        yield same
    if size[0] != size[1]:
        yield _resized(source, size)
    else:
        yield [{"name": "Resize", "size": round(size[0] * 8 / 7)}, {"name": "CenterCrop", "size": list(size)}]


def _without_chance(source: Source, other: Sequence[Sized], crop: str) -> list[Entry] | None:
    """How a list scales, pads and crops, its crops as `crop`, and where it takes parts at random scales, the whole.

    None where it changes the size otherwise, or pads with what depends on its place in the list.
    """
    square = source.image_size is not None and len(set(source.image_size)) == 1
    least = source.image_size  # height and width that images have at least, where that is known
    found: list[Entry] = []
    normalised = False
    for entry, changes in other:
        name, size = entry["name"], entry.get("size")
        both = [size, size] if isinstance(size, int) else size
        both = [*both, *both] if isinstance(both, list | tuple) and len(both) == 1 else both
        plain = not normalised and entry.get("fill") in (None, 0)
        if name == "Pad":
            if not plain:
                return None
            found.append(entry)
        elif name == "Resize":  # one number is the shorter side's
            found.append({**entry, "size": both} if square and not found else entry)
            least = None if entry.get("max_size") else _sides(both)
        elif name in ("RandomCrop", "CenterCrop"):
            asked = _sides(both)
            fits = least is not None and asked is not None and _covers(least, asked)
            if not fits and not (plain and entry.get("padding_mode") in (None, "constant")):
                return None
            found.append({"name": crop, "size": both})
            least = asked
        elif name == "RandomResizedCrop":
            found.append({"name": "Resize", "size": both})
            least = _sides(both)
        elif name not in KEEPS_SIZE and (changes or may_resize(entry)):
            return None
        normalised |= name == "Normalize"
    return found


def _covers(larger: Sequence[int], size: Sequence[int]) -> bool:
    return larger[0] >= size[0] and larger[1] >= size[1]


def _sides(size: Any) -> Size | None:
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


def _resized(source: Source, size: Size) -> list[Entry]:
    return [] if size == source.image_size else [{"name": "Resize", "size": list(size)}]


def default_statistics(source: Source, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel: the dataset's own, else ImageNet's for colour and 0.5 for gray."""
    if source.mean is not None and source.std is not None and len(source.mean) == channels:
        return source.mean, source.std
    return IMAGENET if channels == 3 else HALF
