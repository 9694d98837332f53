"""Rename and delete checkpoint folders, in the lower layer of an overlay too, where a folder cannot be renamed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from lrtrain.writing import sync_folder

MANIFEST = "manifest.json"


def move(path: Path, to: Path) -> None:
    """Rename a folder, else copy and delete it: at any moment one of the two is whole.

    A copy is called `.tmp-step-*` until it is complete. Where `to` is there already, it is one of an earlier try.

    Raises:
        OSError: the file system refuses.
    """
    try:
        path.rename(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not to.exists():
            _copy(path, to)
        delete(path)


def delete(path: Path) -> None:
    """Delete a folder where it is; without its manifest, which goes first, it is no checkpoint.

    Raises:
        OSError: the file system refuses.
    """
    (path / MANIFEST).unlink(missing_ok=True)
    sync_folder(path)
    shutil.rmtree(path)


def _copy(path: Path, to: Path) -> None:
    temporary = path.with_name(f".tmp-{path.name.removeprefix('.old-')}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _copy_synced(path, temporary)
        temporary.rename(to)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(to.parent)


def _copy_synced(path: Path, to: Path) -> None:
    """Copy a folder, and wait until the disk has all of it."""
    to.mkdir()
    for entry in path.iterdir():
        copy = to / entry.name
        if entry.is_dir() and not entry.is_symlink():
            _copy_synced(entry, copy)
            continue
        shutil.copy2(entry, copy, follow_symlinks=False)
        if not copy.is_symlink():
            with copy.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(to)
