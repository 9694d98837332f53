"""JPEG 2000: what takes much more memory than its pixels do, or would be read wrong, is refused before that."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lrtrain.data import decode
from lrtrain.data.jpeg2000 import kept, refuse_misread
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


def of_bits(*bits):
    """A codestream that says that its channels have so many bits."""
    siz = PLAIN.index(b"\xff\x51") + 40
    assert PLAIN[siz : siz + 9] == bytes((7, 1, 1)) * 3
    return PLAIN[:siz] + b"".join(bytes((each - 1, 1, 1)) for each in bits) + PLAIN[siz + 9 :]


@pytest.mark.parametrize("bits", [(16, 16, 16), (10, 10, 10), (8, 8, 12), (7, 8, 8), (1, 1, 1)])
def test_colours_of_other_than_eight_bits_are_refused(bits):
    with pytest.raises(DataError, match=r"its channels have [0-9]+ bits, where 8 are read"):
        decode.decode_bytes(of_bits(*bits), "a.jp2", 3)
    opener, _ = Image.OPEN["JPEG2000"]
    with pytest.raises(ValueError, match="where 8 are read"):  # as torchvision's datasets open it
        decode._bounded(opener, BytesIO(of_bits(*bits)), "a.jp2")


def gray(values):
    Image.fromarray(values).save(file := BytesIO(), "JPEG2000", no_jp2=True)
    return file.getvalue()


def test_gray_may_have_up_to_sixteen_bits():
    values = np.array([[0, 257, 40_000, 65_535]] * 4, dtype=np.uint16)
    assert decode.decode_bytes(gray(values), "a.jp2", 1)[0, 0].tolist() == [0, 1, 156, 255]
    few = gray(np.zeros((4, 4), np.uint8))
    siz = few.index(b"\xff\x51") + 40
    with pytest.raises(DataError, match="its channels have 4 bits"):
        decode.decode_bytes(few[:siz] + b"\3" + few[siz + 1 :], "a.jp2", 1)


def meaning(mode, *changes):
    """A JP2 of 8 x 8 pixels of one colour, whose channel definitions are changed: (old, new) as numbers of 16 bits."""
    Image.new(mode, (8, 8), (200, 100, 50, 128)[: len(mode)]).save(file := BytesIO(), "JPEG2000")
    content = file.getvalue()
    at = content.find(b"cdef")
    for old, new in changes:
        assert content.count(struct.pack(">3H", *old), at)
        content = content[:at] + content[at:].replace(struct.pack(">3H", *old), struct.pack(">3H", *new), 1)
    return content


def test_channels_are_read_where_they_are_what_pillow_takes_them_for():
    def colour(content):
        return decode.decode_bytes(content, "a.jp2", 3)[:, 0, 0].tolist()

    assert colour(meaning("RGBA")) == [227, 177, 152]
    assert colour(meaning("LA")) == [colour(meaning("LA"))[0]] * 3
    Image.new("LA", (8, 8)).save(raw := BytesIO(), "JPEG2000", no_jp2=True)
    unsaid, other, swapped = "does not say whether its last channel", "its channels are not gray or red", "not gray"
    refused = [
        (meaning("RGBA").replace(b"cdef", b"free"), unsaid),
        (meaning("LA").replace(b"cdef", b"free"), unsaid),
        (raw.getvalue(), unsaid),
        (meaning("RGBA", ((3, 1, 0), (3, 65535, 65535))), other),
        (meaning("RGBA", ((3, 1, 0), (3, 2, 0))), other),
        (meaning("RGBA", ((0, 0, 1), (0, 0, 3)), ((2, 0, 3), (2, 0, 1))), swapped),
    ]
    for content, what in refused:
        with pytest.raises(DataError, match=what):
            decode.decode_bytes(content, "a.jp2", 3)
    Image.new("CMYK", (8, 8)).save(file := BytesIO(), "JPEG2000", no_jp2=True)
    with pytest.raises(DataError, match=unsaid):  # Pillow would take black for transparency
        decode.decode_bytes(file.getvalue(), "a.jp2", 3)
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(file := BytesIO(), "JPEG2000")
    assert colour(file.getvalue()) == [0, 0, 0]


def box(kind, content):
    return struct.pack(">I4s", len(content) + 8, kind) + content


def with_palette(entries, bits=8, order=(0, 1, 2), colour=16):
    """A JP2 of 4 x 4 numbers, 0 to 3 in each row, and a palette."""
    numbers = gray(np.array([[0, 1, 2, 3]] * 4, dtype=np.uint8))
    head = box(b"ihdr", struct.pack(">IIHBBBB", 4, 4, 1, 7, 7, 0, 0))
    head += box(b"colr", struct.pack(">BBBI", 1, 0, 0, colour))
    columns = len(entries[0])
    head += box(b"pclr", struct.pack(">HB", len(entries), columns) + bytes([bits - 1] * columns) + b"".join(entries))
    head += box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, i) for i in order[:columns]))
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", head) + box(b"jp2c", numbers)


COLOURS = [bytes(3), b"\xff\0\0", b"\0\xff\0", b"\0\0\xff"]


def test_a_palette_is_read_where_pillow_does_not_lose_a_colour():
    read = decode.decode_bytes(with_palette(COLOURS), "a.jp2", 3)[:, 0].T
    assert [bytes(pixel.tolist()) for pixel in read] == COLOURS
    for content in (
        with_palette([bytes(3), *COLOURS[:3]]),
        with_palette(COLOURS, bits=4),
        with_palette(COLOURS, order=(2, 1, 0)),
        with_palette([b"\xc8", b"\x64", b"\x32", b"\x0a"], colour=17),
        with_palette([colour + b"\xff" for colour in COLOURS], order=(0, 1, 2, 3)),
    ):
        with pytest.raises(DataError, match="its palette is not of 8-bit colours that are all different"):
            decode.decode_bytes(content, "a.jp2", 3)


@pytest.mark.parametrize(("width", "height", "halved", "right"), [(200, 200, (2, 2), True), (199, 200, (2, 1), False)])
@pytest.mark.parametrize("at", [3, 6])
def test_colours_of_fewer_pixels_are_read_where_these_come_out_even(width, height, halved, right, at):
    siz = PLAIN.index(b"\xff\x51") + 40
    sizes = struct.pack(">8L", width, height, 0, 0, 200, 200, 0, 0)
    channels = PLAIN[siz : siz + at + 1] + bytes(halved) + PLAIN[siz + at + 3 : siz + 9]
    content = PLAIN[: siz - 34] + sizes + PLAIN[siz - 2 : siz] + channels + PLAIN[siz + 9 :]
    assert len(content) == len(PLAIN)
    if right:
        refuse_misread(BytesIO(content), "RGB")
    else:
        with pytest.raises(ValueError, match="some channels have fewer pixels"):
            refuse_misread(BytesIO(content), "RGB")


@pytest.mark.parametrize("kind", [1, 3, 13, 14, 24])
def test_colours_that_pillow_does_not_make_rgb_of_are_refused(kind):
    content = written(no_jp2=False)
    enumerated = b"colr\1\0\0\0\0\0"
    assert content.count(enumerated + b"\x10") == 1
    assert decode.decode_bytes(content, "a.jp2", 3).shape[0] == 3
    with pytest.raises(DataError, match=f"its colours are of kind {kind}, and would be taken for red"):
        decode.decode_bytes(content.replace(enumerated + b"\x10", enumerated + bytes([kind])), "a.jp2", 3)


def test_a_channel_of_no_pixels_is_told():
    at = (content := written()).index(b"\xff\x51") + 4 + 36
    with pytest.raises(ValueError, match="a channel has pixels at every 0th place"):
        refuse_misread(BytesIO(content[: at + 1] + b"\0" + content[at + 2 :]), "RGB")
