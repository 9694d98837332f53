"""BMPs that Pillow reads wrong without a word, and BMPs and PPMs that it reads number by number."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PpmImagePlugin import PpmDecoder

from lrtrain.data.pieces import Pieces

_MOST_RUNS = 2_000_000  # reads of a run-length coded BMP, two for a run: for 3 s at most
_CORE = 12  # bytes of a BMP's oldest header


def refuse_misread(image: ImageFile) -> None:
    """Have a BMP's pixels read by as many bits as they have, where Pillow takes a gray palette for what says it.

    Raises:
        ValueError: they cannot be.
    """
    kind, box, offset, given = image.tile[0]
    if kind == "bmp_rle" and isinstance(image.fp, Pieces):
        image.fp.most = _MOST_RUNS
    if image.mode not in ("1", "L") or image.fp is None:
        return
    image.fp.seek(14)
    head = image.fp.read(16)
    (bits,) = struct.unpack_from("<H", head, 10 if head[0] == _CORE else 14)
    if image.mode == "1" and bits == 8 and kind == "raw" and isinstance(given, tuple):
        image.tile = [type(image.tile[0])(kind, box, offset, ("1;8", *given[1:]))]
    elif bits != (1 if image.mode == "1" else 8):
        raise ValueError(f"it has {bits} bits a pixel and a palette of black and white, or gray; save it as PNG")


class _Ppm(PpmDecoder):
    """A binary PPM or PGM whose greatest value is not 255: each v becomes round(v / greatest * 255), or 65535."""

    def decode(self, _: object) -> tuple[int, int]:
        assert self.fd is not None
        (*_, greatest), wide = self.args, self.mode == "I"
        stored = np.dtype("u1" if greatest < 256 else ">u2")
        numbers = self.state.xsize * self.state.ysize * Image.getmodebands(self.mode)
        read = self.fd.read(numbers * stored.itemsize)
        values = np.frombuffer(read, stored, len(read) // stored.itemsize)
        most = 65535 if wide else 255
        scaled = np.minimum(most, np.rint(np.arange(256**stored.itemsize) / greatest * most))
        self.set_as_raw(scaled.astype("<u4" if wide else "u1")[values].tobytes(), "I;32" if wide else self.mode)
        return -1, 0


Image.register_decoder("ppm", _Ppm)
