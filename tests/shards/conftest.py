"""Shards to train on and to evaluate on, and where their indexes are kept."""

from __future__ import annotations

import pytest

from tests.shards.making import samples, shard


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of the indexes."""
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept" / "shards"


@pytest.fixture
def two(tmp_path):
    """A shard to train on and one to evaluate on, of two classes."""
    train = shard(tmp_path / "train.tar", samples(0, 1, 0, 1))
    return {"train": str(train), "val": str(shard(tmp_path / "val.tar", samples(1, 0)))}
