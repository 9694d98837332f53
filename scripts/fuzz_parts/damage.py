"""What can become of bytes on their way."""

from __future__ import annotations

import random
from collections.abc import Callable

NUMBERS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00", b"\x80\x00\x00\x00")


def damaged(data: bytes, noise: random.Random, other: bytes = b"") -> bytes:
    """`data` after one to four accidents; `other` is what it may be spliced with."""
    for _ in range(noise.choice((1, 1, 1, 2, 3, 4))):
        data = noise.choice(_ACCIDENTS)(data, noise, other)
    return data


def _flip(data: bytes, noise: random.Random, other: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(noise.choice((1, 1, 2, 8, 40))):
        if made:
            made[noise.randrange(len(made))] ^= 1 << noise.randrange(8)
    return bytes(made)


def _overwrite(data: bytes, noise: random.Random, other: bytes) -> bytes:
    """Early bytes, where headers are, more often than late ones."""
    at = int(len(data) * noise.random() ** 4)
    new = noise.choice(NUMBERS) if noise.random() < 0.6 else noise.randbytes(noise.randrange(1, 9))
    return data[:at] + new + data[at + len(new) :]


def _cut(data: bytes, noise: random.Random, other: bytes) -> bytes:
    return data[: noise.randrange(len(data) + 1)]


def _extend(data: bytes, noise: random.Random, other: bytes) -> bytes:
    return data + (noise.randbytes(noise.randrange(1, 300)) if noise.random() < 0.7 else bytes(100_000))


def _remove(data: bytes, noise: random.Random, other: bytes) -> bytes:
    at = noise.randrange(len(data) + 1)
    return data[:at] + data[at + noise.randrange(1, 64) :]


def _repeat(data: bytes, noise: random.Random, other: bytes) -> bytes:
    at = noise.randrange(len(data) + 1)
    return data[:at] + data[at : at + noise.randrange(1, 200)] * noise.choice((2, 2, 3, 50)) + data[at:]


def _insert(data: bytes, noise: random.Random, other: bytes) -> bytes:
    at = noise.randrange(len(data) + 1)
    return data[:at] + noise.randbytes(noise.randrange(1, 32)) + data[at:]


def _splice(data: bytes, noise: random.Random, other: bytes) -> bytes:
    if not other:
        return data
    at, start = noise.randrange(len(data) + 1), noise.randrange(len(other) + 1)
    return data[:at] + other[start : start + noise.randrange(1, len(other) + 1)] + data[at:] * noise.randrange(2)


_ACCIDENTS: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _cut,
    _extend,
    _remove,
    _repeat,
    _insert,
    _splice,
)
