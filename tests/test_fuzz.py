"""A short run of scripts/fuzz, and that it finds what it looks for."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz_parts import watch
from fuzz_parts.damage import damaged
from tests.conftest import Ended


def test_a_few_hundred_of_each_kind_load_or_are_refused(script: Callable[..., Ended], tmp_path: Path) -> None:
    ended = script("fuzz", "--yaml", 250, "--checkpoints", 150, "--images", 200, "--seed", 7)
    assert ended.code == 0, ended.out + ended.err
    assert "nothing found" in ended.out
    assert not (tmp_path / "fuzz-findings").exists()


STUB = """
import os, sys, time
from lrtrain.errors import ConfigError
class Tries:
    number = int(sys.argv[3]) - 1
    def make(self, noise, case):
        case.write_text(str(noise.random()))
        self.number += 1
    def read(self, case):
        match self.number:
            case 1: raise ConfigError("no", hint="yes")
            case 2: raise KeyError("x")
            case 3: os.abort()
            case 5: time.sleep(600)
            case 7:
                began = time.process_time()
                while time.process_time() < began + 2.1: pass
            case 8: self.kept = bytearray(os.urandom(1)) * 700_000_000
"""


def test_a_traceback_a_crash_a_hang_and_greed_are_found_and_attributed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    real = watch._environment()
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('fuzz_parts.stub', {str(tmp_path / 'stub.py')!r})\n"
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
        "sys.modules['fuzz_parts.stub'] = module\n"
    )
    path = f"{tmp_path}:{real['PYTHONPATH']}"
    monkeypatch.setattr(watch, "_environment", lambda: {**real, "PYTHONPATH": path})
    monkeypatch.setattr(watch, "HANG_SECONDS", 10)
    outcome = watch.watched("stub", 0, range(10), tmp_path, tmp_path / "kept")
    assert [finding.number for finding in outcome.findings] == [2, 3, 5, 7, 8]
    for finding, words in zip(
        outcome.findings, ("KeyError", "died with -6", "no answer", "took 2.", "MB"), strict=True
    ):
        assert words in finding.what
        assert Path(finding.kept).exists()
    assert (outcome.cases, outcome.refused) == (10, 1)


def test_damage_follows_from_the_seed() -> None:
    data = bytes(range(200))
    assert damaged(data, random.Random(3), data) == damaged(data, random.Random(3), data)
    assert len({damaged(data, random.Random(i), data) for i in range(50)}) > 40
