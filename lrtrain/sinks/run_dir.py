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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.errors import CheckpointError, ConfigError, EnvironmentFault, RunDirError, printable, quoted
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

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.checkpoints / ".lock"

    def read_status(self) -> dict[str, Any]:
        """What status.json says; empty where it cannot be read."""
        try:
            return json_object(read_bytes(self.status, 100_000))
        except (OSError, ValueError):
            return {}

    @property
    def begun(self) -> str:
        """When the run began, as its status.json says it: ISO 8601 in UTC, which sorts as the times do; else empty."""
        said = self.read_status().get("begun")
        return said if isinstance(said, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{8,15}\+00:00", said) else ""

    @property
    def typed(self) -> str:
        """The path as it is typed in a shell."""
        text = str(self.path)
        return shlex.quote(f"./{text}" if text.startswith("-") else text)

    def __str__(self) -> str:
        return str(self.path)


def is_run(folder: Path) -> bool:
    """Whether a folder is what a run left: checkpoints of ours, or a config.yaml beside what training writes."""
    beside = ("curve.csv", "metrics.jsonl", "status.json", "timing.jsonl")
    inside = ("checkpoints/last.json", "checkpoints/best.json", "checkpoints/.lock")  # an empty one is anybody's
    return any((folder / "checkpoints").glob("step-*")) or (
        # Links that lead nowhere count too: archives from elsewhere may hold them.
        os.path.lexists(folder / "config.yaml")
        and (any(os.path.lexists(folder / name) for name in beside + inside) or (folder / "checkpoints").is_symlink())
    )


def refuse_other_files(run: RunDir) -> None:
    """Refuse to go on with a run that holds more than files and folders.

    What is written through a symbolic link lands elsewhere, and a pipe is waited for. The directory itself and
    `checkpoints` may be links, to another disk for example, but not to a folder of other things.

    Raises:
        CheckpointError: names what it is.
    """
    try:
        inside = [*run.path.iterdir(), *(run.checkpoints.iterdir() if run.checkpoints.is_dir() else ())]
        found = {path: status for path in inside if path != run.checkpoints and (status := _status_of(path))}
        # Not lost+found, where they have a disk of their own.
        folders = [p for p, s in found.items() if stat.S_ISDIR(s.st_mode) and p.parent == run.checkpoints]
        folders = [path for path in folders if path.name.startswith((".", "step-"))]
        deep = next((entry for folder in folders for entry in _entries(folder) if entry.is_dir()), None)
    except OSError as error:
        raise EnvironmentFault(f"the run directory cannot be read: {error.strerror}", str(run)) from error
    if deep is not None:
        raise CheckpointError(f"a checkpoint holds files, and {quoted(deep.name)} is a folder", deep.path, "remove it")
    others = {path.name for path in found if path.parent == run.checkpoints} - {run.lock.name, "lost+found"}
    if run.checkpoints.is_symlink() and others and not any("step-" in name for name in others):
        what = f"checkpoints is a link to a folder that holds no checkpoints, but {quoted(min(others))}"
        raise CheckpointError(what, str(run.checkpoints), "remove the link, or let it lead to an empty folder")
    behind = "behind a link," if run.checkpoints.is_symlink() else ""
    for path, status in found.items():
        mode = status.st_mode
        elsewhere = "a hard link to" if status.st_nlink > 1 else behind
        # Versions of filelock empty it.
        if path == run.lock and stat.S_ISREG(mode) and status.st_size and elsewhere:
            what = f"a run's lock is empty, and {quoted(path.name)} is {elsewhere} a file of {status.st_size:,} bytes"
            raise CheckpointError(what, str(path), "remove it")
        if stat.S_ISLNK(mode):
            what = f"a run's files are no symbolic links, and {quoted(path.name)} is one to {quoted(os.readlink(path))}"
            raise CheckpointError(what, str(path), "put the file itself in its place, or remove the link")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            what = f"a run holds files and folders, and {quoted(path.name)} is a pipe, socket or device"
            raise CheckpointError(what, str(path), "remove it")


def refuse_shared_checkpoints(run: RunDir) -> None:
    """Refuse to train on in a copy of a run that shares the checkpoints, by a link: what is pruned is the other's too.

    Raises:
        CheckpointError: names the other run.
    """
    if not run.checkpoints.is_symlink():
        return
    status = run.read_status()
    began = status.get("path")
    shared, hint = None, "put a copy of the folder in the link's place, as `cp -aL` makes it; or go on with that run"
    for other in (Path(os.path.realpath(run.checkpoints)).parent, Path(began) if isinstance(began, str) else None):
        with suppress(OSError, ValueError):
            if other is None or other.samefile(run.path) or not (other / "curve.csv").exists():
                continue
            if (other / "checkpoints").samefile(run.checkpoints):
                shared = other
    if shared is not None:
        what = f"these are the checkpoints of the run {quoted(str(shared))}, and would be replaced there too"
        raise CheckpointError(what, str(run.checkpoints), hint)
    # A run that was renamed is the same folder still, and what was copied on its disk is not, as checkpoints are not.
    was, now = status.get("inode"), identity(run.path)
    with_its_own = status.get("checkpoints_inode", ours := identity(run.checkpoints)) != ours
    if isinstance(began, str) and isinstance(was, list) and was != now and was[:1] == now[:1] and not with_its_own:
        with suppress(OSError, ValueError):
            if identity(Path(began)) in (was, now):  # it has others; or is this one, restored from a copy
                return
        what = f"this is a copy of the run that was {quoted(began)}, whose checkpoints these are too, where it is now"
        gone = 'if no other run has them, remove "inode" from status.json; else put a copy in the link\'s place, as '
        raise CheckpointError(what, str(run.checkpoints), gone + "`cp -aL` makes it")


def identity(folder: Path) -> list[int]:
    """Its disk and its number there, which it keeps when it is renamed; none where it is not there."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return []
    return [status.st_dev, status.st_ino]


def _status_of(path: Path) -> os.stat_result | None:
    """What `path` is; None where it has gone: another process may train in the run."""
    with suppress(FileNotFoundError):
        return path.lstat()
    return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError):
        return list(os.scandir(folder))
    return []


def check_free(out: Path | None) -> None:
    """Refuse, before anything heavy, an --out that holds something or cannot be made; or a runs/ that cannot."""
    if out is None:
        refuse_unmakable(Path("runs"), "the run directory cannot be made")
        return
    whole = Path(os.path.abspath(out))
    among = [folder.parent for folder in (whole, *whole.parents) if folder == RunDir(folder.parent).checkpoints]
    run = next((folder for folder in among if RunDir(folder).config.is_file() and is_run(folder)), None)
    if run is not None:
        what = f"{quoted(str(out))} is among the checkpoints of the run {quoted(str(run))}"
        raise RunDirError(what, hint="name another folder with --out")
    if out == Path():
        raise ConfigError("--out needs the name of a folder for the run", hint="such as --out runs/first")
    try:
        taken = out.exists() and not _is_empty(out)
        resume = "`--resume` continues the run in it, or " if RunDir(out).config.exists() and is_run(out) else ""
    except OSError as error:
        raise _unusable(out, error, "--out cannot be used") from None
    if taken:
        what = "is not empty" if out.is_dir() else "is there, and is no folder"
        raise RunDirError(f"{quoted(str(out))} {what}", hint=f"{resume}name another folder with --out")
    refuse_unmakable(out, "--out cannot be used")


def refuse_unmakable(folder: Path, what: str) -> None:
    """Refuse a folder that can neither be made nor, where it is there, be written into.

    Raises:
        EnvironmentFault: says `what`, and why.
    """
    try:
        there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
        if there.is_symlink() and not there.exists():
            raise FileNotFoundError(errno.ENOENT, f"it leads to {os.readlink(there)}, which is not there")
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            why = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
            raise PermissionError(why, os.strerror(why))
    except OSError as error:
        raise _unusable(folder, error, what) from None


def refuse_among_classes(folder: Path, class_roots: Sequence[str]) -> None:
    """Refuse to write into a folder that lies among class folders, where it would be a class from then on.

    Raises:
        ConfigError: it does.
    """
    real = os.path.realpath(folder)
    for root in class_roots:
        if os.path.commonpath((root, real)) == root:
            raise ConfigError(
                f"{quoted(str(folder))} would lie among the class folders in {quoted(root)}, and then be a class",
                hint="move the class folders into one of their own, such as photos/, and name that as `root`; "
                "or name a folder elsewhere with --out",
            )


def _unusable(folder: Path, error: OSError, what: str) -> EnvironmentFault:
    return EnvironmentFault(f"{what}: {error.strerror}", str(folder)[:200], "name another folder with --out")


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


def refuse_lost_link(run: RunDir | None) -> None:
    """Refuse a run that is, or whose checkpoints are, on a disk that is not there.

    Raises:
        EnvironmentFault: names where they should be.
    """
    places = () if run is None else ((run.path, "the run is"), (run.checkpoints, "the run's checkpoints are"))
    for path, what in places:
        if path.is_symlink() and not path.exists():
            what = f"{what} a link to {quoted(os.readlink(path))}, which is not there"
            raise EnvironmentFault(what, str(path), "mount or restore it, or name another run")


def create(out: Path | None, name: str) -> RunDir:
    """Make a run's directory: `out`, or the first free one of runs/<name>, runs/<name>-2, ...

    Raises:
        RunDirError: `out` holds something already.
        EnvironmentFault: it cannot be made.
    """
    try:
        if out is not None:
            check_free(out)
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
    if world is not None:
        return next((run for run in _highest_first(name) if was_begun(run, world)), None)
    runs = list(_highest_first(name))
    begun = {run: run.begun for run in runs}
    # A number may be a person's, such as the 10 of --out runs/a-10, or have become free; but earlier runs say no time.
    return max(runs, key=begun.__getitem__) if all(begun.values()) and runs else next(iter(runs), None)


def _highest_first(name: str) -> Iterator[RunDir]:
    """The runs that a config of this name began, the one of the highest number first."""
    numbered = {
        int(match[1] or 1): RunDir(path)
        for path in Path("runs").glob(f"{glob.escape(name)}*")
        if (match := re.fullmatch(re.escape(name) + r"(?:-([2-9]|[1-9][0-9]+))?", path.name)) and not path.is_file()
    }
    for _, run in sorted(numbered.items(), reverse=True):
        # runs/a-2 is the second of a.yaml, or the first of a-2.yaml.
        began = begun_with(run)
        if began is None or Path(began).stem in (name, printable(name)):
            yield run


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
