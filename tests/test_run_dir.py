"""A run directory: who is said to hold it, and what `verify` lists of many checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest
import torch

from lrtrain.checkpoint import format
from lrtrain.commands import verify
from lrtrain.commands.start import start_fit, start_from_run
from lrtrain.engine.events import SaveDue
from lrtrain.errors import CheckpointError, EnvironmentFault, RunDirError
from lrtrain.sinks.jsonl import Metrics
from lrtrain.sinks.lock import locked
from lrtrain.sinks.run_dir import RunDir, check_free

# The command leaves it to the end of its process to close files.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
HERE, SELF, NOBODY = socket.gethostname(), "ours", 2**22 + 1  # above the most that Linux gives


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "running", "pid": SELF, "host": HERE}, f"process {SELF} on"),
        ({"state": "running", "pid": NOBODY, "host": HERE}, "another process"),
        ({"state": "running", "pid": 10**30, "host": HERE}, "another process"),
        ({"state": "running", "pid": NOBODY, "host": "elsewhere"}, f"process {NOBODY} on elsewhere"),
        ({"state": "done", "pid": SELF, "host": HERE}, "another process"),
        ({"state": "running", "pid": {"a": [1]}, "host": None}, "another process"),
        ({}, "another process"),
    ],
)
def test_who_holds_the_lock_is_not_taken_for_an_earlier_run(
    tmp_path: Path, status: dict[str, object], words: str
) -> None:
    own = str(os.getpid())
    (tmp_path / "status.json").write_text(json.dumps(status).replace(f'"{SELF}"', own))
    wanted = f"is in use by {words.replace(SELF, own)}"
    with locked(RunDir(tmp_path)), pytest.raises(RunDirError, match=wanted), locked(RunDir(tmp_path)):
        pass


def test_verify_lists_the_newest_of_many_and_whatever_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "metrics.jsonl"
    log.touch()
    manifest = {"log_bytes": {log.name: 0}, "log_sha256": {log.name: hashlib.sha256().hexdigest()}}
    for step in range(60):
        format.write(tmp_path / "checkpoints", step, {"model": {"w": torch.zeros(1)}}, manifest)
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


def test_what_a_failed_start_leaves_is_begun_again(tmp_path: Path) -> None:
    for name in ("checkpoints/.lock", ".config.yaml.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        check_free(tmp_path, "")
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    with pytest.raises(RunDirError, match="is not empty"):
        check_free(tmp_path, "")


def test_checkpoints_on_a_disk_that_is_not_there_are_not_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "checkpoints").symlink_to("/mnt/gone")
    for begin in (
        lambda: verify.run(tmp_path),
        lambda: start_from_run(tmp_path, None, trust=False),
        lambda: start_fit(None, None, tmp_path, resume=True),
    ):
        with pytest.raises(EnvironmentFault, match="a link to '/mnt/gone', which is not there"):
            begin()


def test_a_run_that_is_taken_away_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="the folder was moved or removed"):
        format.write(tmp_path / "run" / "checkpoints", 1, {"model": {}}, {})
    assert not (tmp_path / "run").exists()


def test_a_log_that_is_replaced_while_training_is_noticed(tmp_path: Path) -> None:
    log = Metrics(tmp_path / "metrics.jsonl")
    log.note({"event": "train", "step": 1})
    log(SaveDue(1, best=False))
    (tmp_path / "copy").write_bytes((tmp_path / "metrics.jsonl").read_bytes())
    (tmp_path / "copy").replace(tmp_path / "metrics.jsonl")
    log.note({"event": "train", "step": 2})
    with pytest.raises(EnvironmentFault, match="was replaced or removed while training"):
        log(SaveDue(2, best=False))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(EnvironmentFault, match="was replaced or removed while training"):
        log(SaveDue(3, best=False))


def test_what_a_run_deletes_meanwhile_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `verify` and `evaluate` may find a run that goes on."""
    saved, real = iter(range(2, 9)), format.verify
    format.write(tmp_path, 1, {"model": {}}, {})

    def late(path: Path) -> format.Checkpoint:
        if (step := next(saved)) < 5:  # the run saves another one, and deletes this
            format.write(tmp_path, step, {"model": {}}, {})
            format.prune(tmp_path, 1)
        return real(path)

    monkeypatch.setattr(format, "verify", late)
    assert {name: wrong for name, (_, wrong) in format.verify_all(tmp_path).items()} == {"step-00000004": None}
    found, damaged = format.newest(tmp_path)
    assert (found.step, damaged) == (4, {})


def test_a_run_from_elsewhere_downloads_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(
        "{epochs: 1, batch_size: 8, model: small_cnn, optimizer: {name: SGD, lr: 0.1}, "
        "dataset: {name: CIFAR10, root: elsewhere, download: true}}"
    )
    for config in (
        start_from_run(tmp_path, None, trust=False),
        start_fit(None, None, tmp_path, resume=True)[0].config,
    ):
        assert config.dataset.model_dump()["download"] is False
    assert start_from_run(tmp_path, ["dataset.download=true"], trust=False).dataset.model_dump()["download"] is True
