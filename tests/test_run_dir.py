"""A run directory: who is said to hold it, and what `verify` lists of many checkpoints."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch

from lrtrain.checkpoint import format
from lrtrain.commands import verify
from lrtrain.errors import CheckpointError, RunDirError
from lrtrain.sinks.lock import locked
from lrtrain.sinks.run_dir import RunDir

HERE, NOBODY = socket.gethostname(), 2**22 + 1  # above the most that Linux gives


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "running", "pid": os.getpid(), "host": HERE}, f"process {os.getpid()} on"),
        ({"state": "running", "pid": NOBODY, "host": HERE}, "another process"),
        ({"state": "running", "pid": 10**30, "host": HERE}, "another process"),
        ({"state": "running", "pid": NOBODY, "host": "elsewhere"}, f"process {NOBODY} on elsewhere"),
        ({"state": "done", "pid": os.getpid(), "host": HERE}, "another process"),
        ({}, "another process"),
    ],
)
def test_who_holds_the_lock_is_not_taken_for_an_earlier_run(
    tmp_path: Path, status: dict[str, object], words: str
) -> None:
    (tmp_path / "status.json").write_text(json.dumps(status))
    with locked(RunDir(tmp_path)), pytest.raises(RunDirError, match=f"is in use by {words}"), locked(RunDir(tmp_path)):
        pass


def test_verify_lists_the_newest_of_many_and_whatever_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in range(60):
        format.write(tmp_path / "checkpoints", step, {"model": {"w": torch.zeros(1)}}, {})
    verify.run(tmp_path)
    shown = capsys.readouterr().out
    assert "10 older ones are whole" in shown
    assert "all 60 are whole" in shown
    assert shown.count("step-") == 50
    (tmp_path / "checkpoints" / "step-00000003" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="1 of 60 checkpoints are damaged: step-00000003"):
        verify.run(tmp_path)
    shown = capsys.readouterr().out
    assert "9 older ones are whole" in shown
    assert "step-00000003" in shown
