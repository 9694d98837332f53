"""How a file becomes pixels: the one rule, stated in `decode`."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import EpsImagePlugin, ExifTags, Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lrtrain import foreign
from lrtrain.data import jpeg, jpeg2000, pixmaps, tiff
from lrtrain.data.pieces import MOST_FILE_BYTES, Pieces
from lrtrain.data.png import turned_later
from lrtrain.errors import BEYOND_FILES, DataError, printable

EMPTY = "it is empty (0 bytes)"
# JPEG's plugin reads MPO too. Others that Pillow has may start programs (EPS), or have never been seen in a dataset.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
# Nor may a dataset of the user's, which opens what it likes, start one: EPS is a program for Ghostscript.
EpsImagePlugin.gs_binary = False
MAX_BYTES = 490_000_000  # that decoding an image takes
# By Pillow's name of a decoder that is written in Python: of how many numbers an image may consist, for 3 s at most.
_SLOW = {"bmp_rle": (10_000_000, "run-length coded BMP"), "ppm_plain": (3_000_000, "PPM in plain text")}
_DECODER = {"WEBP": 12, "JPEG2000": 16}  # bytes a pixel that the decoder keeps besides what Pillow does
_STRIP = 1_000_000  # pixels that are converted at a time
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def decode(path: str | os.PathLike[str], channels: int) -> torch.Tensor:
    """Read an image file as uint8 pixels.

    The rule:
      - content decides what the file is, not its extension;
      - the first frame of an animation or multi-page file;
      - EXIF orientation is applied, and other metadata ignored, damaged or not;
      - transparency (alpha, or a palette's or PNG's transparent colour) is composited on white;
      - palette, CMYK, YCbCr, LAB and HSV are converted to RGB, and RGB to gray with ITU-R 601 weights
        L = 0.299 R + 0.587 G + 0.114 B where one channel is asked for; gray is repeated where three are;
      - 16-bit gray v becomes round(v / 257), so that 0..65535 spans 0..255, and a TIFF's of 12 bits likewise (Pillow
        itself reads 16-bit colour as its high byte, so a PNG with a transparent one is refused); 32-bit integers
        beyond 65535 and floats are refused, since their scale is not known, and so are a TIFF's
        signed bytes, palettes of 8 bits, and uncompressed YCbCr of which some is left out;
      - a TIFF's colours may lie in planes where they are 8-bit RGB, RGBA or CMYK, or 16-bit RGB that is compressed;
        others are refused, since Pillow makes noise of them, and so are strips or tiles that were never written, and
        signed numbers that are big-endian and compressed;
      - a JPEG 2000 has 8 bits a channel, or up to 16 of gray, says whether its last one is transparency, has sizes that
        are multiples of what its colours leave out, and no colour of its palette twice; others are refused, since
        Pillow makes black of white, transparency of whatever is there, and other colours;
      - a PPM's values are scaled by the greatest that it names, v becomes round(v / greatest * 255);
      - an image whose decoding would take more than `MAX_BYTES` is refused before memory is taken for it: at 8 bytes
        a pixel of colour that is 61 million pixels, fewer where the decoder keeps more (progressive JPEG 35, WebP 24,
        JPEG 2000 20, fewer still where its tiles, precincts or code blocks are small), and 179 million, where Pillow
        ends, for 8-bit gray. One image can thus not end the process;
      - nor may one take minutes: a JPEG of more than 500 scans is refused, a run-length coded BMP of more than 10
        million pixels or a million runs, and a PPM in plain text of more than 3 million numbers.

    Args:
        path: the file.
        channels: 1 or 3.

    Returns:
        uint8, shape (channels, height, width).

    Raises:
        DataError: there is no such file, or it cannot be read as an image by this rule; it is named.
        OSError: the machine lacks what it takes to open it.
    """
    try:
        with foreign.opened(Path(path), links=True) as file:
            refuse_long(os.fstat(file.fileno()).st_size)
            return decoded(file, channels)
    except Exception as error:  # damaged files raise OSError, ValueError, SyntaxError, struct.error ...
        if isinstance(error, OSError) and error.errno in BEYOND_FILES:
            raise
        raise DataError(
            f"cannot read the image {printable(str(path))}: {why_unreadable(error)}", hint=_hint(Path(path), error)
        ) from error


def decode_bytes(content: bytes, name: str, channels: int) -> torch.Tensor:
    """Read the content of an image file, by the rule of `decode`, where it is part of another file.

    Args:
        content: all of it.
        name: what errors call it.
        channels: 1 or 3.

    Returns:
        uint8, shape (channels, height, width).

    Raises:
        DataError: it cannot be read as an image by this rule.
    """
    try:
        return decoded(BytesIO(content), channels)
    except Exception as error:
        why = why_unreadable(error) if content else EMPTY
        raise DataError(f"cannot read the image {printable(name)}: {why}", hint="replace or remove it") from error


def refuse_long(size: int) -> None:
    """Refuse an image file before it is read into memory.

    Raises:
        TooLarge: it has more than `MOST_FILE_BYTES`.
    """
    if size > MOST_FILE_BYTES:
        raise TooLarge(f"it has {size:,} bytes; at most {MOST_FILE_BYTES:,} are read")


def decoded(file: IO[bytes], channels: int) -> torch.Tensor:
    """The pixels of an opened file by the rule of `decode`; where that cannot be, an exception of any type."""
    data = jpeg.coded(file)
    if data is not None:
        if (pixels := jpeg.plain(data, channels, MAX_BYTES)) is not None:
            return pixels
        if len(data) < file.seek(0, os.SEEK_END):
            file = BytesIO(data)
        del data
    return _by_pillow(file, channels)


def _by_pillow(file: IO[bytes], channels: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with header(file) as image:
            _refuse_large(image, channels)
            _refuse_misread(image)
            return from_pil(image, channels)


class TooLarge(ValueError):
    """Decoding would take more memory than `MAX_BYTES`."""


def _refuse_large(image: Image.Image, channels: int) -> None:
    numbers = image.width * image.height * len(image.getbands())
    for most, kind in (_SLOW[tile[0]] for tile in getattr(image, "tile", ()) if tile[0] in _SLOW):
        if numbers > most:
            raise TooLarge(f"it is a {kind} of {numbers:,} numbers; at most {most:,} are read")
    own = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;") else 4
    progressive = 2 * len(image.getbands()) if image.info.get("progressive") else 0
    # Turning it makes a second image, and what a TIFF holds in one strip is there beside it.
    each = own + max(own, channels) + _DECODER.get(image.format or "", 0) + progressive
    each += 12 if any(tile[0] == "ppm" for tile in getattr(image, "tile", ())) else 0  # as read, scaled, and copied
    # Decoders keep a row or two besides, which matters where it is the whole image.
    needed = image.width * (image.height * each + 3 * own)
    tags = getattr(image, "tag_v2", None) or {}
    needed += 8 * int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))  # a TIFF's tile is there as a whole
    if isinstance(image, ImageFile) and image.format == "JPEG2000" and image.fp is not None:
        # What one tile takes does not count, and what tiles of 256 and code blocks of 32 do is in the bytes a pixel.
        kept = jpeg2000.kept(cast(IO[bytes], Pieces(image.fp)))
        needed += max(0, kept - 1_000_000 - 2 * image.width * image.height)
    if needed > MAX_BYTES:
        raise TooLarge(
            f"it has {image.width:,} x {image.height:,} pixels, which take {needed / 1e6:,.0f} MB to decode; "
            f"at most {MAX_BYTES / 1e6:,.0f} MB are taken"
        )


def _refuse_misread(image: Image.Image) -> None:
    """Refuse what Pillow would read wrong without a word: an error for a file is better than noise.

    Raises:
        ValueError: it is such an image.
    """
    if isinstance(image, TiffImageFile):
        tiff.refuse_misread(image)
    elif isinstance(image, BmpImageFile):
        pixmaps.refuse_misread(image)
    elif isinstance(image, Jpeg2KImageFile) and image.fp is not None:
        jpeg2000.refuse_misread(image.fp, image.mode)


def header(file: IO[bytes]) -> Image.Image:
    """An image file as Pillow opens it, not decoded; any exception where it cannot be read."""
    tiff.refuse_many_places(file)
    file.seek(0)
    pieces = Pieces(file)
    image = Image.open(cast(IO[bytes], pieces), formats=FORMATS)
    tiles = getattr(image, "tile", ())
    pieces.tiles = len(tiles)
    pieces.counts_comments = any(tile[0] == "ppm_plain" for tile in tiles)
    return image


@cache
def only_formats() -> None:
    """Let `PIL.Image.open` read in this process only what `decode` reads, within its bounds of memory and time.

    For whoever opens images without asking for a format: some of Pillow's decoders take minutes for a small file.
    """
    Image.init()  # all plugins: none is added for a file's extension later
    Image.ID[:] = [name for name in FORMATS if name in Image.OPEN]
    for name in Image.ID:
        opener, accepts = Image.OPEN[name]
        Image.OPEN[name] = partial(_bounded, opener), accepts


def _bounded(opener: Callable[[IO[bytes], str | bytes], ImageFile], file: IO[bytes], name: str | bytes) -> ImageFile:
    image = opener(file, name)
    if not isinstance(file, Pieces):  # `decode` asks itself, with the channels that it makes
        _refuse_large(image, 3)
        _refuse_misread(image)
    return image


def from_pil(image: Image.Image, channels: int, *, kept: bool = False) -> torch.Tensor:
    """The pixels of an opened image by the rule of `decode`, uint8 (channels, height, width).

    Args:
        image: is turned in place, unless it is `kept` by someone else.
        channels: 1 or 3.
        kept: whether it is.

    Raises:
        ValueError: float pixels, or integers beyond 16 bits.
    """
    coded = _coding(image)
    image.load()
    greatest, inverted = tiff.gray_scale(image)
    _unpack_transparent(image, coded)
    image = _upright(image, kept=kept)
    width, height = image.size
    made = np.empty((channels, height, width), dtype=np.uint8)
    columns = max(1, min(width, _STRIP))
    rows = _STRIP // columns
    whole = rows >= height and columns >= width
    for top, left in itertools.product(range(0, height, rows), range(0, width, columns)):
        box = (left, top, min(width, left + columns), min(height, top + rows))
        pixels = _gray_or_rgb(image if whole else image.crop(box), channels, greatest)
        part = made[:, box[1] : box[3], box[0] : box[2]]
        part[:] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    if inverted:
        np.subtract(255, made, out=made)
    return torch.from_numpy(made)


def _coding(image: Image.Image) -> str:
    """How a file's pixels are packed, as Pillow names it before it unpacks them; empty where no file is behind them."""
    tiles = getattr(image, "tile", ())
    return tiles[0][3] if tiles and isinstance(tiles[0][3], str) else ""


def _unpack_transparent(image: Image.Image, coded: str) -> None:
    """A PNG's transparent colour on the scale of its unpacked pixels, in place; Pillow has it as it is in the file.

    Raises:
        ValueError: it has 16 bits a channel, where the pixels have 8 by then, so that which are meant is not known.
    """
    clear = image.info.get("transparency")
    if image.format != "PNG" or clear is None:
        return
    if coded == "RGB;16B":
        raise ValueError(
            "its transparent colour has 16 bits a channel, of which 8 are read; save it with alpha instead"
        )
    if coded in ("L;2", "L;4"):
        bits = int(coded[-1])
        image.info["transparency"] = clear % 2**bits * (255 // (2**bits - 1))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, *, kept: bool) -> Image.Image:
    """By EXIF, in place unless it is `kept`: there are two of it meanwhile, and one afterwards."""
    with suppress(Exception):  # damaged EXIF: the pixels are what counts, and these were loaded
        if (turn := _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))) is not None:
            turned = image.transpose(turn)
            if kept:
                return turned
            # As ImageOps.exif_transpose does, which writes all of the EXIF anew besides: of 20 MB that takes 9 s.
            image.im, image._size = turned.im, turned.size
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height that an opened image will have when it is decoded and upright."""
    width, height = image.size
    tag = ExifTags.Base.Orientation in getattr(image, "tag_v2", ())  # by a TIFF's tag Pillow has turned it already
    if width != height and not tag:
        with suppress(Exception):  # damaged EXIF, as above
            if isinstance(image, PngImageFile) and turned_later(image):
                _refuse_large(image, 3)
                image.load()
            # Not a PNG's own getexif, which decodes it whenever nothing stands before the pixels.
            if Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
                return height, width
    return width, height


def _gray_or_rgb(image: Image.Image, channels: int, greatest: int) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"integers are read up to 16 bits, 0..65535; its are {wide.min()}..{wide.max()}")
        gray = ((wide * 255 + greatest // 2) // greatest).astype(np.uint8)
        clear = image.info.get("transparency")
        return np.where(wide == clear, np.uint8(255), gray) if isinstance(clear, int) else gray
    if image.mode == "F":
        raise ValueError("float pixels have no known scale; convert the file to 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # Premultiplied modes convert only to their own plain mode.
        plain = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", plain.size, "white"), plain).convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    if channels == 1:
        image = image if image.mode == "L" else image.convert("RGB").convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return np.asarray(image)


def why_unreadable(error: Exception) -> str:
    """What an exception from `decoded` means, in words that follow the file's name."""
    if isinstance(error, UnidentifiedImageError):
        return f"its content is no image format that is read ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return str(error) or type(error).__name__


def _hint(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return "check that it is there, is a file, and may be read"
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty (0 bytes): restore or remove it"
    return "restore the file; `lrtrain check` finds all that cannot be read, for a skip_list where there may be one"
