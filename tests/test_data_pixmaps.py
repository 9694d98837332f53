"""BMPs and PPMs that Pillow reads wrong or slowly."""

from __future__ import annotations

import struct
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lrtrain.data.decode import decode_bytes
from lrtrain.errors import DataError

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("greatest", [1, 15, 100, 127, 254, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_ppms_values_are_scaled_by_the_greatest(greatest, bands):
    values = RNG.integers(0, greatest + 1, (500, 500, bands))
    values[0, :2] = [[0], [greatest]]
    packed = values.astype("u1" if greatest < 256 else ">u2").tobytes()
    content = f"P{5 if bands == 1 else 6}\n500 500\n{greatest}\n".encode() + packed
    read = decode_bytes(content, "a.ppm", bands).permute(1, 2, 0).numpy()
    assert np.abs(read - values * 255 / greatest).max() <= 0.501
    assert read[0, :2].tolist() == [[0] * bands, [255] * bands]
    with pytest.raises(DataError, match=r"not enough image data|image file is truncated"):
        decode_bytes(content[:-1], "a.ppm", bands)


def test_a_value_beyond_a_ppms_greatest_is_white():
    assert decode_bytes(b"P5 2 1 100\n\x32\xff", "a.pgm", 1).flatten().tolist() == [128, 255]


def test_a_large_ppm_takes_no_longer_of_another_scale():
    content = b"P6\n2000 2000\n4095\n" + RNG.integers(0, 4096, (2000, 2000, 3)).astype(">u2").tobytes()
    began = time.process_time()
    with Image.open(BytesIO(content)) as image:  # by anyone's code
        assert image.convert("RGB").size == (2000, 2000)
    assert time.process_time() - began < 5


def bmp(bits, palette, rows, coding=0):
    """A BMP of 8 rows of 8 pixels."""
    colours = b"".join(bytes(colour) + b"\0" for colour in palette)
    info = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, coding, len(rows), 0, 0, len(palette), 0)
    at = 14 + len(info) + len(colours)
    return b"BM" + struct.pack("<IHHI", at + len(rows), 0, 0, at) + info + colours + rows


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (0, 0, 255)
MASK = RNG.integers(0, 2, (8, 8)).astype(np.uint8)
UP = MASK[::-1]  # a BMP's last row comes first


def test_a_mask_of_eight_bits_is_not_read_bit_by_bit():
    assert np.array_equal(decode_bytes(bmp(8, [BLACK, WHITE], UP.tobytes()), "a.bmp", 1)[0].numpy(), MASK * 255)
    image = Image.fromarray(MASK).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(file := BytesIO(), "BMP")  # as Pillow itself writes it
    assert np.array_equal(decode_bytes(file.getvalue(), "a.bmp", 1)[0].numpy(), MASK * 255)
    one = np.packbits(UP, axis=1).tobytes()
    rows = b"".join(one[i : i + 1] + bytes(3) for i in range(8))
    assert np.array_equal(decode_bytes(bmp(1, [BLACK, WHITE], rows), "a.bmp", 1)[0].numpy(), MASK * 255)
    swapped = decode_bytes(bmp(8, [WHITE, BLACK], UP.tobytes()), "a.bmp", 1)[0].numpy()
    assert np.array_equal(swapped, 255 - MASK * 255)


@pytest.mark.parametrize(
    "content",
    [
        bmp(4, [BLACK, WHITE], np.packbits(np.kron(UP, [0, 0, 0, 1]).astype(np.uint8), axis=1).tobytes()),
        bmp(4, [(i, i, i) for i in range(16)], bytes(32)),
        bmp(8, [BLACK, WHITE], b"".join(b"\1" + bytes([pixel]) for pixel in UP.flatten()), coding=1),
    ],
)
def test_what_pillow_would_take_for_other_bits_is_refused(content):
    with pytest.raises(DataError, match="bits a pixel and a palette of black and white, or gray"):
        decode_bytes(content, "a.bmp", 1)


def run_length_coded(pixels):
    runs = [np.stack([np.ones_like(row), row], -1).tobytes() + b"\0\0" for row in pixels[::-1]]
    info = struct.pack("<IiiHHIIiiII", 40, *pixels.shape[::-1], 1, 8, 1, 0, 0, 0, 256, 0)
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    at = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, at) + info + palette + b"".join(runs)


def test_a_run_length_coded_bmp_may_have_many_runs():
    pixels = RNG.integers(0, 256, (400, 400), dtype=np.uint8)
    assert np.array_equal(decode_bytes(run_length_coded(pixels), "a.bmp", 1)[0].numpy(), pixels)
    with pytest.raises(DataError, match="made of more than 2,000,000 pieces"):
        decode_bytes(run_length_coded(np.tile(pixels, (3, 3))), "a.bmp", 1)


def test_a_plain_ppm_may_have_as_many_pixels_as_ever(monkeypatch):
    monkeypatch.setattr("lrtrain.data.decode.MAX_BYTES", 1_000_000)
    pixels = bytes(300 * 300 * 3)
    assert decode_bytes(b"P6\n300 300\n255\n" + pixels, "a.ppm", 3).shape == (3, 300, 300)
    with pytest.raises(DataError, match="which take 2 MB to decode"):  # several copies are made of what is scaled
        decode_bytes(b"P6\n300 300\n254\n" + pixels, "a.ppm", 3)
