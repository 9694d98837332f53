"""PNGs whose metadata Pillow would take for damage of the image, or for something of its own."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from functools import partialmethod

from PIL.PngImagePlugin import MAX_TEXT_CHUNK, PngImageFile, PngStream

from lrtrain.data.pieces import MOST_FILE_BYTES, Pieces

ANIMATED = "image/apng"  # of a PNG, whose later frames are not even looked at
_FRAMES = (b"acTL", b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_TURNING = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # texts of a PNG that Pillow finds an orientation in

_Read = Callable[[PngStream, int, int], bytes]


def _passed_over(stream: PngStream, kind: bytes, read: _Read, position: int, length: int) -> bytes:
    """Read a PNG's chunk of metadata; one that is damaged, or too much for Pillow, is passed over, up to 64 of them.

    Later frames are not read, since the first is a PNG by itself, nor are texts that say nothing of the pixels, since
    Pillow would take some keywords for its own. What is not opened by `header` is read as Pillow does.
    """
    if not isinstance(stream.fp, Pieces):
        return read(stream, position, length)
    content = stream.fp.read(min(length, MOST_FILE_BYTES))
    whole = struct.pack(">I", zlib.crc32(kind + content)) == stream.fp.read(4)
    if kind == b"acTL" and whole and content[:4] > b"\0\0\0\1":
        stream.im_custom_mimetype = ANIMATED
    if kind not in _FRAMES and (kind not in _TEXTS or content.startswith(_TURNING)):
        profile = stream.im_info.get("icc_profile")
        if whole:
            stream.fp.seek(position)
            try:
                read(stream, position, length)
            except (ValueError, SyntaxError, LookupError, struct.error):
                whole = False
        if stream.im_info.get("icc_profile") is not profile:  # Pillow counts texts alone
            stream.check_text_memory(len(stream.im_info["icc_profile"] or b""))
        if not whole:
            stream.check_text_memory(MAX_TEXT_CHUNK)  # raises, too, where all of a file's texts are too much
    stream.fp.seek(position + length)
    return content


def _crc(stream: PngStream, check: Callable[[PngStream, bytes, bytes], None], kind: bytes, content: bytes) -> None:
    """Check a PNG's chunk, unless it is one that the pixels do not need, whose name begins with a small letter."""
    if isinstance(stream.fp, Pieces) and kind[:1].islower() and kind != b"tRNS":
        stream.crc_skip(kind, content)
    else:
        check(stream, kind, content)


for _name in [each for each in dir(PngStream) if re.fullmatch("chunk_[a-z]...", each)]:
    if _name != "chunk_tRNS":  # which is of the pixels
        setattr(PngStream, _name, partialmethod(_passed_over, _name[6:].encode(), getattr(PngStream, _name)))
setattr(PngStream, "crc", partialmethod(_crc, PngStream.crc))  # noqa: B010 - mypy takes no method for it


def turned_later(image: PngImageFile) -> bool:
    """Whether an opened PNG may say behind its pixels how it is turned, where some programs write it."""
    file = image.fp
    assert file is not None
    was, at, pixels = file.tell(), 8, False
    found = False
    while not found:
        file.seek(at)
        start = file.read(40)
        if len(start) < 12 or start[4:8] == b"IEND":
            break
        found = pixels and (start[4:8] == b"eXIf" or start.startswith(_TURNING, 8))
        pixels = pixels or start[4:8] == b"IDAT"
        at += 12 + int.from_bytes(start[:4], "big")
    file.seek(was)
    return found
