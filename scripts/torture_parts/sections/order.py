"""What a power cut would find: in which order the changes of a run become durable, read from what it did."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from torture_parts.case import Case, numbered
from torture_parts.lab import Lab
from torture_parts.trial import Trial

_STEP = re.compile(r"checkpoints/step-\d{8}")


def order(lab: Lab) -> list[Case]:
    """The uninterrupted run, and one that is resumed."""
    return numbered("order", [("the whole run", _whole), ("a resumed run", _resumed)])


def _whole(trial: Trial) -> None:
    trial.of("base")
    # Run again, and not taken from the lab, so that another copy of lrtrain can be looked at.
    _judge(trial, trial.fit(watch=True).seen)


def _resumed(trial: Trial) -> None:
    trial.of("base")
    trial.killed(trial.fit(at_step=33))
    _judge(trial, trial.fit(resume=True, watch=True).seen)


def _judge(trial: Trial, seen: Sequence[str]) -> None:
    trial.found.counts["commits whose order was checked"] += sum("-> checkpoints/step-" in words for words in seen)
    trial.found.problems += broken_rules(seen)[:5]
    if not any("-> checkpoints/step-" in words for words in seen):
        trial.problem("no commit of a checkpoint was seen")


def broken_rules(seen: Sequence[str]) -> list[str]:
    """Where something is relied on that is not on the disk yet.

    A file is, when it was fsynced after its last write; a name is, when its folder was fsynced after it was given.
    """
    unsynced: set[str] = set()  # files, and folders by what is in them
    named: set[str] = set()  # what was renamed in checkpoints/ since that was fsynced
    found: list[str] = []
    for words in seen:
        done, _, rest = words.partition(" ")
        source, _, target = rest.partition(" -> ")
        if done == "fsync":
            unsynced.discard(source)
            named = set() if source == "checkpoints" else named
        elif done in ("create", "write", "mkdir"):
            unsynced.update((source, *([posixpath.dirname(source)] if done != "write" else [])))
            if posixpath.basename(source) == "manifest.json" and "metrics.jsonl" in unsynced:
                found.append(f"metrics.jsonl is not fsynced before {words}")
        elif _STEP.match(source) and done in ("unlink", "rmdir", "rename"):
            found += [f"{name} is not durable before {words}" for name in sorted(named)]
        elif target.startswith("checkpoints/") and done in ("rename", "exchange"):
            found += [f"{name} is not fsynced before {words}" for name in sorted(unsynced) if _inside(name, source)]
            if target.endswith(".json"):
                found += [f"{name} is not durable before {words}" for name in sorted(named) if _STEP.match(name)]
            named.add(target)
    return found


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith(path + "/")
