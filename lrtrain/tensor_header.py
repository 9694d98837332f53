"""The header of a safetensors file: written, and read and held against the file's length before a tensor is allocated.

8 bytes   length n of the header, little-endian
n bytes   {"name": {"dtype": "F32", "shape": [64, 3], "data_offsets": [0, 768]}, ..., "__metadata__": {...}}
the rest  the tensors, one after the other without gaps
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch

from lrtrain.errors import CheckpointError, quoted
from lrtrain.foreign import json_object

MAX_HEADER = 8_000_000  # bytes
MAX_TENSORS = 50_000  # which take a second to look at; AdamW keeps three for each parameter
MAX_DIMENSIONS = 16
MAX_SIDE = 2**48  # of a tensor
MAX_STRIDE = 2**58  # of one without numbers too, since torch computes it in 64 bits
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor's type and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind} {'x'.join(map(str, self.shape))}" if self.shape else f"one {kind}"


def described(tensors: Mapping[str, torch.Tensor]) -> dict[str, Described]:
    """Type and shape of each of a module's or optimizer's tensors."""
    return {name: Described(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def header_of(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, list[str]]:
    """The beginning of a file, and the names of its tensors in the order in which their bytes follow, without gaps.

    Types with large numbers come first, so that every number lies at a multiple of its size.

    Raises:
        CheckpointError: `read_header` would not read it again: a tensor is of a type, a layout or a shape that it does
            not take, which is named, or there are too many.
    """
    if len(tensors) > MAX_TENSORS:
        raise _too_many(f"at most {MAX_TENSORS:,} tensors; these are {len(tensors):,}")
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if tensor.dtype not in _CODES:
            kind = str(tensor.dtype).removeprefix("torch.")
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _CODES)
            what = f"{quoted(name)} is {kind}, which a checkpoint cannot hold"
            raise CheckpointError(what, hint=f"make it one of {allowed}")
        if tensor.layout != torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            what = f"{quoted(name)} is {kind}, which a checkpoint cannot hold"
            raise CheckpointError(what, hint="make it dense: `to_dense()`")
        if not _is_shape(list(tensor.shape)):
            what = f"{quoted(name)} has the shape {quoted(tuple(tensor.shape))}, which a checkpoint cannot hold"
            raise CheckpointError(what, hint=f"make it one of at most {MAX_DIMENSIONS} dimensions")
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise _too_many(f"names and shapes of at most {MAX_HEADER:,} bytes; these are {len(text):,}")
    return len(text).to_bytes(8, "little") + text, list(header)


def read_header(file: IO[bytes], name: str) -> dict[str, Described]:
    """Every tensor of an opened file, by name.

    Args:
        file: is read from where it stands, its beginning.
        name: what errors call it.

    Raises:
        CheckpointError: it is not a whole safetensors file, or one with a header that lies about the rest.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise _not_one(name, f"of {size:,} bytes, its header would take {length:,}")
    if length > MAX_HEADER:
        raise _not_one(name, f"its header has {length:,} bytes, and at most {MAX_HEADER:,} are read")
    try:
        header = json_object(file.read(length))
    except ValueError as error:
        raise _not_one(name, f"its header is not JSON: {error}") from None
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise _not_one(name, f"it holds {len(header):,} tensors, and at most {MAX_TENSORS:,} are read")
    spans: list[tuple[int, int]] = []
    found = {tensor: _entry(name, tensor, entry, spans) for tensor, entry in header.items()}
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _not_one(name, f"its tensors overlap or leave gaps, at byte {min(start, end):,}")
        end = stop
    if end != size - 8 - length:
        raise _not_one(name, f"its tensors take {end:,} bytes, and {size - 8 - length:,} are there")
    return found


def _entry(name: str, tensor: str, entry: Any, spans: list[tuple[int, int]]) -> Described:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _not_one(name, f"of {quoted(tensor)} it does not say dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _not_one(name, f"{quoted(tensor)} is of type {quoted(dtype)}; allowed: {', '.join(DTYPES)}")
    if not _is_shape(shape):
        raise _not_one(name, f"{quoted(tensor)} has the shape {quoted(shape)}")
    if not _whole(offsets) or len(offsets) != 2:
        raise _not_one(name, f"{quoted(tensor)} lies at {quoted(offsets)}")
    start, stop = offsets
    if stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _not_one(name, f"{quoted(tensor)}, {dtype} {quoted(shape)}, does not take {stop - start:,} bytes")
    spans.append((start, stop))
    return Described(DTYPES[dtype], tuple(shape))


def _is_shape(value: Any) -> bool:
    if not _whole(value) or len(value) > MAX_DIMENSIONS:
        return False
    return bool(math.prod(side or 1 for side in value) < MAX_STRIDE)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < MAX_SIDE for value in values)


def _too_many(why: str) -> CheckpointError:
    hint = "take a network of fewer parameters, or an optimizer that keeps fewer tensors for each"
    return CheckpointError(f"a file of a checkpoint holds {why}", hint=hint)


def _not_one(name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{name} is not a whole safetensors file: {why}", hint="restore it from a copy")
