"""What tests share: a command runner and small datasets made on the spot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import forked

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def variables_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run compiles in this process sets a variable, by which the tests that begin others would then find less."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # so that it is known what to put back
    monkeypatch.delenv("PYTHONSAFEPATH")


@pytest.fixture
def lrtrain(tmp_path: Path) -> Callable[..., Ended]:
    """Run the command in a process of its own, in an empty folder."""

    def run(*args: object, **env: str) -> Ended:
        ended = forked.run(args, tmp_path, forked.environment(**{"COLUMNS": "80", **env}))
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/ and val/ folders of 24 and 12 small photos in two classes that differ in colour."""
    import numpy as np
    from PIL import Image

    root = tmp_path / "photos"
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for name, channel in (("red", 0), ("blue", 2)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 120, (48, 40 + i, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


@pytest.fixture(scope="session")
def tiny_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ folders of 256 and 64 noisy JPEGs of 32 x 32 px in two classes that differ in colour."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("tiny_cifar10")
    noise = np.random.default_rng(0)
    for split, count in (("train", 128), ("test", 32)):
        for name, channel in (("blue", 2), ("red", 0)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 160, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 80
                Image.fromarray(pixels).save(folder / f"{i:03}.jpg")
    return root


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Ended]:
    """Run a program of scripts/ in a real process, in an empty folder."""

    def run(name: str, *args: object) -> Ended:
        ended = subprocess.run(
            [sys.executable, str(REPOSITORY / "scripts" / name), *map(str, args)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1200,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "170"},
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run
