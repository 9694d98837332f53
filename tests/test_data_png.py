"""PNGs whose metadata is damaged, long or called as what Pillow keeps there, and their transparent colours."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lrtrain.data.decode import decode, decode_bytes
from lrtrain.data.files import FileSplit
from lrtrain.data.inspect import look
from lrtrain.errors import DataError
from tests.pngs import chunk, png_of

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14


def test_a_transparent_value_of_sixteen_bits_is_white(tmp_path):
    image = Image.fromarray(np.array([[300, 40_000]], dtype=np.uint16))
    image.save(tmp_path / "a.png", transparency=300)
    assert decode(tmp_path / "a.png", 1).flatten().tolist() == [255, 156]


def coded_png(bits, kind, row, clear):
    """A PNG of one row of two pixels with a transparent colour."""
    start = struct.pack(">IIBBBBB", 2, 1, bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", start), (b"tRNS", clear), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize(("bits", "row", "other"), [(2, 0x60, 170), (4, 0x12, 34), (8, 0x0102, 2)])
def test_a_transparent_gray_of_few_bits_is_white(bits, row, other):
    content = coded_png(bits, 0, row.to_bytes(max(bits // 4, 1)), b"\0\1")
    assert decode_bytes(content, "a.png", 1).flatten().tolist() == [255, other]


def test_a_transparent_colour_of_sixteen_bits_is_refused():
    content = coded_png(16, 2, bytes(range(12)), bytes(range(6)))
    with pytest.raises(DataError, match="its transparent colour has 16 bits a channel, of which 8 are read"):
        decode_bytes(content, "a.png", 3)


LONG = zlib.compress(bytes(2**20 + 1))  # more than Pillow unpacks


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"iCCP", b"a\0\0" + LONG),
        chunk(b"iCCP", b"a\0\1unknown method"),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
        chunk(b"pHYs", b"\0\0"),
    ],
)
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_png_with_long_or_damaged_metadata_is_read(metadata, where):
    content = png_of(**{where: metadata})
    assert decode_bytes(content, "a.png", 1).shape == (1, 8, 8)
    with pytest.raises(DataError, match="Too much memory used in text chunks"):
        decode_bytes(png_of(**{where: metadata * 70}), "a.png", 1)


@pytest.mark.parametrize(("name", "at"), [(b"fcTL", 11), (b"fcTL", 7), (b"acTL", 3), (b"eXIf", 15)])
def test_damaged_metadata_of_an_animated_png_changes_no_pixel(tmp_path, name, at):
    exif = Image.Exif()
    exif[274] = 1
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    path = tmp_path / "a.png"
    frames[0].save(path, save_all=True, append_images=frames[1:], exif=exif)
    assert np.array_equal(decode(path, 3).permute(1, 2, 0).numpy(), PIXELS)
    assert "frames" in look(FileSplit(tmp_path, ["a.png"], np.zeros(1, dtype=np.int64), 3), 0, 3).remarks
    with Image.open(path) as own:  # by code of one's own
        assert own.n_frames == 2
    content = bytearray(path.read_bytes())
    start = content.index(name) + 4
    for bit in range(8):
        content[start + at] ^= 1 << bit
        assert np.array_equal(decode_bytes(bytes(content), "a.png", 3).permute(1, 2, 0).numpy(), PIXELS)
        content[start + at] ^= 1 << bit


@pytest.mark.parametrize("name", [b"tEXt", b"gAMA", b"tIME", b"abCd"])
def test_a_wrong_checksum_of_what_a_png_does_not_need_is_no_hindrance(name):
    wrong = chunk(name, b"\0" * 4)[:-4] + b"\0\0\0\1"
    assert decode_bytes(png_of(wrong), "a.png", 1).shape == (1, 8, 8)
    with pytest.raises(DataError, match="no image format"):
        decode_bytes(png_of(chunk(b"tRNS", b"\0\0")[:-4] + b"\0\0\0\1"), "a.png", 1)


@pytest.mark.parametrize("keyword", [b"transparency", b"interlace", b"bbox", b"icc_profile", b"gamma", b"exif"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_texts_of_a_png_that_are_called_as_what_pillow_keeps_there_are_not_read(keyword, where):
    for text in (chunk(b"tEXt", keyword + b"\0a"), chunk(b"iTXt", keyword + b"\0\0\0\0\0a")):
        assert torch.equal(decode_bytes(png_of(**{where: text}), "a.png", 3), decode_bytes(png_of(), "a.png", 3))


@pytest.mark.parametrize(("name", "sort"), [(b"iCCP", b"a\0\0"), (b"zTXt", b"XML:com.adobe.xmp\0\0")])
def test_a_png_of_very_many_profiles_is_refused(name, sort):
    chunks = b"".join(chunk(name, sort + zlib.compress(bytes([i]) * 2**20)) for i in range(70))
    with pytest.raises(DataError, match="Too much memory used in text chunks"):
        decode_bytes(png_of(chunks), "a.png", 1)
