"""One file for each kind of cruelty: its cases, and what each must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torture_parts.case import Case
from torture_parts.lab import Lab
from torture_parts.sections import controls, damage, endurance, faults, invariance, kills, order, planted


@dataclass(frozen=True)
class Section:
    """`title` is its line in the table; `watching` says that it needs a kernel that lets processes be watched."""

    title: str
    cases: Callable[[Lab], list[Case]]
    watching: bool = False


SECTIONS: dict[str, Section] = {
    "steps": Section("SIGKILL at an optimizer step", kills.steps),
    "evaluation": Section("SIGKILL in evaluation", kills.evaluation),
    "files": Section("SIGKILL at a change of a file", kills.files, watching=True),
    "resume": Section("SIGKILL while resuming", kills.resume, watching=True),
    "chains": Section("SIGKILL five times in a row", kills.chains),
    "moments": Section("SIGKILL at any moment", kills.moments),
    "variants": Section("SIGKILL with other optimizers, schedules, precisions, two ranks", kills.variants),
    "signals": Section("SIGTERM and others: saved, and resumed", faults.signals),
    "faults": Section("ENOSPC, EIO, EFBIG, EROFS at a change of a file", faults.faults, watching=True),
    "damage": Section("checkpoints damaged on disk", damage.damage),
    "order": Section("what is durable before what", order.order, watching=True),
    "controls": Section("a piece of state taken out: to be noticed", controls.controls),
    "invariance": Section("what must not matter", invariance.invariance),
    "planted": Section("planted bugs: to be caught", planted.planted, watching=True),
    "endurance": Section("a very long run", endurance.endurance),
}
