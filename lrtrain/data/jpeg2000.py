"""JPEG 2000: what openjpeg keeps besides pixels, where a few bytes can ask for gigabytes, and what Pillow reads wrong.

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
_COLOURS = (0, 12, 15, 16, 17, 18, 20, 21)  # gray, CMYK, sYCC and kinds of RGB
_MOST_OF_A_BOX = 100_000  # bytes: palettes have up to 1,024 colours, and images 16,384 channels
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


def refuse_misread(file: IO[bytes], mode: str) -> None:
    """Refuse what Pillow reads wrong without a word.

    It wraps the brightest of more than 8 bits around to black, darkens less than 8, takes channels for red, green,
    blue and transparency in their order, whatever they are, and Lab for RGB, leaves out a palette's colour that was
    there before, and shears colours that have fewer pixels where these do not come out even.

    Args:
        file: all of it.
        mode: Pillow's name for its channels.

    Raises:
        ValueError: it is such an image.
    """
    content = next((content for marker, content in _segments(file) if marker == _SIZ), b"")
    depths = {(depth & 127) + 1 for depth in content[36::3]}
    if wrong := depths - set(range(9, 17) if mode == "I;16" else (8,)):
        raise ValueError(f"its channels have {min(wrong)} bits, where 8 are read, and up to 16 of gray; save it as PNG")
    if 0 in (step for at in range(37, len(content) - 1, 3) for step in content[at : at + 2]):
        raise ValueError("its header is damaged: a channel has pixels at every 0th place")
    sides = struct.iter_unpack(">2L", content[2:34])  # of the image, where it begins, of its tiles, where these begin
    if any(x % content[at] or y % content[at + 1] for x, y in sides for at in range(37, len(content) - 1, 3)):
        raise ValueError("some channels have fewer pixels, and its sizes are no multiples of theirs; save it as PNG")
    if not _is_plain(_inner(file, b"pclr"), _inner(file, b"cmap"), mode):
        raise ValueError("its palette is not of 8-bit colours that are all different; save it without a palette")
    if (kind := _kind_of_colours(file)) not in (None, *_COLOURS) and mode in ("RGB", "RGBA"):
        raise ValueError(f"its colours are of kind {kind}, and would be taken for red, green and blue; save it as PNG")
    channels = {"L": 1, "I;16": 1, "LA": 2, "RGB": 3, "RGBA": 4}.get(mode)  # none of palettes and CMYK
    meanings = sorted(_meanings(file))
    clear = mode in ("LA", "RGBA")
    if clear and not meanings:
        raise ValueError("it does not say whether its last channel is transparency; save it as PNG")
    if channels and meanings:
        colours = [(i, 0, i + 1) for i in range(channels - clear)]
        if meanings[: len(colours)] != colours or (clear and meanings[-1][1] != 1):  # 2 is premultiplied
            raise ValueError("its channels are not gray or red, green, blue and transparency in order; save it as PNG")


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
    return next((start for kind, start, _ in _boxes(file) if kind == b"jp2c"), 0)


def _meanings(file: IO[bytes]) -> list[tuple[int, int, int]]:
    """What a JP2 says of its channels: number, kind (0 for a colour, 1 and 2 for transparency), and which colour."""
    content = _inner(file, b"cdef")[2:]
    return list(struct.iter_unpack(">HHH", content[: len(content) // 6 * 6]))


def _kind_of_colours(file: IO[bytes]) -> int | None:
    """As a JP2 numbers them; None where it has a profile instead, or says nothing."""
    content = _inner(file, b"colr")
    return int.from_bytes(content[3:7]) if content[:1] == b"\1" and len(content) >= 7 else None


def _is_plain(palette: bytes, columns: bytes, mode: str) -> bool:
    """Whether there is no palette, or one that Pillow reads right: each number means another colour of three bytes."""
    if not palette:
        return mode not in ("P", "PA")
    if mode != "P" or palette[2:6] != b"\3\7\7\7" or columns != b"".join(bytes((0, 0, 1, i)) for i in range(3)):
        return False
    colours = palette[6:]
    entries = {colours[i : i + 3] for i in range(0, len(colours), 3)}
    return 3 * len(entries) == len(colours) == 3 * int.from_bytes(palette[:2])


def _inner(file: IO[bytes], wanted: bytes) -> bytes:
    """The first box of a JP2's header that is called so; empty where there is none."""
    for kind, start, end in _boxes(file):
        if kind == b"jp2h":
            for inner, at, stop in _boxes(file, start, end):
                if inner == wanted:
                    file.seek(at)
                    return file.read(min(stop - at, _MOST_OF_A_BOX))
            break
    return b""


def _boxes(file: IO[bytes], at: int = 0, end: int = 2**63) -> Iterator[tuple[bytes, int, int]]:
    """Kinds of a JP2's boxes, and where their contents begin and end; none of another file."""
    if not at:
        file.seek(0)
        if file.read(12) != _SIGNATURE:
            return
        at = 12
    while at + 8 <= end:
        file.seek(at)
        start = file.read(16)
        if len(start) < 8:
            return
        length, kind = struct.unpack(">I4s", start[:8])
        long = length == 1
        if long:
            length = int.from_bytes(start[8:])
        yield kind, at + (16 if long else 8), at + length if length else end
        if not 8 <= length < 2**32:
            return
        at += length
