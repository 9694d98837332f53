"""An image file as Pillow reads it, within bounds."""

from __future__ import annotations

import os
from typing import IO, Any

MOST_FILE_BYTES = 200_000_000  # of an image file: 61 million pixels of colour, uncompressed
_MOST_READS = 200_000  # of a file: a PNG of 200 MB in chunks of 8 KB takes 75,000
# Of a JPEG, which has one for each picture in it. Pillow appends each to those before: 1,500 of 65 kB take 40 s.
_EXIF, _MOST_EXIF = b"Exif\0\0", 100
_A_TILE = 65_536  # bytes that older Pillows ask for at each strip or tile, however short it is
_MOST_COMMENTS = 10_000  # of an image in plain text: for each Pillow copies what it has read, up to 1 MB
_MOST_AGAIN = 50_000_000  # bytes read beyond four times the whole: older Pillows keep each tag that leads to one place


class TooManyPieces(ValueError):
    """A file is read in too many pieces, of whatever kind, or again and again."""


class Pieces:
    """A file as Pillow reads it, up to a number of reads: what is walked through bit by bit would not end in time.

    Pillow walks through chunks, segments, boxes, comments and junk, in whichever format; the counts go on from one
    format that it tries to the next, and while it decodes.
    """

    def __init__(self, file: IO[bytes]):
        self._file, self._reads, self.most = file, 0, _MOST_READS  # more where the format needs it
        self.tiles = 0  # to be decoded: strips, or whatever else; known once the image is opened
        self.counts_comments = False  # where they begin with #, known once the image is opened
        self._exif = self._bytes = self._comments = 0

    def read(self, size: int = -1) -> bytes:
        """As a file's own.

        Raises:
            TooManyPieces: it is asked for once more than may be.
        """
        self._reads += 1
        if self._reads > self.most:
            raise TooManyPieces(f"it is made of more than {self.most:,} pieces, and no image needs so many")
        data = self._file.read(size)
        if size == _A_TILE and self.tiles > 0:
            self.tiles -= 1
        else:
            self._bytes += len(data)
        if self._bytes > _MOST_AGAIN and self._bytes > 4 * self._size() + _MOST_AGAIN:
            raise TooManyPieces("its pieces are read again and again, and no image needs that")
        self._comments += data.count(b"#") if self.counts_comments else 0
        if self._comments > _MOST_COMMENTS:
            raise TooManyPieces(f"it has more than {_MOST_COMMENTS:,} comments, and no image needs so many")
        self._exif += data.startswith(_EXIF)
        if self._exif > _MOST_EXIF:
            raise TooManyPieces(f"it has more than {_MOST_EXIF} pieces of Exif, and no image needs so many")
        return data

    def _size(self) -> int:
        at = self._file.tell()
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(at)
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)  # libtiff reads by fileno() or getvalue(), where the file has it
