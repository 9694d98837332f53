"""The run directory: what lies where, made once for one run."""

from __future__ import annotations

import glob
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.errors import ConfigError, EnvironmentFault, RunDirError


@dataclass(frozen=True)
class RunDir:
    """Paths of a run's files."""

    path: Path

    @property
    def config(self) -> Path:
        """The config as resolved."""
        return self.path / "config.yaml"

    @property
    def curve(self) -> Path:
        """The LR as planned."""
        return self.path / "curve.csv"

    @property
    def metrics(self) -> Path:
        """What training found, one object a line."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """Wall-clock, images/s, memory."""
        return self.path / "timing.jsonl"

    @property
    def status(self) -> Path:
        """How the run stands."""
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        """One directory a checkpoint."""
        return self.path / "checkpoints"

    def read_status(self) -> dict[str, Any]:
        """What status.json says; empty where it cannot be read."""
        try:
            status = json.loads(self.status.read_text())
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def __str__(self) -> str:
        return str(self.path)


def check_free(out: Path | None, resume_hint: str) -> None:
    """Refuse, before anything heavy, an --out that holds something."""
    if out is not None and out == Path():
        raise ConfigError("--out needs the name of a folder for the run", hint="such as --out runs/first")
    try:
        taken = out is not None and out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise EnvironmentFault(f"--out cannot be used: {error.strerror}", str(out)[:200]) from None
    if taken:
        raise RunDirError(f"{str(out)!r} is not empty", hint=f"{resume_hint}, or name another folder with --out")


def create(out: Path | None, name: str) -> RunDir:
    """Make a run's directory: `out`, or the first free one of runs/<name>, runs/<name>-2, ...

    Raises:
        RunDirError: `out` holds something already.
        EnvironmentFault: it cannot be made.
    """
    try:
        if out is not None:
            check_free(out, "`--resume` continues a run")
            out.mkdir(parents=True, exist_ok=True)
            return RunDir(out)
        root = Path("runs")
        root.mkdir(exist_ok=True)
        number = 1
        while True:
            path = root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
                return RunDir(path)
            except FileExistsError:
                number += 1
    except OSError as error:
        raise EnvironmentFault(
            f"the run directory cannot be made: {error.strerror}", str(error.filename or out)
        ) from error


def latest(name: str) -> RunDir | None:
    """The newest of runs/<name>, runs/<name>-2, ..., by number."""
    found = {
        int(match[1] or 1): path
        for path in Path("runs").glob(f"{glob.escape(name)}*")
        if (match := re.fullmatch(re.escape(name) + r"(?:-(\d+))?", path.name))
    }
    return RunDir(found[max(found)]) if found else None


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise EnvironmentFault(f"cannot write: {error.strerror}", str(path)) from error
