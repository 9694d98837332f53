"""A shard is read through once, and never believed when it changed or its index is damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lrtrain.data import shard_index
from lrtrain.errors import DataError
from tests.folders import nobodys_home
from tests.shards.making import REPOSITORY, forbid_scans, opened, samples, shard

pytest.importorskip("webdataset")


def test_the_second_opening_reads_no_tar_file(two, monkeypatch):
    first = opened(**two)
    with monkeypatch.context() as patch:
        forbid_scans(patch)
        second = opened(**two)
    assert second.counts() == first.counts()
    assert [second.train.path(i) for i in range(4)] == [first.train.path(i) for i in range(4)]
    assert all(torch.equal(first.train.read(i), second.train.read(i)) for i in range(4))


def test_a_shard_that_changed_is_indexed_again_and_the_others_are_not(two, monkeypatch):
    opened(**two)
    shard(Path(two["val"]), samples(0, 1, 0))
    asked = []
    scan = shard_index.scanned
    monkeypatch.setattr(shard_index, "scanned", lambda path, bar: asked.append(path) or scan(path, bar))
    assert len(opened(**two).val) == 3
    assert asked == [two["val"]]


def test_a_shard_of_as_many_bytes_that_was_given_the_old_time_is_indexed_again(two):
    before = opened(**two).val.labels.tolist()
    found = os.stat(two["val"])
    shard(Path(two["val"]), samples(0, 1))
    os.utime(two["val"], ns=(found.st_atime_ns, found.st_mtime_ns))
    assert os.stat(two["val"]).st_size == found.st_size
    assert opened(**two).val.labels.tolist() == before[::-1] != before


def test_a_damaged_index_is_made_again(two, kept):
    expected = opened(**two).counts()
    for i, file in enumerate(sorted(kept.glob("*.npz"))):
        content = bytearray(file.read_bytes())
        file.write_bytes(content[:100] if i else bytes(b ^ 1 for b in content))
    assert opened(**two).counts() == expected
    for file in kept.glob("*.npz"):
        file.write_bytes(b"")
    assert opened(**two).counts() == expected


def test_an_index_with_a_pickle_in_it_is_not_opened_but_made_again(two, kept):
    expected = opened(**two).counts()
    for file in kept.glob("*.npz"):
        np.savez(file, stat=np.array([{}], dtype=object))
    assert opened(**two).counts() == expected


def test_an_index_of_another_file_is_made_again(two, kept):
    expected = opened(**two).counts()
    train, val = (shard_index.index_file(two[split]) for split in ("train", "val"))
    train.write_bytes(val.read_bytes())
    os.utime(two["val"], ns=(1, 1))
    assert opened(**two).counts() == expected


def test_an_index_that_cannot_be_kept_is_noted(two, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "file"))
    (note,) = opened(**two).notes
    assert f"is made anew at every start, since {tmp_path}/file/shards cannot be written" in note


def test_without_a_home_no_index_is_kept_which_is_noted(two, monkeypatch):
    nobodys_home(monkeypatch)
    source = opened(**two)
    assert len(source.train) == 4
    assert "is made anew at every start: the cache's folder is not known" in source.notes[0]


def test_a_shard_that_changes_while_it_is_used_is_found_out(two):
    source = opened(**two)
    source.train.read(0)
    stamp = source.train.stamp(0)
    assert stamp != source.train.stamp(1)
    with open(two["train"], "r+b") as file:
        file.write(b"x")
    os.utime(two["train"], ns=(1, 1))
    for use in (source.train.read, source.train.stamp):
        with pytest.raises(DataError, match="changed after it was indexed"):
            use(0)
    os.remove(two["val"])
    for use in (source.val.read, source.val.stamp):
        with pytest.raises(DataError, match="cannot read the shard"):
            use(0)


OPEN = """
import sys, time
from lrtrain.config.schema import Dataset
from lrtrain.data import shard_index
from lrtrain.data.open import open_source
scan = shard_index.scanned
def scanned(path, bar):
    print("scans", flush=True)
    time.sleep(float(sys.argv[3]))
    return scan(path, bar)
shard_index.scanned = scanned
source = open_source(Dataset(name="webdataset", train=sys.argv[1], val=sys.argv[2]), 1, lambda *loc: "here")
print(len(source.train), len(source.val), flush=True)
"""


def opening(two, seconds):
    command = [sys.executable, "-c", OPEN, two["train"], two["val"], str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


def test_one_process_indexes_while_others_wait(two):
    both = [opening(two, 1) for _ in range(2)]
    texts = [process.communicate(timeout=100)[0] for process in both]
    assert sum(text.count("scans") for text in texts) == 2  # each shard once
    assert all(text.endswith("4 2\n") for text in texts)


def test_an_indexing_that_was_killed_leaves_nothing_in_the_way(two, kept):
    process = opening(two, 60)
    assert process.stdout.readline() == "scans\n"
    (kept / f"{'0a' * 16}.partial").write_bytes(b"x")
    others = kept / "train-1.tar.partial"  # that are being downloaded to there
    others.write_bytes(b"x")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(opened(**two).train) == 4
    assert list(kept.glob("*.partial")) == [others]
