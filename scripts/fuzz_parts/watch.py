"""Cases in a process of their own: one that hangs or dies is a finding, and the next process goes on after it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

SCRIPTS = Path(__file__).resolve().parents[1]
HANG_SECONDS = 30  # without a word, on a machine that others use too; computing is limited in the process itself
START_SECONDS = 120


@dataclass(frozen=True)
class Finding:
    """A case that neither loaded nor was refused as it should."""

    number: int
    what: str
    kept: str


@dataclass
class Outcome:
    """What became of one kind's cases."""

    cases: int = 0
    loaded: int = 0
    refused: int = 0
    slowest: float = 0.0
    growth_mb: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def watched(kind: str, seed: int, numbers: range, work: Path, keep: Path) -> Outcome:
    """Try the cases with these numbers."""
    outcome = Outcome()
    start = numbers.start
    with tqdm(total=len(numbers), desc=kind, leave=False, disable=None, dynamic_ncols=True) as bar:
        while start < numbers.stop:
            start = _one_process(kind, seed, range(start, numbers.stop), work, keep, outcome, bar)
    return outcome


def _one_process(
    kind: str, seed: int, numbers: range, work: Path, keep: Path, outcome: Outcome, bar: tqdm[None]
) -> int:
    """Try cases until the end, a hang or a death; the number to go on from."""
    folder = work / f"{kind}-{numbers.start}"
    folder.mkdir()
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "fuzz_parts.child", kind, str(seed), str(numbers.start), str(numbers.stop), "case"],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            cwd=folder,
            bufsize=0,
        )
    assert process.stdout is not None
    at, done, why = numbers.start, numbers.start, ""
    while line := _line(process.stdout, HANG_SECONDS if done > numbers.start else START_SECONDS):
        if line == "hang":
            why = f"no answer within {HANG_SECONDS} s"
            break
        said = json.loads(line)
        at = said["number"]
        if "outcome" in said:
            done = at + 1
            bar.update()
            _count(outcome, said, kind, seed, folder, keep)
    if why:
        process.kill()
    process.stdout.close()
    code = process.wait()
    if done < numbers.stop:
        last = (folder / "stderr").read_bytes()[-300:].decode(errors="replace").strip().splitlines()[-1:]
        what = why or f"the process died with {code}: {' '.join(last)}"
        outcome.findings.append(Finding(at, what, _kept(kind, seed, at, folder, keep)))
        outcome.cases += 1
    shutil.rmtree(folder)
    return numbers.stop if done >= numbers.stop else at + 1


def _count(outcome: Outcome, said: dict[str, object], kind: str, seed: int, folder: Path, keep: Path) -> None:
    outcome.cases += 1
    outcome.loaded += said["outcome"] == "loaded"
    outcome.refused += said["outcome"] == "refused"
    outcome.slowest = max(outcome.slowest, float(str(said["seconds"])))
    outcome.growth_mb = max(outcome.growth_mb, float(str(said["growth_mb"])))
    if said["wrong"]:
        number = int(str(said["number"]))
        outcome.findings.append(Finding(number, str(said["wrong"]), _kept(kind, seed, number, folder, keep)))


def _line(stream: IO[bytes], seconds: float) -> str:
    """The next line; `hang` where none comes in time, nothing at the end."""
    if not select.select([stream], [], [], seconds)[0]:
        return "hang"
    return stream.readline().decode()


def _kept(kind: str, seed: int, number: int, folder: Path, keep: Path) -> str:
    """Copy a case's input to where it stays."""
    keep.mkdir(parents=True, exist_ok=True)
    target = keep / f"{kind}-{seed}-{number}"
    case = next((path for path in (folder / f"case-{number}", folder / "case") if path.exists()), folder)
    if case.is_dir():
        shutil.copytree(case, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy(case, target)
    return str(target)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
