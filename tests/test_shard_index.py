"""An index of a shard is used where it fits together, and made again where it does not."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from lrtrain.data import shard_index
from lrtrain.data.shard_index import index_file, indexed

tariterators = pytest.importorskip("webdataset.tariterators")


@pytest.fixture
def shard(tmp_path, monkeypatch):
    """A shard of three samples, two classes."""
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    return written(
        tmp_path / "a.tar",
        {f"{i}.{end}": text for i, label in enumerate("xyx") for end, text in (("png", "p" * 9), ("cls", label))},
    )


def written(path, members):
    with tarfile.open(path, "w") as tar:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return str(path)


def arrays_of(file):
    with np.load(file) as held:
        return dict(held)


def told(found):
    """What an index says, to compare."""
    return {
        name: (value.content.tolist(), value.ends.tolist())
        if isinstance(value, shard_index.Texts)
        else value.tolist()
        if isinstance(value, np.ndarray)
        else value
        for name, value in vars(found).items()
    }


CHANGES = {
    "offsets cut": {"offsets": lambda a: a[:-1]},
    "offsets in two dimensions": {"offsets": lambda a: a[None]},
    "offsets below 0": {"offsets": lambda a: -a - 1},
    "offsets beyond the shard": {"offsets": lambda a: a + 2**40},
    "sizes below 0": {"sizes": lambda a: a - 1000},
    "sizes beyond the shard": {"sizes": lambda a: a + (2**63 - 100)},
    "no class of that number": {"label_of": lambda a: a + 2},
    "a class below 0": {"label_of": lambda a: a - 1},
    "classes cut": {"label_of": lambda a: a[:1]},
    "names that end before they begin": {"member_ends": lambda a: a[::-1]},
    "names that end beyond": {"member_ends": lambda a: a + 1},
    "classes that end before they begin": {"label_ends": lambda a: a[::-1]},
    "no names": {"members": lambda a: a[:0]},
    "nothing": dict.fromkeys(("members", "member_ends", "offsets", "sizes", "label_of"), lambda a: a[:0]),
    "no classes": dict.fromkeys(("labels", "label_ends"), lambda a: a[:0]),
    "fractions": {"offsets": lambda a: a.astype(float)},
    "a fraction passed over": {"stat": lambda a: a.astype(float)},
    "wide characters": {"members": lambda a: a.astype(np.int64)},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_an_index_that_does_not_fit_together_is_made_again(shard, changes):
    expected = told(indexed([shard])[0][shard])
    file = index_file(shard)
    arrays = arrays_of(file)
    np.savez(file, **{name: changes.get(name, lambda a: a)(array) for name, array in arrays.items()})
    assert told(indexed([shard])[0][shard]) == expected
    assert all(np.array_equal(array, arrays[name]) for name, array in arrays_of(file).items())


def test_a_whole_index_is_used(shard, monkeypatch):
    expected = told(indexed([shard])[0][shard])
    monkeypatch.setattr(shard_index, "scanned", None)
    assert told(indexed([shard])[0][shard]) == expected


def test_who_may_write_in_a_shared_folder_may_keep_indices(shard):
    kept = Path(index_file(shard)).parent
    kept.parent.mkdir()
    kept.parent.chmod(0o777)
    before = os.umask(0o022)
    try:
        indexed([shard])
    finally:
        os.umask(before)
    assert kept.stat().st_mode & 0o777 == 0o777
    assert (kept / "index.lock").stat().st_mode & 0o777 == 0o666


def test_a_compressed_index_is_made_again_before_memory_is_taken_for_it(shard):
    expected = told(indexed([shard])[0][shard])
    file = index_file(shard)
    np.savez_compressed(file, **{**arrays_of(file), "offsets": np.zeros(10_000_000, np.int64)})
    tracemalloc.start()
    try:
        assert told(indexed([shard])[0][shard]) == expected
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_a_pipe_in_place_of_an_index_is_replaced(shard):
    expected = told(indexed([shard])[0][shard])
    file = index_file(shard)
    file.unlink()
    os.mkfifo(file)
    assert told(indexed([shard])[0][shard]) == expected
    assert Path(file).is_file()


@pytest.mark.parametrize("kind", ["old", "pax"])
def test_the_map_of_a_sparse_member_is_not_read(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    member, more = tarfile.TarInfo("a.png"), (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 20_000
    if kind == "old":
        member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        header[482] = 1  # its map goes on behind it
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        more += bytes(512)
    else:
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        more = b"%d\n" % 2_000_000 + b"0\n" * 4_000_000
        more += bytes(-len(more) % 512)
        member.size = len(more)
        header = member.tobuf(tarfile.PAX_FORMAT)
    (tmp_path / "b.tar").write_bytes(header + more + bytes(1024))
    tracemalloc.start()
    found, problems, _ = indexed([str(tmp_path / "b.tar")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found
    assert [p.what for p in problems] == [f"{tmp_path / 'b.tar'}:a.png is sparse"]
    assert peak < 2_000_000


def test_a_label_given_twice_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    text = '{"label": 1, "more": {"cls": 1, "cls": 2}, "label": 2}'
    found, problems, _ = indexed([written(tmp_path / "a.tar", {"1.png": "p", "1.json": text})])
    assert not found
    assert ".json cannot be read: it has `label` twice" in problems[0].what
    text = text.replace('"label": 1, ', "")
    found, problems, _ = indexed([written(tmp_path / "b.tar", {"1.png": "p", "1.json": text})])
    assert (len(found), problems) == (1, [])


def test_half_a_character_is_no_label(tmp_path, monkeypatch):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    path = written(tmp_path / "a.tar", {"1.png": "p", "1.json": '{"label": "\\ud800"}'})
    found, problems, _ = indexed([path])
    assert not found
    assert "sample '1' in" in problems[0].what
    assert ".json cannot be read: " in problems[0].what


@pytest.mark.parametrize(
    ("name", "words"),
    [("n" * 5_000 + ".png", "5,004 characters, 0 `/`"), ("a/" * 2_000 + "1.png", "4,005 characters, 2,000 `/`")],
)
def test_a_name_that_is_no_path_is_refused_at_once(tmp_path, monkeypatch, name, words):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    path = written(tmp_path / "a.tar", {"1.png": "p", "1.cls": "x", name: "p"})
    with patch("webdataset.tariterators.base_plus_ext", wraps=tariterators.base_plus_ext) as parted:
        found, problems, _ = indexed([path])
    assert not found
    assert [words in problem.what and len(problem.what) < 400 for problem in problems] == [True]
    assert name not in [call.args[0] for call in parted.call_args_list]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.REGTYPE])
def test_a_name_that_thousands_of_members_share_is_not_kept_for_each(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    one = tarfile.TarInfo("1.png")
    one.type = kind
    names = tarfile.TarInfo.create_pax_global_header({"path": "n" * 4_000 + ".png"})
    (tmp_path / "a.tar").write_bytes(names + one.tobuf() * 20_000 + bytes(1024))
    tracemalloc.start()
    found, problems, _ = indexed([str(tmp_path / "a.tar")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found
    assert 1_000 < len(problems) < 1_010
    assert "no more members are looked at" in problems[-1].what
    assert peak < 20_000_000


def pax_block(content):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    "content",
    [
        b"1" * 2**20,
        b"004 " * 2**18,
        b"9 a=\n",
        b"7 ab=c",
        b"6 =bc\n",
        b"6 abc\n",
        b"5 a=\n-",
        b"\n",
        b"12 a=" + b"7" * 257,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_fields_that_are_none_are_refused_before_tarfile_looks_for_some_in_them(tmp_path, monkeypatch, content):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    one = tarfile.TarInfo("1.png").tobuf()
    (tmp_path / "a.tar").write_bytes(pax_block(content) + one + bytes(1024))
    with patch("tarfile.TarInfo._proc_pax", side_effect=AssertionError):
        found, problems, _ = indexed([str(tmp_path / "a.tar")])
    assert not found
    assert [p.what for p in problems] == [f"{tmp_path / 'a.tar'} has a header of further fields that is damaged"]


def test_what_writers_put_into_fields_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    fields = {
        "mtime": "1700000000.123456789",
        "comment": "é = 1\n2" + "9" * 255,
        "SCHILY.xattr.user.a": "12 x=\n" * 9,
        "e": "",
    }
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as tar:
        for name, content in ((f"{'é' * 90}.png", b"p"), (f"{'é' * 90}.cls", b"1")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.pax_headers = len(content), fields
            tar.addfile(entry, io.BytesIO(content))
    found, problems, _ = indexed([str(tmp_path / "a.tar")])
    assert (len(found), problems) == (1, [])
