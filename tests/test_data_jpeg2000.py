"""A JPEG 2000 that makes its decoder take much more memory than its pixels do is refused before that."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lrtrain.data import decode
from lrtrain.data.jpeg2000 import kept
from lrtrain.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
SOT = b"\xff\x90\0\x0a"


def written(**options):
    """A codestream by Pillow, of 200 x 200 pixels of colour."""
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG2000", **{"no_jp2": True, **options})
    return file.getvalue()


def segment(marker, *parts):
    content = b"".join(parts)
    return bytes((255, marker)) + struct.pack(">H", len(content) + 2) + content


PLAIN = written()
START = PLAIN.index(b"\xff\x52")  # COD, of 12 bytes + 2
END = START + 14
TINY = bytes((0, 4, 4, 0, 1, 0x00))  # no levels, code blocks of 64 in precincts of 1 pixel
COD = segment(0x52, struct.pack(">BBHB", 1, 0, 1, 0), TINY)


def in_tile_part(content, more):
    at = content.index(SOT)
    length = int.from_bytes(content[at + 6 : at + 10]) + len(more)
    return content[: at + 6] + struct.pack(">I", length) + content[at + 10 : at + 12] + more + content[at + 12 :]


def tiled(side, more=b""):
    """Tiles of `side` pixels, of which no more than the first is there."""
    siz = struct.pack(">HIIIIIIIIH", 0, 200, 200, 0, 0, side, side, 0, 0, 3) + bytes((7, 1, 1)) * 3
    return b"\xff\x4f" + segment(0x51, siz) + more + PLAIN[START:]


def boxed(content, *before):
    head = written(no_jp2=False)
    at = head.index(b"jp2c") - 4
    return head[:at] + b"".join(before) + struct.pack(">I4s", 0, b"jp2c") + content


ASKING = {
    "small code blocks": written(codeblock_size=(4, 4)),
    "small precincts": PLAIN[:START] + COD + PLAIN[END:],
    "of one component": PLAIN[:END] + segment(0x53, b"\1\1", TINY) + PLAIN[END:],
    "in a tile-part": in_tile_part(PLAIN, COD),
    "in a tile-part behind an empty one": in_tile_part(PLAIN, b"").replace(
        SOT, SOT + struct.pack(">HIBB", 0, 12, 0, 0) + b"\xff\x93" + in_tile_part(PLAIN, COD)[PLAIN.index(SOT) :], 1
    ),
    "in what looks like a segment and is none": PLAIN[:START] + segment(0x30, COD) + PLAIN[END:],
    "in a JP2": boxed(PLAIN[:START] + COD + PLAIN[END:]),
    "in a JP2 behind what looks like its codestream": boxed(
        PLAIN[:START] + COD + PLAIN[END:], struct.pack(">I4sQ", 1, b"free", 16 + 8 + len(PLAIN)), b"\0\0\0\0jp2c", PLAIN
    ),
    "many packets": PLAIN[: START + 6] + b"\xff\xff" + PLAIN[START + 8 :],
    "small tiles": tiled(2),
    "tiles that each get what is long": tiled(20, segment(0x74, bytes(60_000))),
}


@pytest.mark.parametrize("content", ASKING.values(), ids=ASKING)
def test_what_asks_for_much_more_than_its_pixels_is_refused(monkeypatch, content):
    monkeypatch.setattr(decode, "MAX_BYTES", 3_000_000)
    assert decode.decode_bytes(PLAIN, "a.jp2", 3).shape == (3, 200, 200)
    with pytest.raises(DataError, match=r"it has 200 x 200 pixels, which take .* MB to decode; at most 3 MB"):
        decode.decode_bytes(content, "a.jp2", 3)
    opener, _ = Image.OPEN["JPEG2000"]
    with pytest.raises(decode.TooLarge):  # as torchvision's datasets open it
        decode._bounded(opener, BytesIO(content), "a.jp2")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_jp2": False},
        {"codeblock_size": (32, 32)},
        {"tile_size": (256, 256), "codeblock_size": (32, 32)},
        {"precinct_size": (256, 256), "codeblock_size": (32, 32)},
        {"quality_layers": [40, 20, 10, 5, 2, 1]},
    ],
)
def test_an_ordinary_one_is_read_up_to_as_many_pixels_as_ever(options):
    file = BytesIO()
    image = Image.new("RGB", (2048, 2048))
    image.save(file, "JPEG2000", **options)
    assert 0 < kept(file) < 2 * 2048 * 2048
    assert decode.decode_bytes(file.getvalue(), "a.jp2", 3).shape == (3, 2048, 2048)


def test_what_follows_the_codestream_is_not_looked_through():
    assert decode.decode_bytes(PLAIN + bytes(1_000_000), "a.jp2", 3).shape == (3, 200, 200)


@pytest.mark.parametrize("content", [PLAIN, written(no_jp2=False)])
def test_a_damaged_one_is_left_to_the_decoder(content):
    for end in range(content.index(SOT) + 30):
        assert kept(BytesIO(content[:end])) < 1_000_000
    assert kept(BytesIO(content[:12] + struct.pack(">I4sQ", 1, b"free", 2**64 - 1))) == 0
    for end in range(3, content.index(SOT)):
        with pytest.raises(DataError, match="cannot read the image"):
            decode.decode_bytes(content[:end], "a.jp2", 3)
