"""Try cases in this process and say what became of each: python -m fuzz_parts.child KIND SEED START STOP CASE."""

from __future__ import annotations

import importlib
import json
import random
import resource
import shutil
import sys
import time
import unicodedata
import warnings
from pathlib import Path
from typing import Any

from lrtrain.errors import LrtrainError

SECONDS, MEGABYTES = 2.0, 512.0


def main() -> None:
    """Make each case's input at CASE, read it, and print a line before and after."""
    kind, seed, start, stop, case = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    warnings.simplefilter("ignore")
    tries: Any = importlib.import_module(f"fuzz_parts.{kind}").Tries()
    before = _peak_mb()
    for number in range(start, stop):
        _say(number=number)
        tries.make(random.Random(f"{kind} {seed} {number}"), case)
        began, outcome, wrong = time.process_time(), "loaded", ""
        try:
            tries.read(case)
        except LrtrainError as error:
            outcome, wrong = "refused", _unclear(error)
        except BaseException as error:
            outcome, wrong = "wrong", f"{type(error).__name__}: {error}"[:300]
        seconds, growth = time.process_time() - began, _peak_mb() - before
        if seconds > SECONDS:
            wrong = f"took {seconds:.1f} s"
        if growth > MEGABYTES:
            wrong, before = f"took {growth:,.0f} MB", _peak_mb()
        if wrong:  # the next case is made before this one is looked at
            (shutil.copytree if case.is_dir() else shutil.copy)(case, f"{case}-{number}")
        _say(number=number, outcome=outcome, seconds=seconds, growth_mb=growth, wrong=wrong)


def _unclear(error: LrtrainError) -> str:
    """What is wrong with the message itself."""
    text = str(error)
    odd = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    if not text.startswith("error: ") or odd:
        return f"unclear: {text[:300]!r}"
    return f"{len(text):,} characters" if len(text) > 100_000 else ""


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there counts from before the command replaced the process that began it
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
