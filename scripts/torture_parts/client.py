"""The other end of a zygote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from torture_parts.ask import Answer, Ask, read_answer

SCRIPTS = Path(__file__).resolve().parents[1]
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Zygote:
    """A process that forks runs, one at a time."""

    def __init__(self, number: int):
        """Start it; importing torch takes a second or two, and is waited for at the first `ask`."""
        path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        fixed = dict.fromkeys(ONE_THREAD, "1") | {"PYTHONHASHSEED": str(number), "TZ": "UTC", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture_parts.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **fixed},
        )
        self._ready = False

    def ask(self, ask: Ask) -> Answer:
        """Run and wait."""
        if not self._ready:
            self._ready = self._line() == "ready"
        assert self._process.stdin is not None
        self._process.stdin.write(ask.dump() + "\n")
        self._process.stdin.flush()
        return read_answer(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the zygote has ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
