"""Files that Pillow reads in many small pieces: refused before all are read."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lrtrain.data.decode import decode_bytes, decoded, header
from lrtrain.data.files import FileSplit
from lrtrain.data.inspect import look
from lrtrain.data.pieces import Pieces, TooManyPieces
from lrtrain.errors import DataError
from tests.pngs import chunk, png_of


def encoded(kind):
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, kind)
    return file.getvalue()


GIF = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
BOXES = encoded("JPEG2000")
PIECES = {
    "JPEG: a marker without length, then zeros": b"\xff\xd8\xff\xd0\xff\xfe\xff\xff"
    + bytes(65530)
    + b"\xff\xda\0"
    + bytes(300_000),
    "JPEG: zeros behind 196 KB of segments": b"\xff\xd8" + 3 * (b"\xff\xe1\xff\xff" + bytes(65533)) + bytes(300_000),
    "JPEG: empty comments": b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000,
    "GIF: zeros": GIF + bytes(300_000),
    "GIF: comments": GIF + b"!\xfe\x01a\0" * 100_000,
    "PPM: a long comment": b"P6 #" + b"a" * 300_000 + b"\n8 8 255\n" + bytes(192),
    "PPM: blanks": b"P6 " + b" " * 300_000 + b"\n8 8 255\n" + bytes(192),
    **{
        f"PNG: {name} {where}": png_of(**{where: chunk(name.encode()) * 100_000})
        for name in ("tEXt", "prIv", "IDAT")
        for where in ("before", "after")
    },
    "JPEG 2000: empty boxes": BOXES[:32] + struct.pack(">I4s", 8, b"free") * 300_000 + BOXES[32:],
}


class Counting(BytesIO):
    """A file that counts how often it is read."""

    reads = 0

    def read(self, size=-1):
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("content", PIECES.values(), ids=PIECES)
def test_a_file_of_very_many_pieces_is_refused_before_all_are_read(tmp_path, content):
    file = Counting(content)
    with pytest.raises(TooManyPieces, match="more than 200,000 pieces"):
        decoded(file, 3)
    assert file.reads <= 200_010
    (tmp_path / "a").write_bytes(content)
    files = FileSplit(tmp_path, ["a"], np.zeros(1, np.int64), 3)
    assert "more than 200,000 pieces" in look(files, 0, 3).why
    if not content.startswith(b"\x89PNG") or b"tEXt" in content[:60] or b"prIv" in content[:60]:
        with pytest.raises(TooManyPieces):
            files.size_of(0)


def test_a_jpeg_of_much_exif_is_refused_since_pillow_copies_all_of_it_for_each_piece(tmp_path):
    few, many = (exif_of(n) for n in (100, 101))
    assert decode_bytes(few, "a.jpg", 1).shape == (1, 8, 8)
    (tmp_path / "a").write_bytes(many)
    files = FileSplit(tmp_path, ["a"], np.zeros(1, np.int64), 1)
    assert "more than 100 pieces of Exif" in look(files, 0, 1).why
    for read in (files.read, files.size_of):
        with pytest.raises((DataError, TooManyPieces), match="more than 100 pieces of Exif"):
            read(0)


def exif_of(pieces):
    whole = encoded("JPEG")
    return whole[:2] + b"\xff\xe1\0\x0eExif\0\0bits12" * pieces + whole[2:]


def test_what_follows_the_first_frame_is_looked_through_up_to_as_many_pieces(tmp_path):
    (tmp_path / "a.gif").write_bytes(encoded("GIF")[:-1] + b"!\xfe\x01a\0" * 100_000)
    files = FileSplit(tmp_path, ["a.gif"], np.zeros(1, np.int64), 1)
    assert files.read(0).shape == (1, 8, 8)
    found = look(files, 0, 1)
    assert not found.why
    assert "frames" not in found.remarks


def test_a_png_of_as_many_chunks_as_there_are_in_200_MB_is_read():
    chunks = b"".join(chunk(b"IDAT", part) for part in (zlib.compress(bytes(72)), *[b""] * 25_000))
    content = png_of().replace(chunk(b"IDAT", zlib.compress(bytes(72))), chunks)
    assert decode_bytes(content, "a.png", 1).shape == (1, 8, 8)


def test_a_file_whose_pieces_are_read_again_and_again_is_refused():
    """As Pillow 10 reads a TIFF whose tags all lead to one place, and keeps each."""
    file = Pieces(BytesIO(bytes(5_000_000)))
    for _ in range(14):
        file.seek(0)
        file.read()
    file.seek(0)
    with pytest.raises(TooManyPieces, match="again and again"):
        file.read()
    assert file.tell() == 5_000_000
    large = Pieces(BytesIO(bytes(60_000_000)))
    assert sum(len(large.read(1_000_000)) for _ in range(61)) == 60_000_000


def test_a_tiff_of_many_strips_may_be_read_in_a_piece_for_each():
    """As Pillow up to 11.1 does, whatever the strip's length."""
    file = Pieces(BytesIO(bytes(5_000_000)))
    file.tiles = 2_000
    for _ in range(2_000):
        file.seek(0)
        assert len(file.read(65_536)) == 65_536
    for _ in range(1_068):
        file.seek(0)
        file.read(65_536)
    with pytest.raises(TooManyPieces, match="again and again"):
        file.read(65_536)
    content = BytesIO()
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 30, 3), np.uint8))
    noise.save(content, "TIFF", tiffinfo={278: 1})
    with header(content) as image:
        assert image.fp.tiles == len(image.tile) == 50
        assert decoded(content, 3).shape == (3, 50, 30)
