"""What a look at every image finds: whether it can be read, what it is, and what is odd about it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from lrtrain.data.decode import EMPTY, MAX_BYTES, decoded, header, why_unreadable
from lrtrain.data.files import FileSplit
from lrtrain.data.jpeg import sound_out
from lrtrain.data.pieces import TooManyPieces
from lrtrain.data.png import ANIMATED
from lrtrain.data.source import InFiles, Split, unwrapped
from lrtrain.data.workers import by_workers, one_made
from lrtrain.errors import DataError

DIGEST_BYTES = 16  # of sha256: two of a thousand million images agree by chance once in 10^20 datasets
_AT_A_TIME = 32  # images that a worker looks at before it tells
_MOST_SAID = 1000  # bytes
_FEW = 300  # images are looked at sooner than workers start

# What content an extension promises; of what is not here nothing is promised.
_PROMISED = {
    **dict.fromkeys((".jpg", ".jpeg"), ("JPEG", "MPO")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm", ".pbm"), ("PPM",)),
    ".png": ("PNG",),
    ".bmp": ("BMP",),
    ".gif": ("GIF",),
    ".webp": ("WEBP",),
    ".jp2": ("JPEG2000",),
}
# What the rule of `decode` does about a mode of Pillow's, by the names in `survey.KINDS`.
_MODES = {
    **dict.fromkeys(("P", "PA"), "palette"),
    **dict.fromkeys(("CMYK", "YCbCr", "LAB", "HSV"), "colour space"),
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L", "I;16N"), "16 bits"),
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), "alpha"),
}


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of one image.

    Attributes:
        digest: of its bytes, or of its pixels where it is no file of its own.
        size: width and height in px as it is stored.
        upright: the same as it is read, which EXIF may turn.
        format: as Pillow names it; empty where there is no file.
        why: it cannot be read; empty where it can.
        remarks: what is odd, by the names in `survey.KINDS`.
        complaint: what the decoder said of an image that it read all the same.
    """

    digest: bytes
    size: tuple[int, int] = (0, 0)
    upright: tuple[int, int] = (0, 0)
    format: str = ""
    why: str = ""
    remarks: tuple[str, ...] = ()
    complaint: str = ""


def looks(splits: Sequence[Split], channels: int, workers: int) -> Iterator[Look]:
    """Look at every image of some splits, in order.

    Args:
        splits: what is looked at.
        channels: that images are decoded to, 1 or 3.
        workers: processes; few images are looked at here.

    Raises:
        EnvironmentFault: a worker died.
    """
    looking = _Looking([unwrapped(split) for split in splits], channels)
    orders = [
        (at, first, min(first + _AT_A_TIME, len(split)))
        for at, split in enumerate(splits)
        for first in range(0, len(split), _AT_A_TIME)
    ]
    few = sum(map(len, splits)) < _FEW
    made = map(looking.__getitem__, orders) if few or not workers else by_workers(looking, orders, workers)
    for part in made:
        yield from part


@dataclass(frozen=True, eq=False)
class _Looking(Dataset[Any]):
    """Looks at images first .. last - 1 of a split; an order is (split, first, last)."""

    parts: Sequence[tuple[Split, NDArray[np.int64]]]
    channels: int

    def __getitem__(self, order: tuple[int, int, int]) -> list[Look]:
        at, first, last = order
        images, indices = self.parts[at]
        return [look(images, i, self.channels) for i in indices[first:last].tolist()]


def look(images: Split, i: int, channels: int) -> Look:
    """Look at image i, whatever it is.

    Raises:
        OSError: the machine lacks what it takes to open it.
    """
    one_made()
    if not isinstance(images, InFiles):
        return _looked_at_pixels(images, i)
    try:
        content = images.content(i)
    except DataError as error:
        return Look(b"", why=error.problems[0].what.rpartition(": ")[2])
    if not content:
        return Look(b"", why=EMPTY)
    found = Look(hashlib.sha256(content).digest()[:DIGEST_BYTES])
    if isinstance(images, FileSplit) and images.leads_out(i):
        found = replace(found, remarks=("link",))
    with _overheard() as said:  # what fails here says nothing of the image
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = _of_header(found, content, os.path.splitext(images.name(i))[1].lower(), channels)
            pixels = decoded(BytesIO(content), channels)
            found, of_pixels = replace(found, upright=_size(pixels)), _of_pixels(pixels)
            sound_out(content, channels, MAX_BYTES)
            complaint = said()
        except Exception as error:  # damaged files raise OSError, ValueError, SyntaxError, struct.error ...
            return Look(b"", why=why_unreadable(error))
    damaged = ("damaged",) if complaint else ()
    return replace(found, remarks=(*damaged, *found.remarks, *of_pixels), complaint=complaint)


@contextmanager
def _overheard() -> Iterator[Callable[[], str]]:
    """What C libraries print on standard error: that an image is damaged they tell nobody else.

    Only where a process decodes one image at a time.
    """
    # In memory where the system can: a folder for temporary files may be full, or gone.
    with open(os.memfd_create("heard"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as heard:
        kept = os.dup(2)
        try:
            os.dup2(heard.fileno(), 2)
            yield lambda: os.pread(heard.fileno(), _MOST_SAID, 0).decode(errors="replace").strip().split("\n")[0]
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _looked_at_pixels(images: Split, i: int) -> Look:
    try:
        pixels = images.read(i)
    except DataError as error:
        return Look(b"", why=error.problems[0].what.removeprefix(f"cannot read {images.path(i)}: "))
    content = f"{tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes()
    digest = hashlib.sha256(content).digest()[:DIGEST_BYTES]
    return Look(digest, _size(pixels), _size(pixels), remarks=_of_pixels(pixels))


def _of_header(found: Look, content: bytes, suffix: str, channels: int) -> Look:
    """What Pillow knows before it decodes."""
    with header(BytesIO(content)) as image:
        known = image.format or ""
        remarks = list(found.remarks)
        if known not in _PROMISED.get(suffix, (known,)):
            remarks.append("extension")
        if image.mode in _MODES:
            remarks.append(_MODES[image.mode])
        if "alpha" not in remarks and ("transparency" in image.info or image.mode == "PA"):
            remarks.append("alpha")
        if _is_animated(image):
            remarks.append("frames")
        if channels == 1 and image.mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB", "HSV"):
            remarks.append("colour")
        elif channels == 3 and image.mode in ("1", "L", "LA", "I", "I;16", "I;16B"):
            remarks.append("gray")
        if _is_turned(image):
            remarks.append("turned")
        return replace(found, size=image.size, format=known, remarks=tuple(remarks))


def _is_animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False) or getattr(image, "custom_mimetype", None) == ANIMATED
    except TooManyPieces:  # behind a GIF's first frame, which is all that is read of it; 25 MB are as many pieces
        return False


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:  # damaged EXIF is passed over when the image is read, too
        return False


def _size(pixels: torch.Tensor) -> tuple[int, int]:
    return pixels.shape[2], pixels.shape[1]


def _of_pixels(pixels: torch.Tensor) -> tuple[str, ...]:
    return ("blank",) if bool((pixels == pixels[:, :1, :1]).all()) else ()
