"""Images of every format that is read, in several modes, damaged: decoded."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from fuzz_parts.damage import damaged
from lrtrain.data.decode import decode

# format, modes, how it is written
WAYS: tuple[tuple[str, tuple[str, ...], tuple[dict[str, Any], ...]], ...] = (
    ("JPEG", ("L", "RGB", "CMYK"), ({}, {"progressive": True}, {"subsampling": 0, "quality": 95}, {"exif": True})),
    ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), ({}, {"optimize": True}, {"exif": True})),
    ("GIF", ("L", "P"), ({}, {"save_all": True})),
    ("BMP", ("1", "L", "P", "RGB"), ({},)),
    (
        "TIFF",
        ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"),
        ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"save_all": True}),
    ),
    ("WEBP", ("RGB", "RGBA"), ({}, {"lossless": True}, {"save_all": True})),
    ("PPM", ("1", "L", "RGB"), ({},)),
    ("ICO", ("RGB", "RGBA"), ({},)),
    ("TGA", ("L", "P", "RGB", "RGBA"), ({}, {"compression": "tga_rle"})),
    ("JPEG2000", ("L", "RGB"), ({},) if features.check("jpg_2000") else ()),
    ("AVIF", ("RGB",), ({},) if features.check("avif") else ()),
)


class Tries:
    """Makes and reads images."""

    def __init__(self) -> None:
        self._files = [_image(f, mode, how) for f, modes, ways in WAYS for mode in modes for how in ways]
        # What is imported for the first image takes more time and memory than any of them.
        whole = Path("whole.jpg")
        whole.write_bytes(self._files[0])
        self.read(whole)
        whole.unlink()

    def make(self, noise: random.Random, case: Path) -> None:
        """An image at `case`."""
        case.write_bytes(damaged(noise.choice(self._files), noise, noise.choice(self._files)))

    def read(self, case: Path) -> None:
        """Decode it to colour and to gray."""
        try:
            decode(case, 3)
        finally:
            decode(case, 1)


def _image(kind: str, mode: str, how: dict[str, Any]) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 33, 4), dtype=np.uint8)
    pixels[..., 0] = np.arange(33) * 7  # not noise alone, so that compression has something to do
    image = Image.fromarray(pixels, "RGBA")
    image = (
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
        if mode == "I;16"
        else image.convert("RGB").convert(mode)
    )
    more = dict(how)
    if more.pop("exif", False):
        exif = Image.Exif()
        exif[0x0112] = 6
        more["exif"] = exif
    if how.get("save_all"):
        more["append_images"] = [image.rotate(90), image]
    out = BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()
