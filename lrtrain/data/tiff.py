"""TIFFs that Pillow would take too long for, or read wrong without a word."""

from __future__ import annotations

import os
import struct
from typing import IO

from PIL import Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    COMPRESSION,
    EXTRASAMPLES,
    FILLORDER,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    PREFIXES,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    YCBCRSUBSAMPLING,
    TiffImageFile,
)

_RGB, _PALETTE, _CMYK, _YCBCR = 2, 3, 5, 6  # a TIFF's colours
_SIGNED = 2  # a TIFF's numbers
_PLACES = (273, 279, 324, 325)  # where a TIFF's strips or tiles are, and their bytes
_OFFSETS = (273, 324)
_MOST_PLACES = 2**16
_MOST_ENTRIES = 200_000  # that are looked at


def refuse_many_places(file: IO[bytes]) -> None:
    """Refuse a TIFF of more strips or tiles than images have: the time that Pillow takes goes by their square.

    Raises:
        ValueError: the first directory counts more than `_MOST_PLACES` of them.
    """
    file.seek(0)
    start = file.read(16)
    if len(start) < 16 or start[:4] not in PREFIXES:
        return
    order = "<" if start.startswith(b"II") else ">"
    # As Pillow tells BigTIFF: where the version's first byte is 43.
    big = start[2] == 43
    number, entry = (f"{order}Q", f"{order}HHQ8x") if big else (f"{order}H", f"{order}HHL4x")
    (first,) = struct.unpack(f"{order}Q", start[8:]) if big else struct.unpack(f"{order}L", start[4:8])
    if first > file.seek(0, os.SEEK_END):
        return
    file.seek(first)
    found = file.read(struct.calcsize(number))
    if len(found) < struct.calcsize(number):
        return
    size = struct.calcsize(entry)
    entries = file.read(min(struct.unpack(number, found)[0], _MOST_ENTRIES) * size)
    for tag, _, count in struct.iter_unpack(entry, entries[: len(entries) // size * size]):
        if tag in _PLACES and count > _MOST_PLACES:
            raise ValueError(f"it has {count:,} strips or tiles; at most {_MOST_PLACES:,} are read")


def refuse_misread(image: TiffImageFile) -> None:
    """Refuse a TIFF that Pillow reads wrong, such as one with its colours in planes, which become noise.

    Raises:
        ValueError: it is one.
    """
    tags = image.tag_v2
    bits = tags.get(BITSPERSAMPLE, (1,))
    bits = bits * tags.get(SAMPLESPERPIXEL, 1) if len(bits) == 1 else bits  # as Pillow repeats it
    kind, compressed = tags.get(PHOTOMETRIC_INTERPRETATION), tags.get(COMPRESSION, 1) != 1
    if _SIGNED in tags.get(SAMPLEFORMAT, ()) and set(bits) == {8}:
        raise ValueError("its 8-bit numbers have a sign; save it with numbers from 0 to 255")
    if kind == _PALETTE and max(tags.get(COLORMAP, (65535,))) < 256:
        raise ValueError("its palette has values up to 255, where a TIFF's have 16 bits; save it without a palette")
    if kind == _YCBCR and not compressed and tags.get(YCBCRSUBSAMPLING, (2, 2)) != (1, 1):
        raise ValueError("its colours are uncompressed YCbCr of which some are left out; save it as RGB")
    if _SIGNED in tags.get(SAMPLEFORMAT, ()) and compressed and tags.prefix == b"MM":
        raise ValueError("its numbers have a sign, and are big-endian and compressed; save it uncompressed")
    planes = len(bits) if tags.get(PLANAR_CONFIGURATION, 1) != 1 else 1
    if image.tile[0][0] == "raw":  # others' decoder tells
        places = [place for tag in _OFFSETS for place in tags.get(tag, ())]
        boxes = [tile[1] or (0, 0, 0, 0) for tile in image.tile]
        covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
        if 0 in places or covered < image.width * image.height * planes:
            raise ValueError("some of its strips or tiles were never written; restore it, or save all of it")
    if planes == 1:
        return
    colours = (kind, len(bits))
    if set(bits) == {8}:
        right = colours in ((_RGB, 3), (_CMYK, 4)) or (colours == (_RGB, 4) and EXTRASAMPLES in tags)
    else:
        right = set(bits) == {16} and colours == (_RGB, 3) and compressed
    if not right or tags.get(FILLORDER, 1) != 1:
        raise ValueError("its colours lie in planes, which are read of 8-bit RGB, RGBA and CMYK; save it interleaved")


def gray_scale(image: Image.Image) -> tuple[int, bool]:
    """The greatest value of gray that has more than 8 bits, and whether white is 0: a TIFF's tags alone say it."""
    tags = getattr(image, "tag_v2", None) or {}
    if image.mode != "I;16":
        return 65535, False
    return 4095 if tags.get(BITSPERSAMPLE) == (12,) else 65535, tags.get(PHOTOMETRIC_INTERPRETATION) == 0
