"""How a refusal must look, whatever was wrong; and the command in this process, so that many can be tried."""

from __future__ import annotations

import re
import sys
import time

import pytest

from lrtrain import cli
from tests.conftest import Ended

CPU_SECONDS = 5  # of this process, not of the clock: what runs beside it does not count


class Typed:
    """Types commands: `lrtrain ARGS`, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *args: object) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["lrtrain", *map(str, args)])
        self._capfd.readouterr()
        began, code = time.process_time(), 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        shown = self._capfd.readouterr()
        assert time.process_time() - began < CPU_SECONDS, "refused too late"
        return Ended(code, shown.out, shown.err)


def assert_clear(ended: Ended, code: int, *words: str) -> None:
    """The exit code, and errors that name the value, what is allowed and the fix, each within 8 lines."""
    err = ended.err
    assert ended.code == code, err
    assert "Traceback" not in err
    assert "bug in lrtrain" not in err, err
    assert err.startswith("error: "), err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\ud800-\udfff]", err), repr(err)
    for problem in re.split(r"^(?=error: )", err, flags=re.MULTILINE)[1:]:
        lines = problem.splitlines()
        assert len(lines) <= 8, problem
        assert max(map(len, lines)) <= 520, problem
        assert re.search(r"^  hint \S", problem, re.MULTILINE) or "problems more" in problem, problem
    folded = " ".join(err.split())
    for word in words:
        assert word in folded, f"{word!r} is not in {err}"
