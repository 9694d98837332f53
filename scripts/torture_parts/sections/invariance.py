"""What must not matter: workers and how they start, ranks, a range test before, the order of folders, the process."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from torture_parts.case import Case, numbered
from torture_parts.lab import Lab
from torture_parts.reference import STEPS
from torture_parts.trial import KILLED, Trial

RANGE_STEPS = 25


def invariance(lab: Lab) -> list[Case]:
    """Batches by their bytes; whole runs by theirs."""
    starts = [("fork", 1), ("fork", 2), ("spawn", 1)] if lab.quick else _STARTS
    named: list[tuple[str, Callable[[Trial], None]]] = [
        (f"batches of {workers} workers that {start}", partial(_batches, start, workers)) for start, workers in starts
    ]
    named += [(f"batches of {ranks} ranks together", partial(_ranks, ranks)) for ranks in (2, 3)]
    named += [
        ("range-test, then fit in the same process", _range_test),
        ("range-test killed, then fit", _range_test_killed),
        ("the same seed in another process", _again),
        ("another seed", _another_seed),
        ("folders listed in another order", _strange_folders),
    ]
    return numbered("invariance", named)


_STARTS = [
    (start, workers)
    for start in ("fork", "spawn", "forkserver")
    for workers in (0, 1, 2, 3)
    if workers or start == "fork"
]


def _answer(trial: Trial, function: str, how: dict[str, Any], **arguments: Any) -> list[str]:
    arguments |= {"config": "c.yaml", "steps": STEPS}
    answer = trial.ask(function=f"torture_parts.inside:{function}", arguments=arguments, **how)
    if not trial.ends(answer):
        return []
    found: list[str] = json.loads((trial.folder / "answer.json").read_text())
    return found


def _batches(start: str, workers: int, trial: Trial) -> None:
    trial.of("base", {"cache": "off"})
    wanted = _answer(trial, "batch_hashes", {}, workers=0)
    got = _answer(trial, "batch_hashes", {"start_method": start}, workers=workers)
    _same(trial, wanted, got)


def _ranks(ranks: int, trial: Trial) -> None:
    trial.of("base")
    wanted = _answer(trial, "batch_hashes", {}, workers=0)[:STEPS]
    _same(trial, wanted, _answer(trial, "rank_hashes", {}, ranks=ranks))


def _same(trial: Trial, wanted: list[str], got: list[str]) -> None:
    trial.found.counts["batches compared"] += len(wanted)
    different = [i for i, (one, other) in enumerate(zip(wanted, got, strict=False)) if one != other]
    if different or len(wanted) != len(got) or not wanted:
        trial.problem(f"{len(different)} of {len(wanted)} batches differ, first {different[:1]}; there are {len(got)}")


def _range_command() -> list[str]:
    return ["range-test", "c.yaml", "--out", "range", "--steps", str(RANGE_STEPS)]


def _range_test(trial: Trial) -> None:
    trial.of("base")
    if trial.ends(trial.fit(_range_command())):
        trial.same()
    state = json.loads((trial.folder / "range" / "range-test.json").read_text())["state_sha256"]
    if state["before"] != state["after"]:
        trial.problem("the range test changed the state")


def _range_test_killed(trial: Trial) -> None:
    trial.of("base")
    answer = trial.fit(_range_command(), at_step=RANGE_STEPS // 2)
    if answer.code != KILLED or trial.run.exists():
        trial.problem(f"the range test was to be killed, and ended with {answer.code}")
    trial.finishes(resume=False)


def _again(trial: Trial) -> None:
    trial.of("base")
    trial.finishes(resume=False)


def _another_seed(trial: Trial) -> None:
    trial.of("base", {"seed": 8})
    trial.ends(trial.fit())
    if "metrics.jsonl" not in " ".join(trial.differences()):
        trial.problem("another seed gave the same metrics")


def _strange_folders(trial: Trial) -> None:
    trial.of("base")
    trial.finishes(resume=False, strange_folders=True)
