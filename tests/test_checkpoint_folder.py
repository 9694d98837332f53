"""The folder of checkpoints: whole after a kill at any change of it, also where folders cannot be renamed."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lrtrain.checkpoint import folder, format


def test_a_checkpoint_written_again_changes_places_and_leaves_nothing_behind(tmp_path: Path) -> None:
    import torch

    for value in (1.0, 2.0):
        path = format.write(tmp_path, 7, {"model": {"w": torch.full((3,), value)}}, {"note": value})
    assert format.verify(path).tensors("model")["w"].tolist() == [2.0] * 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000007"]
    # As an interrupted exchange leaves it where the file system has none.
    path.rename(tmp_path / ".old-step-00000007")
    folder.put_back(tmp_path)
    assert format.newest(tmp_path)[0].step == 7


class Killed(BaseException):
    pass


class Overlay:
    """A file system whose folders of now cannot be renamed; after `left` further changes the process is killed."""

    CHANGES = ("mkdir", "rename", "unlink", "rmdir", "fsync")

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.left, self._lower = 10**9, {path for path in root.iterdir() if path.is_dir()}
        monkeypatch.setattr(format, "_exchanged", lambda one, other: False)
        for name in self.CHANGES:
            monkeypatch.setattr(os, name, partial(self._changed, getattr(os, name)))

    def _changed(self, change: Any, path: Any, *args: Any, **more: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Killed
        if change.__name__ == "rename" and path in self._lower:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        if change.__name__ == "rmdir":
            self._lower.discard(path)
        return change(path, *args, **more)


def _written(root: Path, step: int, value: float) -> Path:
    import torch

    return format.write(root, step, {"model": {"w": torch.full((3,), value)}}, {})


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_kill_while_a_folder_is_copied_that_cannot_be_renamed_leaves_a_whole_checkpoint(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, changes = False, 0
    while not ended:
        root = tmp_path / str(changes)
        root.mkdir()
        old = _written(root, 7, 1.0)
        if interrupted:
            old.rename(root / f".old-{old.name}")
        with monkeypatch.context() as patched, suppress(Killed):
            overlay = Overlay(root, patched)
            overlay.left = changes
            if interrupted:
                folder.put_back(root)
            else:
                _written(root, 7, 2.0)
            ended = True
        changes += 1
        folder.put_back(root)
        whole, damaged = format.newest(root)
        assert not damaged
        assert whole.tensors("model")["w"].unique() in ([1.0] if interrupted else [2.0] if ended else [1.0, 2.0])
        folder.sweep(root)
        assert [entry.name for entry in root.iterdir()] == ["step-00000007"]
    assert changes > 10


def test_folders_that_cannot_be_renamed_are_put_in_order_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 7):
        path = _written(tmp_path, step, step)
    path.rename(tmp_path / f".old-{path.name}")
    overlay = Overlay(tmp_path, monkeypatch)
    folder.put_back(tmp_path)
    assert format.newest(tmp_path)[0].step == 6
    folder.set_aside_after(tmp_path, 5)
    folder.drop_after(tmp_path, 4, None)
    folder.prune(tmp_path, 2)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == [".bad-step-00000006", "step-00000003", "step-00000004"]
    overlay.left = 2  # a deletion that is killed once it has begun
    with pytest.raises(Killed):
        folder.prune(tmp_path, 1)
    assert [whole.step for whole in format.readable(tmp_path)] == [4]
