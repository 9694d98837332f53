"""What the codestream of a JPEG 2000 makes openjpeg keep besides pixels, where a few bytes can ask for gigabytes.

For each tile it copies the main header's settings; while it decodes one, it keeps all of its precincts and code blocks,
and a mark for each packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_SOC, _SIZ, _SOT, _SOD, _COD, _COC = b"\xff\x4f", b"\xff\x51", b"\xff\x90", b"\xff\x93", b"\xff\x52", b"\xff\x53"
_TRANSFORMS = (b"\xff\x74", b"\xff\x75", b"\xff\x77")  # of components: MCT, MCC and MCO, which each tile gets
# COD, COC, TLM, PLM, PLT, CPF, QCD, QCC, RGN, POC, PPM, PPT, CRG, COM and CBD: openjpeg looks for one of these, pair of
# bytes by pair, behind what it does not know.
_KNOWN = {bytes((255, second)) for second in b"\x50\x52\x53\x55\x57\x58\x59\x5c\x5d\x5e\x5f\x60\x61\x63\x64\x78"}
_KNOWN |= {_SIZ, _SOT, _SOD, *_TRANSFORMS}
_END = 43  # of what is looked at in a COD, of 32 levels
# Bytes, as measured with openjpeg 2.5; 6,000 of a tile's are for the index of 255 tile-parts.
_TILE, _COMPONENT_OF_TILE, _PRECINCT, _BLOCK = 14_000, 1_500, 300, 450
_PACKET = 8  # in place of 2, and for those of all tiles: time goes by them, whether there is data for them or not


def kept(file: IO[bytes]) -> int:
    """Bytes that openjpeg keeps besides pixels, by the headers of a file; of a damaged one, by what can be read.

    Raises:
        ValueError: `file` refuses to be read in so many pieces.
    """
    width = height = tiles = components = copied = layers = 0
    codings: set[tuple[bool, bytes]] = set()
    for marker, content in _segments(file):
        with suppress(struct.error, ZeroDivisionError):
            if marker == _SIZ and not tiles:
                x, y, x0, y0, tw, th, tx0, ty0, components = struct.unpack_from(">2x8IH", content)
                tiles = -(-(x - tx0) // tw) * -(-(y - ty0) // th)
                width, height = min(x - x0, tw), min(y - y0, th)
            elif marker == _COD:
                flags, of_layers = struct.unpack_from(">BxHx", content)
                layers = max(layers, of_layers)
                codings.add((flags & 1 == 1, content[5:_END]))
            elif marker == _COC:
                at = 1 if components < 257 else 2  # behind the component's number
                (flags,) = struct.unpack_from(">B", content, at)
                codings.add((flags & 1 == 1, content[at + 1 : at + 1 + _END]))
            elif marker in _TRANSFORMS:
                copied += len(content) + 4
    of_tile, packets = 0, 0
    for coding in codings:
        taken, most = _of_component(*coding, width, height)
        of_tile, packets = max(of_tile, taken), max(packets, most)
    # openjpeg's records of transforms are longer than their segments, by at most that.
    copy = _TILE + 8 * copied + components * (_COMPONENT_OF_TILE + packets * (layers + 1) * _PACKET)
    return max(0, tiles) * copy + components * of_tile


def _of_component(own_precincts: bool, coding: bytes, width: int, height: int) -> tuple[int, int]:
    """Bytes for a tile's precincts and code blocks, and its packets of a layer as openjpeg counts them."""
    if len(coding) < 5 or coding[0] > 32 or min(width, height) < 1:
        return 0, 0  # which openjpeg refuses
    levels, taken, most = coding[0], 0, 0
    sizes = coding[5 : 6 + levels] if own_precincts else b"\xff" * (levels + 1)
    for resolution, size in enumerate(sizes):
        precincts = blocks = 1
        for side, precinct, block in ((width, size & 15, coding[1] + 2), (height, size >> 4, coding[2] + 2)):
            scaled = _cells(side, levels - resolution)
            precincts *= _cells(scaled, precinct) + 1
            halved = min(resolution, 1)  # in each of three bands
            blocks *= _cells(_cells(scaled, halved), min(block, max(0, precinct - halved))) + 1
        taken += (3 if resolution else 1) * (precincts * _PRECINCT + blocks * _BLOCK)
        most = max(most, precincts * (levels + 1))
    return taken, most


def _cells(length: int, exponent: int) -> int:
    return -(-length >> exponent)


def _segments(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Markers and contents of the main header and of those of all tile-parts, as far as they can be read."""
    at = _codestream(file)
    file.seek(at)
    if file.read(2) != _SOC:
        return
    end = 0  # of a tile-part
    while marker := file.read(2):
        if marker == _SOD:
            if not end:
                return
            file.seek(max(end, file.tell()))  # openjpeg takes too short a length for an empty tile-part's
        elif marker not in _KNOWN:
            if end:
                return
        else:
            length = int.from_bytes(file.read(2))
            content = file.read(max(0, length - 2))
            if marker == _SOT:
                if len(content) < 8:
                    return
                of_part = int.from_bytes(content[2:6])
                end = file.tell() - 12 + of_part if of_part else 0  # which is to the end of the file
            yield marker, content


def _codestream(file: IO[bytes]) -> int:
    """Where it begins: in a JP2 the first box jp2c holds it."""
    at = 0
    file.seek(0)
    if file.read(12) != _SIGNATURE:
        return at
    while len(start := file.read(16)) >= 8:
        length, kind = struct.unpack(">I4s", start[:8])
        at = file.tell() - len(start)
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)
        if length == 1:
            length = int.from_bytes(start[8:])
        if not 8 <= length < 2**32:
            break
        file.seek(at + length)
    return at
