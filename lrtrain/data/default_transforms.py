"""What is done to images where the config does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrtrain.data.source import Source

SMALL = 64  # px: up to this as their larger side, images of one size are trained on as they are
PHOTO = 224  # px: what others are brought to, torchvision's and timm's usual size
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,), (0.5,))
_SCALING = ("Resize", "RandomResizedCrop", "RandomResize", "RandomShortestSize", "ScaleJitter")

Entry = dict[str, Any]
Size = tuple[int, int]


def is_small(source: Source) -> bool:
    """Whether the images are trained on at their own size."""
    return source.image_size is not None and max(source.image_size) <= SMALL


def default_size(source: Source, photo_size: int = PHOTO) -> Size:
    """Height and width that the model sees where neither list is given."""
    size = source.image_size if is_small(source) else None
    return size or (photo_size, photo_size)


def is_scaled(other: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list ends with whole images at another scale, not with a part of them."""
    sizing = (str(entry["name"]) for entry in reversed(other))
    return next((name in _SCALING for name in sizing if name in _SCALING or name.endswith("Crop")), False)


def train_default(source: Source, size: Size, scaled: bool = False) -> list[Entry]:
    """Small images are padded by an eighth and cropped; of others a random part is taken (Szegedy 2015).

    Both are mirrored at odds of 1/2, unless the source says that a mirrored image is another thing. Small images that
    the other list makes smaller are scaled or cropped as they are there.
    """
    flip: list[Entry] = [{"name": "RandomHorizontalFlip", "p": 0.5}] if source.mirrored_is_same else []
    if not is_small(source):
        return [{"name": "RandomResizedCrop", "size": list(size)}, *flip]
    resize: list[Entry] = [{"name": "Resize", "size": list(size)}] if scaled or _larger(size, source) else []
    smaller = not resize and size != source.image_size
    padding: Entry = {} if smaller else {"padding": [size[1] // 8, size[0] // 8]}
    return [*resize, {"name": "RandomCrop", "size": list(size), **padding}, *flip]


def val_default(source: Source, size: Size, scaled: bool = False) -> list[Entry]:
    """Small images: as they are, or scaled or cropped as in the other list; others: the middle 7/8."""
    if is_small(source):
        if size == source.image_size:
            return []
        return [{"name": "Resize" if scaled or _larger(size, source) else "CenterCrop", "size": list(size)}]
    if size[0] != size[1]:
        return [{"name": "Resize", "size": list(size)}]
    return [{"name": "Resize", "size": round(size[0] * 8 / 7)}, {"name": "CenterCrop", "size": list(size)}]


def default_statistics(source: Source, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel: the dataset's own, else ImageNet's for colour and 0.5 for gray."""
    if source.mean is not None and source.std is not None and len(source.mean) == channels:
        return source.mean, source.std
    return IMAGENET if channels == 3 else HALF


def _larger(size: Size, source: Source) -> bool:
    own = source.image_size
    return own is not None and (size[0] > own[0] or size[1] > own[1])
