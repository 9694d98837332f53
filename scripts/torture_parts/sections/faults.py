"""What the machine may refuse: a full disk, a broken one, a file too large, a disk that became read-only."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from functools import partial

from torture_parts.case import Case, numbered, spread
from torture_parts.lab import Lab
from torture_parts.reference import CAN_WAIT
from torture_parts.sections.kills import COMMIT
from torture_parts.trial import Trial, first_with

CHANGES = ("create", "write", "mkdir", "rename", "exchange")
# Error -> at what it is tried, and whether it stays, as a full disk does.
ERRORS: dict[str, tuple[tuple[str, ...], bool]] = {
    "ENOSPC": ((*CHANGES, "fsync"), True),
    "EIO": ((*CHANGES, "fsync", "unlink", "rmdir"), False),
    "EFBIG": (("write",), False),
    "EROFS": (("create", "mkdir", "rename", "exchange"), True),
}
SAVED, BEFORE = 20, 10  # the save that all of this is done to moves best.json and prunes
EXIT = 5

Named = list[tuple[str, Callable[[Trial], None]]]


def faults(lab: Lab) -> list[Case]:
    """Each error at each change of a save, at the log's and at those with which a run begins."""
    seen = lab.whole().seen
    begin = first_with(seen, f"mkdir checkpoints/.tmp-{SAVED:08d}") - 1
    end = begin + first_with(seen[begin:], "rename .status.json.tmp")
    log = [n for n in range(end + 1, len(seen)) if seen[n].startswith("write ")][:2]
    start = list(range(first_with(seen, COMMIT) + 1))
    named: Named = []
    for error, (kinds, stays) in ERRORS.items():
        hit = [n for n in (*range(begin, end + 1), *log, *start) if seen[n].split()[0] in kinds]
        for n in spread(hit, 2) if lab.quick else hit:
            named.append((f"{error} at {n}: {seen[n]}", partial(_fault, n, error, stays)))
    if CAN_WAIT:
        chosen = [n for n in range(begin, end) if seen[n].startswith(("create", "write"))]
        for n in spread(chosen, 1 if lab.quick else 8):
            named.append((f"ENOSPC for a moment at {n}: {seen[n]}", partial(_waits, n)))
    return numbered("faults", named)


def _fault(n: int, error: str, stays: bool, trial: Trial) -> None:
    seen = trial.lab.whole().seen
    trial.of("base")
    answer = trial.fit(watch=True, fail_at=n, error=getattr(errno, error), stays=stays)
    trial.found.counts["faults"] += 1
    if not answer.hit:
        trial.problem(f"change {n} did not happen")
    if answer.code == 0 and _can_do_without(seen[n]):
        trial.finishes()  # which sweeps what could not be deleted
        return
    trial.ends(answer, EXIT)
    trial.says("error: .*" + ("at +run" if n else "run"))
    if n <= first_with(seen, COMMIT):
        return
    trial.still_valid(BEFORE)
    trial.says(r"step-\d{8}|untouched|nothing is lost")
    if not stays:
        status = json.loads((trial.run / "status.json").read_text())
        if (status["state"], status["exit_code"]) != ("failed", EXIT) and "status" not in seen[n]:
            trial.problem(f"status.json says {status['state']} and {status['exit_code']}")
    trial.finishes()


def _can_do_without(words: str) -> bool:
    """Whether it is deleting what is no longer kept, or making a folder, which is tried again."""
    return words.startswith(("unlink", "rmdir", "rename checkpoints/step-", "mkdir"))


def _waits(n: int, trial: Trial) -> None:
    trial.of("waits for room")
    answer = trial.fit(watch=True, fail_at=n, error=errno.ENOSPC)
    trial.found.counts["faults"] += 1
    if trial.ends(answer):
        trial.same()


def signals(lab: Lab) -> list[Case]:
    """Each signal that asks to stop, at a step and in evaluation: saved at once, nothing lost."""
    named: Named = []
    codes = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129, "SIGUSR1": 75}
    for name, code in list(codes.items())[: 1 if lab.quick else None]:
        for k in (17,) if lab.quick else (1, 17, 20, 41, 59):
            named.append((f"{name} at step {k}", partial(_signal, name, code, {"at_step": k}, k)))
        for j, step in ((7, 40),) if lab.quick else ((1, 20), (6, 40), (11, 60)):
            named.append((f"{name} in evaluation, batch {j}", partial(_signal, name, code, {"at_evaluation": j}, step)))
        group = f"group:{name}"
        named.append((f"{name} to the workers too", partial(_signal, group, code, {"at_step": 23, "workers": 2}, 23)))
        named.append((f"{name} twice", partial(_twice, name, code)))
    named.append(("SIGKILL to a data worker", _worker_killed))
    return numbered("signals", named)


def _signal(name: str, code: int, how: dict[str, int], step: int, trial: Trial) -> None:
    trial.of("base")
    answer = trial.fit(act=name, **how)
    trial.found.counts["signals"] += 1
    trial.ends(answer, code)
    trial.still_valid(step)
    status = json.loads((trial.run / "status.json").read_text())
    if (status["state"], status["exit_code"], status["step"]) != ("stopped", code, step):
        trial.problem(f"status.json says {status['state']}, {status['exit_code']}, step {status['step']}")
    trial.finishes()


def _twice(name: str, code: int, trial: Trial) -> None:
    """It ends at once; what is lost was not saved before."""
    trial.of("base")
    trial.ends(trial.fit(act=f"{name},{name}", at_step=28), code)
    trial.found.counts["signals"] += 2
    trial.still_valid(20)
    trial.finishes()


def _worker_killed(trial: Trial) -> None:
    trial.of("base")
    trial.ends(trial.fit(act="worker", at_step=25, workers=2), EXIT)
    trial.says("data worker")
    trial.still_valid(20)
    trial.finishes()
