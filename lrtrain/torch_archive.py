"""Whether a `.pth` file is an archive as torch.save writes it, looked at before torch reads it.

Its entries are stored as they are, so that what they say they take is bounded by the file's length. The pickled part
is small, and builds nothing but tensors, numbers, texts and containers of these: torch's `weights_only` rule alone
lets it ask for any number of bytes, or for a tuple of itself 45 times over, which takes forever to hash.
"""

from __future__ import annotations

import errno
import io
import os
import pickletools
import struct
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch

from lrtrain.errors import CheckpointError, quoted
from lrtrain.foreign import opened

MAX_DIRECTORY = 16_000_000  # bytes: a hundred thousand entries
MAX_PICKLE = 4_000_000  # bytes: names and shapes of ten thousand tensors
MAX_OPCODES = 1_000_000
MAX_IN_TUPLE = 10_000  # all that a tuple holds, counted as often as it holds it

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.serialization.MAGIC_NUMBER, pickled

_CALLED = (
    "collections Counter",  # as MultiStepLR keeps its milestones
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch.storage UntypedStorage",
)
_AGAIN = "save module.state_dict() alone with torch.save of torch 1.6 or later, best as .safetensors"


def refuse_other_archives(file: Path) -> None:
    """Refuse everything but an archive with stored entries.

    Raises:
        CheckpointError: a bare pickle, a tar file, a compressed, damaged or padded archive.
        OSError: it cannot be read.
    """
    try:
        wrong = next(_wrong(file), None)
    except (zipfile.BadZipFile, struct.error, ValueError, LookupError, NotImplementedError, EOFError) as error:
        wrong = f"it cannot be read: {error}"
    except OSError as error:
        if error.errno != errno.EINVAL:  # places before the file's beginning, by its own account
            raise
        wrong = "its table of contents lies outside of it"
    if wrong:
        raise CheckpointError(f"{str(file)!r} is damaged, or not a file of torch.save: {wrong}", hint=_AGAIN)


def refuse_other_legacy(file: Path) -> None:
    """Refuse everything but plain values as torch.save wrote them before torch 1.6, in pickles one after the other.

    Raises:
        CheckpointError: damaged, long, with tensors, or with more than plain values.
        OSError: it cannot be read.
    """
    try:
        with opened(file, links=True) as content:
            data = content.read(MAX_PICKLE + 1)
        if len(data) > MAX_PICKLE:
            raise ValueError(f"it has more than {MAX_PICKLE:,} bytes, as with tensors")
        if not data.startswith(_LEGACY):
            raise ValueError("it does not begin as they do")
        stream = io.BytesIO(data)
        start = stream.seek(len(_LEGACY))
        for _ in range(4):  # its protocol, the machine, the object, and the names of tensors
            deque(pickletools.genops(stream), maxlen=0)
            _refuse_other_pickles(data[start : stream.tell()], file)
            start = stream.tell()
        if start < len(data):
            raise ValueError("it has more than plain values")
    except (ValueError, LookupError, struct.error) as error:
        raise CheckpointError(f"{str(file)!r} is damaged, or not a file of torch.save: {error}", hint=_AGAIN) from error


def _wrong(file: Path) -> Iterator[str]:
    with opened(file, links=True) as content:
        size = os.fstat(content.fileno()).st_size
        if content.read(4) != b"PK\3\4":
            yield "it is no zip archive, but a bare pickle, a tar file or something else" if size else "it is empty"
        content.seek(-min(size, 22), os.SEEK_END)
        end = content.read()
        if not end.startswith(b"PK\5\6"):
            yield "its end is missing, or something follows it"
        entries, directory, start, stop = _directory(content.fileno(), size, end)
        if directory > MAX_DIRECTORY:
            yield f"its table of contents has {directory:,} bytes, and at most {MAX_DIRECTORY:,} are read"
        if start + directory != stop:  # which Python and torch would look for at different places
            yield f"its table of contents, of {directory:,} bytes, does not lie at byte {start:,} as it says"
        with zipfile.ZipFile(content) as archive:
            found = archive.infolist()
            if len(found) != entries:
                yield f"its table of contents has {len(found):,} entries, and says {entries:,}"
            yield from _of_entries(found, size)
            if bad := archive.testzip():  # torch does not compare these sums
                yield f"its entry {quoted(bad)} is damaged: its CRC-32 is not its own"
            for entry in found:
                if _is_pickle(entry):
                    _refuse_other_pickles(archive.read(entry), file)


def _of_entries(entries: list[zipfile.ZipInfo], size: int) -> Iterator[str]:
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            yield f"its entry {quoted(entry.filename)} is compressed or encrypted"
        if entry.filename != entry.orig_filename:  # by a NUL, or a second name, which newer Pythons prefer
            yield f"its entry {quoted(entry.orig_filename)} has another name, {quoted(entry.filename)}"
    if len({entry.filename.lower() for entry in entries}) < len(entries):  # as torch looks them up
        yield "it has two entries of one name"
    if (total := sum(entry.file_size for entry in entries)) > size:
        yield f"its entries take {total:,} bytes, and the file has {size:,}"
    pickles = [entry.file_size for entry in entries if _is_pickle(entry)]
    if len(pickles) != 1 or pickles[0] > MAX_PICKLE:
        found = f"{len(pickles)}" if len(pickles) != 1 else f"{pickles[0]:,}"
        yield f"it must have a data.pkl of at most {MAX_PICKLE:,} bytes; got {found}"


def _is_pickle(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.lower().rpartition("/")[2] == "data.pkl"


def _refuse_other_pickles(data: bytes, file: Path) -> None:
    """Refuse a pickle that builds more than state dicts hold, by its opcodes alone.

    Raises:
        CheckpointError: it calls something else, or holds a tuple beyond reason.
        ValueError: it is damaged.
    """
    # Of each object: what a tuple of it holds, 1 for what may be a key, and more for all else that can be hashed. Types
    # of storage are named in what a tensor refers to, and never called: that would take any number of bytes. A dict is
    # filled by opcodes, never made of pairs. What is called has a name, and what is referred to begins with one: of
    # anything else torch writes the whole into its error, be it a list of itself 40 times over.
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[object, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if name == "GLOBAL" and not _is_of_state_dicts(str(argument)):
            what = f"{str(file)!r} holds {quoted(argument)}, more than tensors and plain values, and is not unpickled"
            raise CheckpointError(what, hint="save module.state_dict() alone, best as .safetensors")
        if count >= MAX_OPCODES:
            raise ValueError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
        if isinstance(argument, int) and not -(2**63) <= argument < 2**64:  # as keys, all with one hash, without end
            raise ValueError("its pickle has an integer of more than 64 bits, which torch.save does not write")
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            taken = _TAKEN.get(name)
            if taken is None and not name.startswith(_ATOMS):
                raise ValueError(f"its pickle has the opcode {name}, which torch.save does not write")
            held = [] if taken is None else _take(stack, marks.pop() if taken < 0 else len(stack) - taken)
            if name.startswith("SETITEM") and any(key > 1 for key in held[::2]):
                raise ValueError("its pickle has a key that is neither a text nor a number")
            made = _made(name, argument, held)
            if made is not None:
                stack.append(made)


def _refuse_other_calls(called: int, given: int) -> None:
    if called == _STORAGE:
        raise ValueError("it makes storage of its own, which torch.save never does")
    if called == _DICT and given > 1:
        raise ValueError("it makes a dict of pairs, which torch.save never does")
    if called == _COUNTER and not isinstance(given, _Counts):
        raise ValueError("it counts what is no dict of counts")
    if called not in (_DICT, _COUNTER, _NAMED):
        raise ValueError("it calls what has no name")


def _made(name: str, argument: object, held: list[int]) -> int | None:
    """What an opcode leaves on the stack; None where that is the container below, or nothing."""
    if name == "REDUCE":
        _refuse_other_calls(*held)
    if name == "BINPERSID" and not isinstance(held[0], _Told):
        raise ValueError("it refers to something that no text begins")
    if name.startswith("TUPLE"):
        if (size := 1 + sum(max(each, 1) for each in held)) > MAX_IN_TUPLE:
            raise ValueError(f"it holds a tuple of more than {MAX_IN_TUPLE:,} values")
        if name == "TUPLE1" and isinstance(held[0], _Table):
            return _Counts(size)
        return _Told(size) if held and held[0] == _TEXT else size
    if name == "GLOBAL":
        of = str(argument)
        return _STORAGE if of.endswith("Storage") else _MADE.get(of, _NAMED)
    if name == "EMPTY_DICT":
        return _Table(1)
    if "UNICODE" in name or "STRING" in name:
        return _TEXT
    if name in ("REDUCE", "BINPERSID"):
        return 2
    return None if name in _TAKEN else 1


# How many objects an opcode takes from the stack, all since the last mark where it is -1. What it leaves follows; for
# SETITEM, APPEND and BUILD that is the container below.
_TAKEN = {
    "TUPLE": -1, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "SETITEM": 2, "SETITEMS": -1, "APPEND": 1, "APPENDS": -1,
    "REDUCE": 2, "BUILD": 1, "BINPERSID": 1, "STOP": 1, "PROTO": 0,
}  # fmt: skip
_STORAGE, _DICT, _NAMED, _TEXT, _COUNTER = 0, -1, -2, -3, -4
_MADE = {"collections OrderedDict": _DICT, "collections Counter": _COUNTER}


class _Table(int):
    """What a dict holds."""


class _Counts(int):
    """The size of a tuple of a dict alone."""


class _Told(int):
    """The size of a tuple that a text begins."""


_ATOMS = ("EMPTY_", "BIN", "SHORT_BIN", "LONG", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL")


def _take(stack: list[int], start: int) -> list[int]:
    if start < 0 or start > len(stack):
        raise ValueError("its pickle takes more than it holds")
    held = stack[start:]
    del stack[start:]
    return held


def _is_of_state_dicts(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    if module == "torch" and attribute.isidentifier():
        return attribute.endswith("Storage") or name in _CALLED or isinstance(getattr(torch, attribute, 0), torch.dtype)
    return name in _CALLED


def _directory(descriptor: int, size: int, end: bytes) -> tuple[int, int, int, int]:
    """What the archive's end says of its table of contents: entries, bytes, where it begins, and where it must stop.

    A large archive says it in a second, longer end, which stands before the first and a pointer to it.

    Raises:
        ValueError: the two ends contradict each other, or the second is not where it belongs.
    """
    entries, length, start = struct.unpack("<10xHLL2x", end)
    if not os.pread(descriptor, 20, max(size - 42, 0)).startswith(b"PK\6\7"):
        return entries, length, start, size - 22
    longer = os.pread(descriptor, 56, max(size - 98, 0))
    place = struct.unpack("<4sLQL", os.pread(descriptor, 20, size - 42))[2]
    if place != size - 98 or not longer.startswith(b"PK\6\6"):
        raise ValueError("its second end is not where it says")
    said = struct.unpack("<32xQQQ", longer)
    for short, long, none in zip((entries, length, start), said, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True):
        if short not in (long, none):
            raise ValueError(f"its two ends say {short:,} and {long:,}")
    return (*said, size - 98)
