"""A run's checkpoints together: what last.json and best.json name, what is deleted, and what a crash left behind."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrtrain.checkpoint.format import STEP, open_checkpoint, steps, write_synced
from lrtrain.checkpoint.move import MANIFEST, delete, move
from lrtrain.errors import EnvironmentFault, LrtrainError, what_to_do
from lrtrain.foreign import json_object, read_bytes
from lrtrain.writing import sync_folder

_LEFT = re.compile(rf"\.tmp-([0-9]{{8,15}}-[0-9]+|{STEP.pattern}|(last|best)\.json)")


def point(root: Path, name: str, checkpoint: Path) -> None:
    """Make `root/<name>.json` name a checkpoint, in one step."""
    temporary = root / f".tmp-{name}.json"
    try:
        write_synced(temporary, json.dumps({"checkpoint": checkpoint.name}).encode())
        temporary.rename(root / f"{name}.json")
        sync_folder(root)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"{name}.json could not be written: {error.strerror}",
            str(root / f"{name}.json"),
            what_to_do(error),
        ) from error


def point_nowhere(root: Path, name: str) -> None:
    """Remove `root/<name>.json`, if it is there.

    Raises:
        EnvironmentFault: the file system refuses.
    """
    with _mending(root):
        (root / f"{name}.json").unlink(missing_ok=True)


def prune(root: Path, keep: int, unplanned: Collection[Path] = ()) -> None:
    """Delete all but the newest `keep` checkpoints, the last, and what is the best to each of these.

    Training that goes on from an older one has its best again. What cannot be deleted now is tried the next time.

    Args:
        root: the run's `checkpoints` folder.
        keep: how many.
        unplanned: those that go in any case, and are not counted: what stays is what a run keeps that was left alone.
    """
    paths = steps(root)
    stay = {*[path for path in paths if path not in unplanned][-keep:], pointed(root, "last"), pointed(root, "best")}
    stay |= {_best_of(path) for path in stay if path is not None}
    for path in paths:
        if path not in stay:
            with suppress(OSError):
                _remove(path)


def _best_of(path: Path) -> Path | None:
    """Which checkpoint was the best when this one was saved."""
    try:
        best = open_checkpoint(path).manifest.get("best")
    except LrtrainError:  # damaged, or gone meanwhile
        return None
    return path.with_name(f"step-{best['step']:08d}") if best and best["value"] is not None else None


def _remove(path: Path) -> None:
    """Delete a checkpoint, first out of sight: half a directory that is still called step-* would look damaged."""
    try:
        gone = path.rename(path.with_name(f".tmp-{path.name}"))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        delete(path)
    else:
        shutil.rmtree(gone, ignore_errors=True)


def put_back(root: Path) -> None:
    """Give a checkpoint its name again, where an interrupted `write` had moved it aside.

    Raises:
        EnvironmentFault: the file system refuses.
    """
    with _mending(root):
        for old in root.glob(".old-step-*"):
            place = root / old.name.removeprefix(".old-")
            if STEP.fullmatch(place.name) and _is_folder(old) and not (place / MANIFEST).exists():
                _delete(place)  # the rest of it, if anything: see `move`
                move(old, place)


def sweep(root: Path) -> None:
    """Remove what an interrupted `write` or `prune` left, by the names that these give; nothing else.

    What cannot be deleted now is tried the next time: nothing counts it.

    Raises:
        EnvironmentFault: the folder cannot be looked through.
    """
    with _mending(root):
        left = [path for path in root.glob(".old-step-*") if STEP.fullmatch(path.name.removeprefix(".old-"))]
        left += [path for path in root.glob(".tmp-*") if _LEFT.fullmatch(path.name)]
    for path in left:
        with suppress(OSError):
            _delete(path)


def set_aside_after(root: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which are damaged, to `.bad-*`: to be looked at, never counted again.

    Raises:
        EnvironmentFault: the file system refuses.
    """
    with _mending(root):
        for path in steps(root, after=step):
            _set_aside(path)


def _set_aside(path: Path) -> None:
    bad = path.with_name(f".bad-{path.name}")
    _delete(bad)
    move(path, bad)


@contextmanager
def _mending(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"the checkpoints cannot be put in order: {error.strerror}"
        name = str(error.filename or "")  # a bare one is of a file in a folder that is deleted
        raise EnvironmentFault(what, name if "/" in name else str(root), "allow writing there") from error


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _delete(path: Path) -> None:
    """Whatever it is, or nothing."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def pointed(root: Path, name: str) -> Path | None:
    """The checkpoint that `<name>.json` names."""
    try:
        target = json_object(read_bytes(root / f"{name}.json", 10_000))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return root / target if isinstance(target, str) and STEP.fullmatch(target) else None


def drop_after(root: Path, step: int, best_step: int | None, damaged: Collection[str] = ()) -> None:
    """Delete the checkpoints of steps after `step`, to which training has gone back; `best_step` is the best so far.

    Those of names that are damaged are set aside, as `set_aside_after` does.
    """
    dropped = steps(root, after=step)
    if pointed(root, "best") in dropped:
        best = None if best_step is None else root / f"step-{best_step:08d}"
        if best is not None and best.is_dir() and best not in dropped:
            point(root, "best", best)
        else:
            point_nowhere(root, "best")
    for path in dropped:
        if path.name in damaged:
            _set_aside(path)
        else:
            _remove(path)
