"""PNGs made by hand, for tests."""

from __future__ import annotations

import struct
import zlib


def png_of(before=b"", after=b""):
    """A gray PNG of 8 x 8 pixels with further chunks."""
    start, pixels, end = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0), zlib.compress(bytes(72)), b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", end)


def chunk(name, content=b""):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
