"""How files of every kind become pixels."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from lrtrain.data import decode as decoding
from lrtrain.data.decode import decode, decode_bytes, decoded, from_pil, header, upright_size
from lrtrain.data.files import FileSplit
from lrtrain.data.inspect import look
from lrtrain.errors import DataError

# 2 rows of 3 pixels, all different, and away from what lossy formats blur.
PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14


def pixels(path, channels=3):
    return decode(path, channels).numpy().transpose(1, 2, 0)


def saved(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


def test_an_rgb_file_is_read_as_it_is(tmp_path):
    tensor = decode(saved(tmp_path / "a.png", PIXELS), 3)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, 2, 3)
    assert np.array_equal(tensor.numpy().transpose(1, 2, 0), PIXELS)


def test_gray_is_repeated_where_colour_is_wanted(tmp_path):
    read = pixels(saved(tmp_path / "a.png", PIXELS[:, :, 0]))
    assert np.array_equal(read, np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_colour_becomes_gray_by_itu_601_where_gray_is_wanted(tmp_path):
    read = pixels(saved(tmp_path / "a.png", PIXELS), 1)[:, :, 0]
    assert np.abs(read - PIXELS @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_content_decides_and_not_the_extension(tmp_path):
    image = Image.fromarray(PIXELS[:, :, 0])
    assert np.array_equal(pixels(saved(tmp_path / "a.jpg", image, format="GIF"), 1)[:, :, 0], PIXELS[:, :, 0])


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = PIXELS
    # How a camera stores an upright picture under each orientation (Exif 2.3, tag 274).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif.tobytes())
    # Before a PNG's pixels or behind them, whichever program writes it.
    content = path.read_bytes()
    at = content.index(b"eXIf") - 4
    late = content[at : at + 12 + int.from_bytes(content[at : at + 4], "big")]
    pixels_at = content.index(b"IEND") - 4
    (tmp_path / "late.png").write_bytes(content[:at] + content[at + len(late) : pixels_at] + late + content[pixels_at:])
    for each in (path, tmp_path / "late.png"):
        assert np.array_equal(pixels(each), upright)
        with open(each, "rb") as file, header(file) as image:
            assert upright_size(image) == (upright.shape[1], upright.shape[0])
            assert np.array_equal(from_pil(image, 3).permute(1, 2, 0).numpy(), upright)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}], ids=str
)
def test_a_plain_jpeg_has_the_same_bits_from_torchvision_as_from_pillow(tmp_path, mode, options, monkeypatch):
    noise = np.random.default_rng(1).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((67, 43), Image.Resampling.BICUBIC).convert(mode)
    path = saved(tmp_path / "a.jpg", image, quality=80, **options)
    channels = (1, 3) if mode == "L" else (3,)
    fast = [decode(path, c) for c in channels]
    with monkeypatch.context() as patch:
        patch.setattr("lrtrain.data.decode._by_pillow", None)
        assert all(torch.equal(decode(path, c), image) for c, image in zip(channels, fast, strict=True))
    monkeypatch.setattr("lrtrain.data.jpeg._decoder", lambda: None)
    assert all(torch.equal(decode(path, c), image) for c, image in zip(channels, fast, strict=True))
    assert all(image.stride() == decode(path, c).stride() for c, image in zip(channels, fast, strict=True))


def test_the_orientation_of_a_jpeg_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(np.repeat(np.repeat(PIXELS, 16, 0), 16, 1))
    path = saved(tmp_path / "a.jpg", image, exif=exif.tobytes())
    assert decode(path, 3).shape == (3, 48, 32)
    # It may stand behind the frame's header, too.
    data = path.read_bytes()
    start, frame, scan = data.index(b"\xff\xe1"), data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    assert end <= frame
    path.write_bytes(data[:start] + data[end:scan] + data[start:end] + data[scan:])
    assert decode(path, 3).shape == (3, 48, 32)


@pytest.mark.parametrize(
    ("name", "mode", "each", "column", "options"),  # bytes a pixel, and besides in three rows
    [
        ("a.jpg", "RGB", 6, 0, {}),
        ("a.jpg", "RGB", 12, 0, {"progressive": True}),
        ("a.png", "RGBA", 8, 12, {}),
        ("a.png", "I;16", 5, 6, {}),
        ("a.png", "L", 4, 3, {}),
        ("a.webp", "RGB", 20, 12, {}),
        ("a.jp2", "RGB", 24, 12, {}),
    ],
)
def test_what_would_take_too_much_memory_is_refused(tmp_path, monkeypatch, name, mode, each, column, options):
    path = saved(tmp_path / name, Image.new(mode, (10, 10)), **options)
    monkeypatch.setattr(decoding, "MAX_BYTES", 100 * each + 10 * column - 1)
    with pytest.raises(DataError, match=rf"{name}: it has 10 x 10 pixels, which take 0 MB to decode; at most 0 MB"):
        decode(path, 3)
    monkeypatch.setattr(decoding, "MAX_BYTES", 100 * each + 10 * column)
    assert decode(path, 3).shape == (3, 10, 10)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "I;16", "I", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_converted_in_strips_with_the_same_pixels(monkeypatch, mode, channels):
    colours = np.random.default_rng(1).integers(0, 256, (13, 7, 4), dtype=np.uint8)
    image = (
        Image.fromarray(colours, "RGBA")
        if mode == "RGBA"
        else Image.fromarray(colours[:, :, :3])
        .convert({"I;16": "L", "I": "L", "PA": "P"}.get(mode, mode))
        .convert(mode)
    )
    if mode == "P":
        image.info["transparency"] = 3
    whole = decoding.from_pil(image, channels)
    monkeypatch.setattr(decoding, "_STRIP", 21)
    assert torch.equal(decoding.from_pil(image, channels), whole)


def test_formats_that_start_programs_are_not_opened(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n")
    with pytest.raises(DataError, match="no image format that is read"):
        decode(tmp_path / "a.jpg", 3)


def test_damaged_exif_does_not_hinder(tmp_path):
    assert np.array_equal(pixels(saved(tmp_path / "a.png", PIXELS, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), PIXELS)


def test_transparency_is_composited_on_white(tmp_path):
    alpha = np.array([[0, 255, 255], [255, 255, 0]], dtype=np.uint8)
    read = pixels(saved(tmp_path / "a.png", np.dstack([PIXELS, alpha])))
    assert np.array_equal(read, np.where(alpha[:, :, None] == 0, 255, PIXELS))


def test_a_transparent_palette_colour_is_composited_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path / "a.png", image, transparency=0)
    assert pixels(path)[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_a_palette_without_transparency_is_looked_up(tmp_path):
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    assert pixels(saved(tmp_path / "a.png", image))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_fully_transparent_image_is_white(tmp_path, mode, channels):
    path = saved(tmp_path / "a.png", Image.new(mode, (2, 2), 0))
    assert (pixels(path, channels) == 255).all()


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", ".tif"), ("CMYK", ".jpg"), ("YCbCr", ".jpg"), ("LAB", ".tif")])
def test_other_colour_spaces_become_rgb(tmp_path, mode, suffix):
    path = saved(tmp_path / f"a{suffix}", Image.new(mode, (8, 8), 0))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(pixels(path), expected)


def test_a_bit_image_is_black_and_white(tmp_path):
    assert pixels(saved(tmp_path / "a.png", np.array([[True, False]])))[0, :, 0].tolist() == [255, 0]


def test_a_name_cannot_break_the_line_that_names_it(tmp_path):
    (tmp_path / "a\nhint b.png").write_bytes(b"no image")
    with pytest.raises(DataError) as refused:
        decode(tmp_path / "a\nhint b.png", 3)
    assert "a\\nhint b.png: its content" in str(refused.value)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}", np.array([[0, 200, 257, 40_000, 65_535]], dtype=np.uint16))
    assert pixels(path)[0, :, 0].tolist() == [0, 1, 1, 156, 255]


def test_float_pixels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.tif: float pixels"):
        decode(saved(tmp_path / "a.tif", np.array([[0.5]], dtype=np.float32)), 3)


def test_wide_integers_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"0\.\.65535"):
        decode(saved(tmp_path / "a.tif", np.array([[70_000]], dtype=np.int32)), 3)


def test_more_pixels_than_pillow_allows_are_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("1", (10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 49)
    with pytest.raises(DataError, match=r"a\.png: it has more than 98 pixels"):
        decode(path, 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no image format"),
        (b"hello", "no image format"),
        (None, "No such file"),
        ("cut", "truncated"),
    ],
)
def test_an_unreadable_file_is_named_and_the_reason_said(tmp_path, content, why):
    path = tmp_path / "a.jpg"
    if content == "cut":
        saved(path, np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        content = path.read_bytes()[:2000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=why) as caught:
        decode(path, 3)
    assert str(path) in caught.value.problems[0].what
    assert caught.value.problems[0].hint


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_follows_a_jpegs_image_has_no_scans(tmp_path, progressive, channels):
    """The video of a phone's motion photo; where the image's end is hidden in a comment, the scans count still."""
    file = BytesIO()
    Image.fromarray(np.repeat(PIXELS, 16, 0)).save(file, "JPEG", progressive=progressive, comment=b"\xff\xd9")
    video = b"\0\xff\xda\0\x0c" * 600
    photo = decode_bytes(file.getvalue(), "a.jpg", channels)
    content = file.getvalue() + video
    assert torch.equal(decode_bytes(content, "a.jpg", channels), photo)
    (tmp_path / "a.jpg").write_bytes(content)
    assert not look(FileSplit(tmp_path, ["a.jpg"], np.zeros(1, np.int64), channels), 0, channels).why
    with pytest.raises(DataError, match=r"it has 6[0-9][0-9] scans; at most 500 are read"):
        decode_bytes(file.getvalue().removesuffix(b"\xff\xd9") + video, "a.jpg", channels)


def test_a_jpeg_is_decoded_no_further_than_its_scans_are_counted(monkeypatch):
    given = []
    monkeypatch.setattr(decoding, "_by_pillow", lambda file, _: given.append(file.read()))
    cut = b"\xff\xd8\xff\xe1\0\4\xff\xda\xff\xd9"
    decoded(BytesIO(cut + b"\xff\xda" * 600), 3)
    assert given == [cut]


def test_a_file_of_the_disk_is_still_one_to_pillow(tmp_path):
    with open(saved(tmp_path / "a.tif", PIXELS), "rb") as file, header(file) as image:
        assert image.fp.fileno() == file.fileno()
