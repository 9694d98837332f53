"""Folders of images for tests, and what opening them says."""

from __future__ import annotations

import resource
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from lrtrain.config.schema import Dataset
from lrtrain.data.build import make_pipeline
from lrtrain.data.open import open_source
from lrtrain.data.source import Source
from lrtrain.errors import LrtrainError


def where(*loc):
    return "cfg.yaml " + ".".join(map(str, loc))


def opened(seed=1, **dataset) -> Source:
    return open_source(Dataset(**dataset), seed, where)


def image(path, size=(8, 8), value=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def tree(root, counts, suffix=".png", size=(8, 8)):
    for name, count in counts.items():
        for i in range(count):
            image(root / name / f"{i}{suffix}", size, value=i)
    return root


def refused(kind, **dataset):
    """The problems that opening a dataset and making its pipeline reports, as one text."""
    section = Dataset(**dataset)
    with pytest.raises(LrtrainError) as caught:
        make_pipeline(open_source(section, 1, where), section, seed=1, where=where)
    assert type(caught.value) is kind
    assert all(problem.where for problem in caught.value.problems)
    return "\n".join(f"{problem.what} | {problem.hint}" for problem in caught.value.problems)


def noise(root, images, seed=1, size=(16, 16)):
    """Noise of `size`, height and width, in the classes a and b: `images` says how many of each a split has."""
    rng = np.random.default_rng(seed)
    for split, n in images.items():
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


def nobodys_home(monkeypatch):
    """Let the process be of a user who has no home, as with `docker run -u`."""

    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "LRTRAIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@contextmanager
def files_of_at_most(size):
    """What a full disk does: a write fails on the way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write(path, content=b"x"):
    """A file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
