"""What all cases share: the images, the zygotes, and the uninterrupted runs."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture_parts.ask import Ask
from torture_parts.client import Zygote
from torture_parts.compare import lr_hexes, planned_hexes
from torture_parts.reference import config_of, make_images, write_config


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run.

    Attributes:
        path: its run directory.
        seen: every change it made to its files, in words.
        lrs: of every step, as `float.hex` of each group; empty where a scaler leaves out updates.
        planned: the same from curve.csv; None where the LR is not known before.
    """

    path: Path
    seen: list[str]
    lrs: list[list[str]]
    planned: list[list[str]] | None
    seconds: float


class Lab:
    """Makes each of these once, when it is first wanted.

    Args:
        work: an empty folder.
        seed: of all that is chosen by chance.
        jobs: runs at a time.
        quick: a few cases of each kind.
        watching: processes can be watched here.
    """

    def __init__(self, work: Path, *, seed: int, jobs: int, quick: bool, watching: bool):
        self.work, self.seed, self.jobs, self.quick, self.watching = work, seed, jobs, quick, watching
        self.data = work / "images"
        make_images(self.data, seed)
        # Each hashes text in another way, as any two processes do.
        # The first one runs what is compared with, while the case that wants it holds another.
        self._own, *others = self._all = [Zygote(number) for number in range(jobs + 1)]
        self._idle: queue.Queue[Zygote] = queue.Queue()
        for zygote in others:
            self._idle.put(zygote)
        self._wholes: dict[str, Whole] = {}
        self._templates: dict[str, Path] = {}
        self._making = threading.RLock()

    @contextmanager
    def zygote(self) -> Iterator[Zygote]:
        """One that is idle."""
        one = self._idle.get()
        try:
            yield one
        finally:
            self._idle.put(one)

    def config(self, folder: Path, variant: str, changes: dict[str, Any] | None = None) -> Path:
        """Write a variant's config into a folder."""
        path = folder / "c.yaml"
        write_config(path, config_of(variant, self.data, changes))
        return path

    def whole(self, variant: str = "base") -> Whole:
        """The uninterrupted run of a variant.

        Raises:
            RuntimeError: it did not end well, so that there is nothing to compare with.
        """
        with self._making:
            if variant not in self._wholes:
                self._wholes[variant] = self._run_whole(variant)
            return self._wholes[variant]

    def _run_whole(self, variant: str) -> Whole:
        folder = self.work / "whole" / variant.replace(" ", "-")
        folder.mkdir(parents=True)
        self.config(folder, variant)
        ranks = 2 if variant == "two ranks" else 1
        ask = Ask(
            folder=str(folder),
            log=str(folder / "log.txt"),
            commands=[["fit", "c.yaml", "--out", "run"]],
            lrs=str(folder / "lrs.txt"),
            ranks=ranks,
            watched=str(folder / "run") if self.watching and ranks == 1 else None,
        )
        answer = self._own.ask(ask)
        if any(answer.codes):
            raise RuntimeError(f"the run of {variant!r} ended with {answer.codes}:\n{(folder / 'log.txt').read_text()}")
        lrs = [] if variant == "fp16" else lr_hexes(folder / "lrs.txt")
        planned = None if variant in ("plateau", "fp16") else planned_hexes(folder / "run" / "curve.csv")
        return Whole(folder / "run", answer.seen, lrs, planned, answer.seconds)

    def killed(self, variant: str, step: int, **changes: Any) -> Path:
        """A folder with the run of a variant that was killed at a step; copy it."""
        name = f"{variant}-{step}".replace(" ", "-")
        with self._making:
            if name not in self._templates:
                folder = self.work / "killed" / name
                folder.mkdir(parents=True)
                self.config(folder, variant, changes)
                ask = Ask(
                    folder=str(folder),
                    log=str(folder / "log.txt"),
                    commands=[["fit", "c.yaml", "--out", "run"]],
                    at_step=step,
                )
                self._own.ask(ask)
                self._templates[name] = folder
            return self._templates[name]

    def close(self) -> None:
        """End the zygotes."""
        for zygote in self._all:
            zygote.close()


def copied(template: Path, folder: Path) -> None:
    """Put a template's files into a folder."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
