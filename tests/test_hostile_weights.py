"""Weights files that are damaged, or made by an attacker: none is unpickled beyond tensors, none takes long."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from lrtrain.config.schema import Model
from lrtrain.errors import CheckpointError
from lrtrain.models.build import build_model
from lrtrain.models.weights import load_weights_file
from tests.conftest import Ended
from tests.hostile import assert_clear


class Code:
    """Unpickling this would run a command."""

    def __init__(self, canary: Path):
        self._canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._canary}",)


def _archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def _expanded(path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, path)


def _many_views(path: Path) -> None:
    one = torch.zeros(2000)
    torch.save({f"w{i}": one[i : i + 1000] for i in range(1000)}, path)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")


def _padded(path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes() + b"x" * 30)


def _deflated(path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    _archive(path, entries | {"w/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED)


def _long_pickle(path: Path) -> None:
    _archive(
        path, {"w/data.pkl": b"\x80\x02" + b"N0" * 2_100_000 + b"N.", "w/version": b"3\n", "w/byteorder": b"little"}
    )


def _giant_bytes(path: Path) -> None:
    code = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R."
    _archive(path, {"w/data.pkl": code, "w/version": b"3\n", "w/byteorder": b"little"})


def _lists_in_lists() -> bytes:
    """A list of [1] 2 to the 40 times, which whoever prints it never ends."""
    made = b"\x80\x02]q\x00K\x01a"
    for i in range(40):
        made += b"]q%c(h%ch%ce" % (i + 1, i, i)
    return made


def _pickled(code: bytes) -> Callable[[Path], object]:
    return lambda path: _archive(path, {"w/data.pkl": code, "w/version": b"3\n", "w/byteorder": b"little"})


def _parameter_with_attributes(path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.numel = 5  # type: ignore[method-assign,assignment]
    torch.save({"w": parameter}, path)


def _in_capitals(path: Path) -> None:
    """torch looks entries up without regard to case."""
    harmless, bomb = b"\x80\x02}.", b"\x80\x02cbuiltins\nbytearray\n\x8a\x04\0\0\0\x60\x85R."
    _archive(path, {"a/DATA.PKL": bomb, "a/data.pkl": harmless, "a/version": b"3\n", "a/byteorder": b"little"})


def _flipped_weight(path: Path) -> None:
    torch.save({"w": torch.arange(1000.0)}, path)
    data = path.read_bytes()
    at = data.index(torch.arange(1000.0).numpy().tobytes())
    path.write_bytes(data[: at + 9] + bytes([data[at + 9] ^ 1]) + data[at + 10 :])


def _short(path: Path) -> None:
    """An archive with one end; torch.save itself writes two, of whatever size."""
    torch.save({"w": torch.arange(3.0)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    _archive(path, entries)


def _two_directories(path: Path) -> None:
    """Python goes by where the last table of contents lies, torch by where it says that it lies: in the first part."""
    _giant_bytes(path)
    bomb = path.read_bytes()
    _short(path)
    path.write_bytes(bomb + path.read_bytes())


def _with_longer_end(path: Path, more: int = 0, short: bytes | None = None) -> None:
    """Give an archive the second end of a large one, which says so many bytes more; `short` is what the first says."""
    data = path.read_bytes()
    body, end = data[:-22], data[-22:]
    entries, length, start = struct.unpack("<10xHLL2x", end)
    longer = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, length + more, start)
    pointer = struct.pack("<4sLQL", b"PK\6\7", 0, len(body), 1)
    path.write_bytes(body + longer + pointer + (end if short is None else end[:8] + short + end[20:]))


def _two_ends(path: Path) -> None:
    _short(path)
    _with_longer_end(path, more=28_000_000)


def _long_directory(path: Path) -> None:
    _short(path)
    _with_longer_end(path, more=28_000_000, short=b"\xff" * 12)


def _misplaced_end(path: Path) -> None:
    _short(path)
    _with_longer_end(path)
    path.write_bytes(path.read_bytes().replace(b"PK\6\6", b"PK\6\0"))


def _tuples_of_one_hash(path: Path) -> None:
    """Python's hash of a tuple of two integers can be undone: then each key is compared with all before it."""
    every, first, second = (1 << 64) - 1, 11400714785074694791, 14029467366897019727
    undone = 12345678901234567 * pow(first, -1, 1 << 64) & every
    undone = (undone >> 31 | undone << 33) & every
    code, keys = b"\x80\x02}(", set()
    for a in range(2**10, 2**14):
        lane = a * second + 2870177450012600261 & every
        lane = (lane << 31 | lane >> 33) * first & every
        b = (undone - lane) * pow(second, -1, 1 << 64) & every
        b -= b >> 63 << 64
        if abs(b) < 2**61 - 1:
            keys.add(hash((a, b)))
            code += b"M" + struct.pack("<H", a) + b"\x8a\x08" + struct.pack("<q", b) + b"\x86N"
    assert len(keys) == 1
    _pickled(code + b"u.")(path)


WEIGHTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("K14 code in an archive", lambda p: torch.save({"w": Code(p.with_name("canary"))}, p), "is not unpickled"),
    ("K14 code in a bare pickle", lambda p: p.write_bytes(pickle.dumps(Code(p.with_name("canary")))), "no zip archive"),
    ("a legacy file", lambda p: torch.save({"w": torch.zeros(2)}, p, _use_new_zipfile_serialization=False), "bare pickle"),
    ("a tar file", _tar, "a tar file"),
    ("compressed entries", _deflated, "is compressed"),
    ("something after the end", _padded, "something follows it"),
    ("two tables of contents", _two_directories, "does not lie at byte"),
    ("two ends that contradict each other", _two_ends, "its two ends say"),
    ("a long table of contents", _long_directory, "bytes, and at most 16,000,000 are read"),
    ("a second end elsewhere", _misplaced_end, "its second end is not where it says"),
    ("an archive of something else", lambda p: _archive(p, {"a.txt": b"a"}), "must have a data.pkl"),
    ("a long pickle", _long_pickle, "a data.pkl of at most 4,000,000 bytes; got 4,200,004"),
    ("bytes without end", _giant_bytes, "w.pth"),
    ("a pickle in capitals", _in_capitals, "two entries of one name"),
    ("storage of its own", _pickled(b"\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x05\0\0\0\0\2\x85R."), "makes storage of its own"),
    ("storage of its own by memo", _pickled(b"\x80\x02ctorch\nFloatStorage\nq\0Nh\0K\7\x85R."), "makes storage of its own"),
    ("an object made anew", _pickled(b"\x80\x02ctorch.storage\nUntypedStorage\n)\x81."), "opcode NEWOBJ"),
    ("a bit of a weight", _flipped_weight, "its CRC-32 is not its own"),
    ("three gigabytes of nothing", _pickled(b"\x80\x02cbuiltins\nbytearray\n\x8a\x04\0\0\0\x60\x85R."), "'builtins bytearray'"),
    ("a codec", _pickled(b"\x80\x02c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0utf-8\x86R."), "'_codecs encode'"),
    ("a tuple of itself twice, 45 times", _pickled(b"\x80\x02}N" + b"q\0h\0\x86" * 45 + b"K\1s."), "a tuple of more than 10,000"),
    ("a tuple nested deep", _pickled(b"\x80\x02}N" + b"\x85" * 900_000 + b"K\1s."), "a tuple of more than 10,000"),
    ("many opcodes", _pickled(b"\x80\x02]" + b"Na" * 900_000 + b"."), "more than 1,000,000 opcodes"),
    ("lists nested deep", _pickled(b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b"."), "no state dict, but list"),
    ("keys that are tuples", _pickled(b"\x80\x02}N\x85K\1s."), "a key that is neither a text nor a number"),
    ("keys that are tuples, of one hash", _tuples_of_one_hash, "a key that is neither a text nor a number"),
    ("keys that are sizes", _pickled(b"\x80\x02}(ctorch\nSize\nK\1K\2\x86\x85RNu."), "a key that is neither a text"),
    ("a dict of pairs", _pickled(b"\x80\x02ccollections\nOrderedDict\n]K\1\x85K\2\x86a\x85R."), "makes a dict of pairs"),
    ("counts of what is no dict", _pickled(b"\x80\x02ccollections\nCounter\n]K\1a\x85R."), "counts what is no dict"),
    ("counts of two dicts", _pickled(b"\x80\x02ccollections\nCounter\n}}\x86R."), "counts what is no dict"),
    ("more taken than there is", _pickled(b"\x80\x02\x86."), "takes more than it holds"),
    ("a mark that is none", _pickled(b"\x80\x02t."), "w.pth"),
    ("what is not in the memo", _pickled(b"\x80\x02h\7."), "w.pth"),
    ("keys of one hash", _pickled(b"\x80\x02}(\x8a\x09" + (2**61 - 1 << 8).to_bytes(9, "little") + b"Nu."), "more than 64 bits"),
    ("an opcode of newer pickles", _pickled(b"\x80\x04\x8c\2os\x8c\6system\x93."), "opcode STACK_GLOBAL"),
    ("an instance", _pickled(b"\x80\x02(ios\nsystem\n."), "opcode INST"),
    ("no end", _pickled(b"\x80\x02}"), "w.pth"),
    ("no pickle", _pickled(b"hello"), "w.pth"),
    ("a call of lists in lists", _pickled(_lists_in_lists() + b")R."), "calls what has no name"),
    ("a reference to lists in lists", _pickled(_lists_in_lists() + b"\x85Q."), "that no text begins"),
    ("a parameter with attributes", _parameter_with_attributes, "is not unpickled"),
    ("one number shown a trillion times", _expanded, "more than are stored"),
    ("one tensor shown a thousand times", _many_views, "more than are stored"),
    ("a pipe", lambda p: os.mkfifo(p), "no weights file"),
    ("cut", lambda p: [_padded(p), p.write_bytes(p.read_bytes()[:-60])], "w.pth"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), [row[1:] for row in WEIGHTS], ids=[row[0] for row in WEIGHTS])
def test_a_pth_file_that_is_no_plain_archive_of_tensors_is_refused(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_weights_file(tmp_path / "w.pth")
    assert_clear(Ended(4, "", str(caught.value)), 4, words)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: struct.pack("<Q", 2 * 10**8) + d[8:], "its header would take"),
        (lambda d: d.replace(b'"F32"', b'"F99"', 1), "allowed: BOOL"),
        (lambda d: d.replace(b"[0,", b"[8,", 1), "w.safetensors"),
        (lambda d: d + b"x", "overlap or leave gaps|and .* are there"),
    ],
)
def test_a_safetensors_file_that_lies_is_refused(tmp_path: Path, edit: Callable[[bytes], bytes], words: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(edit(save({"a": torch.zeros(2), "b": torch.zeros(3)})))
    with pytest.raises(CheckpointError, match=words):
        load_weights_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_that_is_hardly_there_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(save({"a": torch.zeros(2)}))
    os.truncate(tmp_path / name, 2**36)
    with pytest.raises(CheckpointError, match="of its 68,719,476,736 bytes most were never written"):
        load_weights_file(tmp_path / name)


@pytest.mark.parametrize("name", ["a", "fc.weight"])
def test_tensors_of_another_network_are_refused_before_their_values_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    weights = build_model(Model(name="small_cnn"), 2, 1, 1, lambda *_: "here").module.state_dict()
    save_file({**weights, name: torch.zeros(2, 9)}, tmp_path / "w.safetensors")
    monkeypatch.setattr("lrtrain.models.weights.safe_open", None)
    with pytest.raises(CheckpointError, match=f"do not fit this network: (left over are|shapes differ:) {name}"):
        build_model(Model(name="small_cnn", weights=str(tmp_path / "w.safetensors")), 2, 1, 1, lambda *_: "here")


@pytest.mark.parametrize("shape", [[0, 2**47, 2**47], [2**47, 2**47, 0]])
def test_a_shape_without_numbers_that_torch_cannot_have_is_refused(tmp_path: Path, shape: list[int]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="'a' has the shape"):
        load_weights_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize("short", [None, b"\xff" * 12])
def test_a_second_end_is_read_where_it_is_and_the_first_is_enough(tmp_path: Path, short: bytes | None) -> None:
    _short(tmp_path / "w.pth")
    assert torch.equal(load_weights_file(tmp_path / "w.pth")[0]["w"], torch.arange(3.0))
    _with_longer_end(tmp_path / "w.pth", short=short)
    assert torch.equal(load_weights_file(tmp_path / "w.pth")[0]["w"], torch.arange(3.0))


def test_entries_may_be_kept_as_those_of_a_large_archive(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3.0)}, tmp_path / "small.pth")
    with zipfile.ZipFile(tmp_path / "small.pth") as small, zipfile.ZipFile(tmp_path / "w.pth", "w") as large:
        for name in small.namelist():
            with large.open(name, "w", force_zip64=True) as entry:
                entry.write(small.read(name))
    assert torch.equal(load_weights_file(tmp_path / "w.pth")[0]["w"], torch.arange(3.0))


def test_a_state_dict_is_read_by_dicts_own_methods(tmp_path: Path) -> None:
    state: Any = OrderedDict(w=torch.ones(2))
    state.get = state.keys = 5
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    found, _ = load_weights_file(tmp_path / "w.pth")
    assert torch.equal(found["w"], torch.ones(2))


def test_a_checkpoint_with_its_optimizer_is_still_read(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.half().state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 1,
        "best": 0.5,
        "args": None,
    }
    torch.save(content, tmp_path / "w.pth")
    assert load_weights_file(tmp_path / "w.pth")[0].keys() == model.state_dict().keys()


def test_prefixes_without_end_are_refused(tmp_path: Path) -> None:
    save_file({"module." * 300_000 + "x": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="a tensor's name has 2,100,001 characters; at most 1,000"):
        load_weights_file(tmp_path / "w.safetensors")


def test_an_entry_of_two_names_is_refused(tmp_path: Path) -> None:
    """Of a NUL, or with a second name for Unicode, torch and Python take different ones."""
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pth")
    entry = zipfile.ZipInfo("w/more")
    entry.filename = "w/more\0/x"
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        archive.writestr(entry, b"")
    with pytest.raises(CheckpointError, match=r"has another name, 'w/more'"):
        load_weights_file(tmp_path / "w.pth")


def test_dimensions_that_torch_does_not_compute_with_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).as_strided((1,) * 65, (1,) * 65)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="'w' has 65 dimensions; at most 16 are read"):
        load_weights_file(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "metadata",
    [
        {"input": "9" * 199},
        {"input": "9" * 10_000},
        {"mean": "1e999", "std": "1"},
        {"mean": "abc", "std": "abc"},
        {"mean": "", "std": ""},
        {"mean": "1e7 1 1", "std": "1 1 1"},
        {"mean": "0 0 0", "std": "1e-320 1 1"},
        {"mean": "0 0 0"},
    ],
)
def test_metadata_without_sense_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    from lrtrain.models.weights import normalisation_of

    with pytest.raises(CheckpointError, match="must name"):
        normalisation_of(metadata, "w.safetensors")


def test_weights_may_lie_behind_a_link(tmp_path: Path) -> None:
    """As the caches of download tools keep them."""
    save_file({"w": torch.zeros(2)}, tmp_path / "blob")
    (tmp_path / "w.safetensors").symlink_to("blob")
    assert load_weights_file(tmp_path / "w.safetensors")[0].keys() == {"w"}


@pytest.mark.parametrize(("channels", "named", "fits"), [(3, 2, False), (3, 3, True), (1, 3, True), (1, 2, False)])
def test_a_normalisation_of_other_channels_is_refused(tmp_path: Path, channels: int, named: int, fits: bool) -> None:
    numbers = " ".join(["0.5"] * named)
    weights = build_model(Model(name="small_cnn"), 2, channels, 1, lambda *_: "here").module.state_dict()
    save_file(weights, tmp_path / "w.safetensors", {"mean": numbers, "std": numbers})
    model = Model(name="small_cnn", weights=str(tmp_path / "w.safetensors"))
    if fits:
        assert build_model(model, 2, channels, 1, lambda *_: "here").mean == (0.5,) * channels
        return
    with pytest.raises(CheckpointError, match=f"a mean and a std of {named} channels; the images have {channels}"):
        build_model(model, 2, channels, 1, lambda *_: "here")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("bn.running_var", torch.ones(2).to(torch.float8_e4m3fn), "'bn.running_var' is of type 'F8_E4M3'"),
        ("bn.num_batches_tracked", torch.tensor(3, dtype=torch.uint32), "is of uint32, which is not read"),
        ("bn.num_batches_tracked", torch.tensor(3j), "is of complex64"),
        ("bn.num_batches_tracked", torch.tensor(1e30), "a count of batches that is none"),
        ("bn.num_batches_tracked", torch.tensor(2**63 - 1), "a count of batches that is none"),
        ("bn.num_batches_tracked", torch.tensor(2.7), "a count of batches that is none"),
        ("bn.running_var", -torch.ones(2), "a variance below 0"),
        ("bn.num_batches_tracked", torch.tensor(-1), "a count of batches below 0"),
    ],
)
def test_numbers_that_no_checkpoint_could_keep_are_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor, words: str
) -> None:
    save_file({name: tensor}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights_file(tmp_path / "w.safetensors")
    assert_clear(Ended(4, "", str(caught.value)), 4, words)


def test_a_count_may_have_become_a_float_on_its_way(tmp_path: Path) -> None:
    save_file({"bn.num_batches_tracked": torch.tensor(3.0)}, tmp_path / "w.safetensors")
    assert load_weights_file(tmp_path / "w.safetensors")[0]["bn.num_batches_tracked"] == 3
