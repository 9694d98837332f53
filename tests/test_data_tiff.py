"""TIFFs: which are read right, and which are refused since Pillow reads them wrong, or too slowly."""

from __future__ import annotations

import struct
import time
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lrtrain.data.decode import decode_bytes, header, upright_size
from lrtrain.errors import DataError


def gray_tiff(bits, white_is_zero, data):
    """A TIFF of one row of four pixels."""
    values = {
        256: 4,
        257: 1,
        258: bits,
        259: 1,
        262: 0 if white_is_zero else 1,
        273: 122,
        277: 1,
        278: 1,
        279: len(data),
    }
    directory = b"".join(struct.pack("<HHLL", tag, 3, 1, value) for tag, value in values.items())
    return struct.pack("<2sHLH", b"II", 42, 8, len(values)) + directory + bytes(4) + data


def test_a_tiffs_gray_is_scaled_by_its_bits_and_white_may_be_zero():
    wide = struct.pack("<4H", 0, 257, 40_000, 65_535)
    packed = bytes.fromhex("000fff800011")
    found = [
        decode_bytes(gray_tiff(*kind), "a.tif", 1).flatten().tolist()
        for kind in ((16, False, wide), (16, True, wide), (12, False, packed))
    ]
    assert found == [[0, 1, 156, 255], [255, 254, 99, 0], [0, 255, 128, 1]]


def striped(order="<", deflate=False, offsets=lambda places: places, signed=False):
    """A gray TIFF of 8 x 8 pixels of 16 bits in four strips, 0 to 63."""
    rows = np.arange(64, dtype=f"{order}{'i' if signed else 'u'}2").reshape(4, 16)
    strips = [zlib.compress(row.tobytes()) if deflate else row.tobytes() for row in rows]
    places = [8 + sum(map(len, strips[:i])) for i in range(4)]
    start = 8 + sum(map(len, strips))
    values = {256: [8], 257: [8], 258: [16], 259: [8 if deflate else 1], 262: [1], 273: offsets(places), 277: [1]}
    values |= {278: [2], 279: [len(strip) for strip in strips], 339: [2 if signed else 1]}
    behind = start + 2 + 12 * len(values) + 4
    directory, more = struct.pack(f"{order}H", len(values)), b""
    for tag, value in values.items():
        packed = struct.pack(f"{order}{len(value)}L", *value)
        at = packed if len(value) == 1 else struct.pack(f"{order}L", behind + len(more))
        directory += struct.pack(f"{order}HHL", tag, 4, len(value)) + at
        more += packed if len(value) > 1 else b""
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}L", start) + b"".join(strips) + directory + bytes(4) + more


@pytest.mark.parametrize("deflate", [False, True])
def test_strips_of_a_tiff_that_were_never_written_are_not_made_of_whatever_is_there(deflate):
    right = [round(value / 257) for value in range(64)]
    assert decode_bytes(striped(deflate=deflate), "a.tif", 1).flatten().tolist() == right
    for offsets in (lambda places: [*places[:3], 0], lambda places: [0, *places[1:]], lambda places: places[:3]):
        with pytest.raises(DataError, match="decoder error" if deflate else "were never written"):
            decode_bytes(striped(deflate=deflate, offsets=offsets), "a.tif", 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_signed_numbers_of_a_tiff_are_not_read_backwards(order, deflate, signed):
    content = striped(order, deflate, signed=signed)
    if (order, deflate, signed) == (">", True, True):
        with pytest.raises(DataError, match="big-endian and compressed"):
            decode_bytes(content, "a.tif", 1)
        return
    assert decode_bytes(content, "a.tif", 1).flatten().tolist() == [round(value / 257) for value in range(64)]


@pytest.mark.parametrize("by_tag", [False, True])
def test_a_tiff_is_measured_as_it_is_read_however_it_says_that_it_is_turned(by_tag):
    said = {274: 6} if by_tag else {700: b'<x:xmpmeta><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'}
    Image.new("L", (12, 8)).save(content := BytesIO(), "TIFF", tiffinfo=said)
    with header(content) as image:
        assert upright_size(image) == (8, 12)
    assert decode_bytes(content.getvalue(), "a.tif", 1).shape == (1, 12, 8)


def test_signed_bytes_of_a_tiff_are_refused():
    image, content = Image.fromarray(np.array([[3, 253]], dtype=np.uint8)), BytesIO()
    image.save(content, "TIFF", tiffinfo={339: 2})
    with pytest.raises(DataError, match="8-bit numbers have a sign"):
        decode_bytes(content.getvalue(), "a.tif", 1)


def test_a_tiff_whose_palette_has_8_bits_or_that_leaves_out_colours_is_refused():
    image, content = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P"), BytesIO()
    image.putpalette([255, 254, 253, 1, 2, 3])
    image.save(content, "TIFF")
    whole = content.getvalue()
    assert decode_bytes(whole, "a.tif", 3)[:, 0].T.tolist()[0] == [255, 254, 253]
    palette = Image.open(content).tag_v2[320]
    few = whole.replace(struct.pack("<768H", *palette), struct.pack("<768H", *(value // 256 for value in palette)))
    with pytest.raises(DataError, match="palette has values up to 255"):
        decode_bytes(few, "a.tif", 3)
    Image.new("YCbCr", (8, 8)).save(content := BytesIO(), "TIFF", tiffinfo={530: (2, 2)})
    with pytest.raises(DataError, match="uncompressed YCbCr of which some are left out"):
        decode_bytes(content.getvalue(), "a.tif", 3)


def planar_tiff(planes, colours, extra=(), deflate=False, without=(), short=False):
    """A TIFF with a plane for each of an image's colours, (colours, height, width)."""
    parts = [zlib.compress(plane.tobytes()) if deflate else plane.tobytes() for plane in planes]
    bits, height, width = 8 * planes.itemsize, *planes.shape[1:]
    values = {256: [width], 257: [height], 258: [bits] * len(planes), 259: [8 if deflate else 1], 262: [colours]}
    lengths = [len(part) for part in parts]
    values |= {273: lengths, 277: [len(planes)], 278: [height], 279: lengths, 284: [2]}  # 273 is written below
    values |= ({338: extra} if extra else {}) | ({258: [bits]} if short else {})
    values = {tag: value for tag, value in values.items() if tag not in without}
    behind = 10 + 12 * len(values) + 4
    content = behind + sum(8 * len(value) for value in values.values())
    values[273] = [content + sum(lengths[:i]) for i in range(len(parts))]
    directory, more = b"", b""
    for tag, value in values.items():
        packed = struct.pack(f"<{len(value)}L", *value)
        directory += struct.pack("<HHL", tag, 4, len(value))
        directory += packed if len(value) == 1 else struct.pack("<L", behind + len(more))
        more += packed if len(value) > 1 else b""
    start = struct.pack("<2sHLH", b"II", 42, 8, len(values)) + directory + bytes(4) + more
    return start.ljust(content, b"\0") + b"".join(parts)


@pytest.mark.parametrize(
    ("dtype", "n", "colours", "options", "right"),
    [
        ("u1", 3, 2, {}, True),
        ("u1", 3, 2, {"deflate": True}, True),
        ("u1", 4, 2, {"extra": [2]}, True),
        ("u1", 4, 5, {}, True),
        ("u2", 3, 2, {"deflate": True}, True),
        ("u2", 3, 2, {}, False),
        ("u2", 3, 2, {"without": [259]}, False),
        ("u2", 3, 2, {"short": True}, False),
        ("u1", 3, 2, {"short": True}, True),
        ("u1", 2, 1, {"extra": [2], "deflate": True, "short": True}, False),
        ("u2", 4, 2, {"extra": [2], "deflate": True}, False),
        ("u1", 4, 2, {"deflate": True}, False),
        ("u1", 2, 1, {"extra": [2], "deflate": True}, False),
    ],
)
def test_a_tiff_with_its_colours_in_planes_is_read_right_or_not_at_all(dtype, n, colours, options, right):
    planes = np.random.default_rng(1).integers(0, 256 ** int(dtype[1]), (n, 24, 32)).astype(f"<{dtype}")
    content = planar_tiff(planes, colours, **options)
    if not right:
        with pytest.raises(DataError, match="colours lie in planes"):
            decode_bytes(content, "a.tif", 3)
        return
    expected = (planes >> (8 * planes.itemsize - 8)).astype(np.int64)
    if colours == 5:
        expected = (255 - expected[:3]) * (255 - expected[3]) // 255
    elif n == 4:
        expected = 255 + (expected[:3] - 255) * expected[3] // 255
    assert np.abs(decode_bytes(content, "a.tif", 3).numpy().astype(np.int64) - expected).max() <= 1


def tiff_of(strips, order, big):
    """A gray TIFF of 8 x 8 pixels that says it has so many strips, all in one place."""
    place, number, head = (
        ("Q", "Q", struct.pack(f"{order}HHHQ", 43, 8, 0, 16)) if big else ("L", "H", struct.pack(f"{order}HL", 42, 8))
    )
    values = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: None, 277: 1, 278: 1, 279: None}
    field = struct.calcsize("<" + place)
    start = 2 + len(head)
    behind = start + struct.calcsize("<" + number) + len(values) * (4 + 2 * field) + field
    directory = struct.pack(f"{order}{number}", len(values))
    for tag, value in values.items():
        count, kind = (strips, 4) if value is None else (1, 3)
        at = (
            struct.pack(f"{order}{place}", behind)
            if value is None
            else struct.pack(f"{order}H", value).ljust(field, b"\0")
        )
        directory += struct.pack(f"{order}HH{place}", tag, kind, count) + at
    return (
        (b"II" if order == "<" else b"MM")
        + head
        + directory
        + bytes(field)
        + struct.pack(f"{order}L", 64) * strips
        + bytes(64)
    )


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_a_tiff_of_a_million_strips_is_refused(order, big):
    assert decode_bytes(tiff_of(8, order, big), "a.tif", 1).shape == (1, 8, 8)
    before = time.process_time()
    with pytest.raises(ValueError, match="it has 1,000,000 strips or tiles; at most 65,536 are read"):
        header(BytesIO(tiff_of(1_000_000, order, big)))
    assert time.process_time() - before < 5
