"""The run directory: what lies where, made once for one run."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.errors import CheckpointError, ConfigError, EnvironmentFault, RunDirError, quoted
from lrtrain.foreign import json_object, read_bytes
from lrtrain.world import World
from lrtrain.writing import is_of_the_system, write_atomically

_LAUNCH = ".launch.json"


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
            return json_object(read_bytes(self.status, 100_000))
        except (OSError, ValueError):
            return {}

    @property
    def typed(self) -> str:
        """The path as it is typed in a shell."""
        text = str(self.path)
        return shlex.quote(f"./{text}" if text.startswith("-") else text)

    def __str__(self) -> str:
        return str(self.path)


def is_run(folder: Path) -> bool:
    """Whether a folder is what a run left: checkpoints of ours, or a config.yaml beside what training writes."""
    beside = ("checkpoints", "curve.csv", "metrics.jsonl", "status.json")
    return any((folder / "checkpoints").glob("step-*")) or (
        (folder / "config.yaml").exists() and any((folder / name).exists() for name in beside)
    )


def refuse_other_files(run: RunDir) -> None:
    """Refuse to go on with a run that holds more than files and folders.

    What is written through a symbolic link lands elsewhere, and a pipe is waited for. The directory itself and
    `checkpoints` may be links, to another disk for example.

    Raises:
        CheckpointError: names what it is.
    """
    try:
        inside = [*run.path.iterdir(), *(run.checkpoints.iterdir() if run.checkpoints.is_dir() else ())]
        modes = {path: mode for path in inside if path != run.checkpoints and (mode := _mode_of(path)) is not None}
        # Not lost+found, where they have a disk of their own.
        folders = [path for path, mode in modes.items() if stat.S_ISDIR(mode) and path.parent == run.checkpoints]
        folders = [path for path in folders if path.name.startswith((".", "step-"))]
        deep = next((entry for folder in folders for entry in _entries(folder) if entry.is_dir()), None)
    except OSError as error:
        raise EnvironmentFault(f"the run directory cannot be read: {error.strerror}", str(run)) from error
    if deep is not None:
        raise CheckpointError(f"a checkpoint holds files, and {quoted(deep.name)} is a folder", deep.path, "remove it")
    for path, mode in modes.items():
        if stat.S_ISLNK(mode):
            what = f"a run's files are no symbolic links, and {quoted(path.name)} is one to {quoted(os.readlink(path))}"
            raise CheckpointError(what, str(path), "put the file itself in its place, or remove the link")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            what = f"a run holds files and folders, and {quoted(path.name)} is a pipe, socket or device"
            raise CheckpointError(what, str(path), "remove it")


def _mode_of(path: Path) -> int | None:
    """What `path` is; None where it has gone: another process may train in the run."""
    with suppress(FileNotFoundError):
        return path.lstat().st_mode
    return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError):
        return list(os.scandir(folder))
    return []


def check_free(out: Path | None, resume_hint: str) -> None:
    """Refuse, before anything heavy, an --out that holds something or cannot be made."""
    if out is not None and out == Path():
        raise ConfigError("--out needs the name of a folder for the run", hint="such as --out runs/first")
    if out is None:
        return
    try:
        taken = out.exists() and not _is_empty(out)
        there = next((path for path in (out, *out.parents) if path.exists()), Path())
        if not taken and not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not taken and not os.access(there, os.W_OK | os.X_OK):
            why = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
            raise PermissionError(why, os.strerror(why))
    except OSError as error:
        hint = "name another folder with --out"
        raise EnvironmentFault(f"--out cannot be used: {error.strerror}", str(out)[:200], hint) from None
    if taken:
        what = "is not empty" if out.is_dir() else "is there, and is no folder"
        raise RunDirError(f"{quoted(str(out))} {what}", hint=f"{resume_hint}, or name another folder with --out")


def mark_begun(run: RunDir, world: World, launches: Sequence[str]) -> None:
    """Note which torchrun begins a run, so that the processes that it starts again go on with no other.

    Args:
        run: its directory.
        world: the processes.
        launches: of all of them, one for each machine: any may lead the next time.
    """
    if world.launch:
        said = {"launch": sorted(set(launches)), "restarts": world.restarts}
        write_atomically(run.path / _LAUNCH, json.dumps(said) + "\n")


def was_begun(run: RunDir, world: World) -> bool:
    """Whether an earlier start by the same torchrun began a run, far enough to go on with it."""
    try:
        said = json_object(read_bytes(run.path / _LAUNCH, 1_000_000))
    except (OSError, ValueError):
        return False
    before, launches = said.get("restarts"), said.get("launch")
    known = isinstance(launches, list) and world.launch in launches
    return known and isinstance(before, int) and before < world.restarts


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or what a run has left that could not even write its config."""
    return folder.is_dir() and all(
        path.name in (".config.yaml.tmp", _LAUNCH, f".{_LAUNCH}.tmp")
        or (
            path.name == "checkpoints"
            and path.is_dir()
            and all(inner.name == ".lock" and not inner.is_symlink() for inner in path.iterdir())
        )
        for path in folder.iterdir()
    )


def refuse_lost_link(run: RunDir) -> None:
    """Refuse a run whose checkpoints are on a disk that is not there.

    Raises:
        EnvironmentFault: names where they should be.
    """
    if run.checkpoints.is_symlink() and not run.checkpoints.exists():
        what = f"the run's checkpoints are a link to {quoted(os.readlink(run.checkpoints))}, which is not there"
        raise EnvironmentFault(what, str(run.checkpoints), "mount or restore it")


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
            f"the run directory cannot be made: {error.strerror}",
            str(error.filename or out),
            "name another folder with --out",
        ) from error


def refuse_small_disk(out: Path | None, checkpoint_bytes: int) -> None:
    """Refuse, before training, a disk on which two checkpoints do not fit: there are two while one is replaced.

    Raises:
        EnvironmentFault: too little room; says how much there is and is needed.
    """
    folder = out or Path("runs")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free, needed = shutil.disk_usage(there).free, int(2.2 * checkpoint_bytes)
    if free < needed:
        raise EnvironmentFault(
            f"the run needs {needed / 1e6:,.1f} MB for its checkpoints, and {free / 1e6:,.1f} MB are free",
            str(there),
            "make room, or name a folder on another disk with --out",
        )


def latest(name: str, world: World | None = None) -> RunDir | None:
    """The newest of runs/<name>, runs/<name>-2, ... that a config of this name began.

    Args:
        name: of the config's file, without suffix.
        world: begun by this torchrun, too.
    """
    numbered = {
        int(match[1] or 1): RunDir(path)
        for path in Path("runs").glob(f"{glob.escape(name)}*")
        if (match := re.fullmatch(re.escape(name) + r"(?:-([2-9]|[1-9][0-9]+))?", path.name))
    }
    for _, run in sorted(numbered.items(), reverse=True):
        # runs/a-2 is the second of a.yaml, or the first of a-2.yaml.
        began = begun_with(run)
        if (began is None or Path(began).stem == name) and (world is None or was_begun(run, world)):
            return run
    return None


ORIGIN = "# {}, as lrtrain {} resolved it: `lrtrain fit` on this file repeats the run.\n"


def begun_with(run: RunDir) -> str | None:
    """The config that a run began with, as the first line of its own says; None where it does not."""
    try:
        first = read_bytes(run.config, 10_000_000).partition(b"\n")[0].decode("utf-8", "replace")
    except OSError:
        return None
    begun = re.match(r"# (.+), as lrtrain \S+ resolved it", first)
    return begun[1] if begun else None


def refuse_unwritable(path: Path | None, option: str) -> None:
    """Refuse a file that a person named with `option` and that cannot be written, before work is done for it.

    Raises:
        EnvironmentFault: says why not.
    """
    if path is None or is_of_the_system(path):
        return
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="."):
            pass
    except OSError as error:
        hint = f"name a file in a folder that is there, with {option}"
        raise EnvironmentFault(f"cannot write: {error.strerror}", str(path), hint) from error
