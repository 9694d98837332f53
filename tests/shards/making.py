"""Small shards made on the spot, and what opening them gives."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from lrtrain.config.schema import Dataset
from lrtrain.data import shard_index
from lrtrain.data.open import open_source
from lrtrain.errors import LrtrainError

REPOSITORY = Path(__file__).parents[2]


def where(*loc):
    return "cfg.yaml " + ".".join(map(str, loc))


def opened(seed=1, **dataset):
    return open_source(Dataset(name="webdataset", **dataset), seed, where)


def refused(kind, **dataset):
    """The problems that opening shards reports, as one text."""
    with pytest.raises(LrtrainError) as caught:
        opened(**{"val_fraction": None if "val" in dataset else 0.5, **dataset})
    assert type(caught.value) is kind
    assert all(problem.where for problem in caught.value.problems)
    return "\n".join(f"{problem.what} | {problem.hint}" for problem in caught.value.problems)


def png(value=0, size=(8, 8)):
    content = io.BytesIO()
    Image.new("RGB", size, value).save(content, "PNG")
    return content.getvalue()


def shard(path, members):
    """A tar file of (name, content) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def samples(*labels, start=0):
    """Members of a sample a label."""
    for i, label in enumerate(labels, start):
        yield f"{i:04}.png", png(i)
        yield f"{i:04}.cls", str(label)


def forbid_scans(monkeypatch):
    """Let a tar file that is read through be an error."""
    monkeypatch.setattr(shard_index, "scanned", None)


def cut(path, size):
    os.truncate(path, size)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
