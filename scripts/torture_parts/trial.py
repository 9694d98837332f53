"""One case being tried: it starts and resumes runs, and keeps account of what must hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torture_parts.ask import Answer, Ask
from torture_parts.case import Found
from torture_parts.client import Zygote
from torture_parts.compare import differences, lr_differences, lr_hexes, newest_step
from torture_parts.lab import Lab, copied

KILLED = -9


class Trial:
    """Runs `lrtrain fit` into `folder/run`, as often as it takes."""

    def __init__(self, lab: Lab, found: Found, folder: Path, zygote: Zygote, package: str | None = None):
        """Begin.

        Args:
            lab: what all share.
            found: gets everything that is found.
            folder: of this case alone.
            zygote: runs it.
            package: folder with another copy of lrtrain to try.
        """
        self.lab, self.found, self.folder, self._zygote, self._package = lab, found, folder, zygote, package
        self.run = folder / "run"
        self.variant = "base"
        self._processes = 0

    def beside(self, package: Path, name: str) -> Trial:
        """Another trial of the same case, with another copy of lrtrain and an account of its own."""
        folder = self.folder / name
        folder.mkdir()
        return Trial(self.lab, Found(self.found.case), folder, self._zygote, str(package))

    def of(self, variant: str, changes: dict[str, Any] | None = None) -> None:
        """Choose the config."""
        self.variant = variant
        self.lab.config(self.folder, variant, changes)

    def continues(self, template: Path, variant: str) -> None:
        """Go on from a copy of a run that was killed."""
        self.variant = variant
        copied(template, self.folder)

    def ask(self, **how: Any) -> Answer:
        """Run anything in this case's folder."""
        log = self.folder / f"log-{self._processes}.txt"
        self._processes += 1
        asked = Ask(**{"folder": str(self.folder), "log": str(log), "package": self._package} | how)
        answer = self._zygote.ask(asked)
        if answer.timed_out:
            self.problem(f"it hung: killed after {asked.timeout_seconds:g} s")
        return answer

    @property
    def said(self) -> str:
        """What the last process printed."""
        path = self.folder / f"log-{self._processes - 1}.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def problem(self, what: str) -> None:
        """Something is not as it must be."""
        self.found.problems.append(what)

    def fit(
        self,
        *before: list[str],
        resume: bool = False,
        workers: int = 0,
        watch: bool = False,
        more: Sequence[str] = (),
        **how: Any,
    ) -> Answer:
        """Start, or resume, the run; the LR of every update is checked.

        Args:
            before: commands to run before it, in the same process.
            resume: go on with it.
            workers: data workers.
            watch: count the changes of its files.
            more: arguments of `lrtrain fit`.
            how: of `Ask`.
        """
        began = (newest_step(self.run) or 0) if resume else 0
        lrs = self.folder / f"lrs-{self._processes}.txt"
        command = ["fit", "c.yaml", "--out", "run", *(["--resume"] if resume else []), *more]
        command += ["--set", f"workers={workers}"]
        ranks = 2 if self.variant == "two ranks" else 1
        watched = {"watched": str(self.run)} if watch else {}
        answer = self.ask(commands=[*before, command], lrs=str(lrs), ranks=ranks, **watched, **how)
        if not before:
            self._check_lrs(lrs, began)
        if answer.code == KILLED and not answer.timed_out:
            self.found.counts["kills"] += 1
        return answer

    def _check_lrs(self, path: Path, began: int) -> None:
        whole = self.lab.whole(self.variant)
        used = lr_hexes(path)
        for planned in (whole.planned, whole.lrs):
            if planned:
                self.found.problems += lr_differences(planned, used, began)[:1]
                self.found.counts["LRs"] += sum(map(len, used))

    def killed(self, answer: Answer) -> None:
        """It must have been killed, and something must be there to go on from."""
        if answer.code != KILLED:
            self.problem(f"the run was to be killed, and ended with {answer.code}: {last_words(self.said)}")
        self.still_valid()

    def still_valid(self, at_least: int = 0) -> None:
        """At this moment there is a whole checkpoint, of that step or a later one."""
        self.found.counts["moments"] += 1
        step = newest_step(self.run)
        if step is None or step < at_least:
            self.found.counts["moments without a checkpoint"] += 1
            self.problem("no valid checkpoint" if step is None else f"the newest valid checkpoint is of step {step}")

    def ends(self, answer: Answer, code: int = 0) -> bool:
        """It must end with that exit code; whether it did."""
        if answer.code != code:
            self.problem(f"ended with {answer.code} instead of {code}: {last_words(self.said)}")
        elif code and ("Traceback" in self.said or "bug in lrtrain" in self.said):
            self.problem(f"ended with a traceback: {last_words(self.said)}")
        return answer.code == code

    def finishes(self, resume: bool = True, **how: Any) -> None:
        """Resumed to its end, the run must be the uninterrupted one, byte for byte."""
        if self.ends(self.fit(resume=resume, **how)):
            self.same()

    def same(self) -> None:
        """The run is the uninterrupted one."""
        different = self.differences()
        self.found.problems += different
        self.found.counts["same bytes"] += not different

    def differences(self) -> list[str]:
        """From the uninterrupted run."""
        return differences(self.lab.whole(self.variant).path, self.run)

    def says(self, *patterns: str) -> None:
        """The message has each of these."""
        flat = " ".join(self.said.split())
        for pattern in patterns:
            if not re.search(pattern, flat):
                self.problem(f"the message lacks {pattern!r}: {last_words(self.said)}")


def last_words(text: str) -> str:
    """The message with which a process ended."""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    begun = next((i for i, line in enumerate(lines) if line.startswith("error:")), max(len(lines) - 3, 0))
    return " / ".join(line.strip() for line in lines[begun : begun + 4])[:400] or "it said nothing"


def first_with(seen: Sequence[str], what: str) -> int:
    """The number of the first change that is called so, or begins so."""
    return next(i for i, words in enumerate(seen) if words.startswith(what))
