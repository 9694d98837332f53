"""A run directory: who is said to hold it, and what `verify` lists of many checkpoints."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from lrtrain.checkpoint import folder, format, manifest
from lrtrain.commands import rollback, verify
from lrtrain.commands.kept import naming_kept
from lrtrain.commands.signals import Requests
from lrtrain.commands.start import again, start, start_fit, start_from_run
from lrtrain.engine import events
from lrtrain.engine.events import Evaluated, Evaluating, Logged, SaveDue, Stepped
from lrtrain.engine.finite import NotFinite, Trouble
from lrtrain.errors import CheckpointError, EnvironmentFault, RunDirError
from lrtrain.sinks import jsonl
from lrtrain.sinks.checkpoints import point_again
from lrtrain.sinks.console import Screen
from lrtrain.sinks.jsonl import Metrics, Timing, rows
from lrtrain.sinks.lock import locked
from lrtrain.sinks.patience import Patience
from lrtrain.sinks.run_dir import RunDir, check_free, is_run, refuse_other_files
from lrtrain.sinks.status import Status
from lrtrain.world import World
from lrtrain.writing import write_atomically
from tests.test_engine import job

# Logs that are made without the command that closes them.
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


def test_a_save_after_a_fault_of_another_process_leaves_the_run_failed(tmp_path: Path) -> None:
    state = SimpleNamespace(best=SimpleNamespace(value=None, step=0), step=7)
    status = Status(RunDir(tmp_path), state, "acc1")  # type: ignore[arg-type]
    status.write("failed", 8, "process 1 of 2 ended")
    state.step = 8
    status(SaveDue(8, best=False))
    found = json.loads((tmp_path / "status.json").read_text())
    assert [found[key] for key in ("state", "exit_code", "message", "step")] == ["failed", 8, "process 1 of 2 ended", 8]


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
        check_free(tmp_path)
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    with pytest.raises(RunDirError, match="is not empty"):
        check_free(tmp_path)


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


@pytest.mark.parametrize("kept", [b"", b'{"step": 1}', b"{}\n" * 9])
def test_a_log_that_is_cut_or_written_anew_in_its_place_is_noticed(tmp_path: Path, kept: bytes) -> None:
    log = Metrics(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        log.note({"step": step})
        log(SaveDue(step, best=False))
    (tmp_path / "metrics.jsonl").write_bytes(kept)
    log.note({"step": 3})
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match="was cut or changed while training"):
            log(SaveDue(3, best=False))
    assert log.safe()["log_bytes"] == {"metrics.jsonl": 24}
    with pytest.raises(EnvironmentFault, match="was cut or changed while training"):
        log.refuse_changed()  # as before training goes back


def test_a_config_beside_any_checkpoints_is_no_run(tmp_path: Path) -> None:
    for name in ("config.yaml", "mine.yaml"):
        (tmp_path / name).write_text("model: small_cnn")
    (tmp_path / "checkpoints").mkdir()
    assert not is_run(tmp_path)
    (tmp_path / "curve.csv").touch()
    assert is_run(tmp_path)
    (tmp_path / "curve.csv").unlink()
    for left in ("timing.jsonl", "checkpoints/last.json", "checkpoints/.lock"):
        (tmp_path / left).touch()
        assert is_run(tmp_path)
        (tmp_path / left).unlink()
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").symlink_to("gone")
    assert is_run(tmp_path)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints" / "step-00000000").mkdir(parents=True)
    assert is_run(tmp_path)


@pytest.mark.parametrize("later", [False, True])
def test_a_log_that_is_edited_to_the_same_length_is_noticed(tmp_path: Path, later: bool) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Metrics(path)
    log.note({"step": 1})
    log(SaveDue(1, best=False))
    time.sleep(0.02)  # a kernel's clock of files ticks a hundred times a second or more
    path.write_bytes(b'{"step": 7}\n')
    if later:
        log.note({"step": 2})
    with pytest.raises(EnvironmentFault, match="was cut or changed while training"):
        log(SaveDue(2, best=False))


@pytest.mark.parametrize("at", [1, 2])
def test_a_log_that_was_only_touched_is_this_runs_still(tmp_path: Path, at: int) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Metrics(path)
    for step in (1, 2):
        log.note({"step": step})
        if step == at:
            os.utime(path)
        log(SaveDue(step, best=False))
    log.note({"step": 3})
    log(SaveDue(3, best=False))
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert log.safe()["log_sha256"] == {"metrics.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("fails", ["os.fsync", "lrtrain.sinks.jsonl._write"])
def test_rows_that_a_file_system_took_and_lost_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """As over a network, where there is no more room: the kernel says so once, later, and drops what it had taken."""
    path = tmp_path / "metrics.jsonl"
    log = Metrics(path)
    log.note({"step": 1})
    log(SaveDue(1, best=False))
    for step in (2, 3):
        log.note({"step": step})
    os.truncate(path, 20)
    full = OSError(errno.EDQUOT, "Disk quota exceeded")
    with monkeypatch.context() as failing:
        failing.setattr(fails, Mock(side_effect=full))
        with pytest.raises(EnvironmentFault, match="quota") as caught:
            log(SaveDue(3, best=False)) if fails == "os.fsync" else log.note({"step": 4})
    assert caught.value.__cause__ is full
    log.note({"step": 4})
    log(SaveDue(4, best=False))
    text = path.read_bytes()
    assert text == b"".join(b'{"step": %d}\n' % step for step in (1, 2, 3, 4))
    assert log.safe() == {
        "log_bytes": {path.name: len(text)},
        "log_sha256": {path.name: hashlib.sha256(text).hexdigest()},
    }
    log._file.close()  # the error that was caught holds it


def test_logs_that_are_hard_links_are_copied_before_they_are_written(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "timing.jsonl"):
        (tmp_path / name).write_text("1\n2\n")
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / name).hardlink_to(tmp_path / name)
    log = Metrics(tmp_path / "copy" / "metrics.jsonl", keep=2)
    log.note({"event": "train", "step": 1})
    log(SaveDue(1, best=False))
    timing = Timing(tmp_path / "copy" / "timing.jsonl")
    timing(events.Logged(1, 1.0, {"default": 0.1}, 1.0))
    assert [(tmp_path / name).read_text() for name in ("metrics.jsonl", "timing.jsonl")] == ["1\n2\n"] * 2
    assert log.safe()["log_bytes"] == {"metrics.jsonl": 2 + len('{"event": "train", "step": 1}\n')}
    assert (tmp_path / "copy" / "metrics.jsonl").read_text() == '1\n{"event": "train", "step": 1}\n'
    assert (tmp_path / "copy" / "timing.jsonl").read_text().startswith("1\n2\n{")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["metrics.jsonl", "timing.jsonl"]


def test_what_a_run_deletes_meanwhile_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `verify` and `evaluate` may find a run that goes on."""
    saved, real = iter(range(2, 9)), format.verify
    format.write(tmp_path, 1, {"model": {}}, {})

    def late(path: Path) -> format.Checkpoint:
        if (step := next(saved)) < 5:  # the run saves another one, and deletes this
            format.write(tmp_path, step, {"model": {}}, {})
            folder.prune(tmp_path, 1)
        return real(path)

    monkeypatch.setattr(format, "verify", late)
    assert {name: wrong for name, (_, wrong) in format.verify_all(tmp_path).items()} == {"step-00000004": None}
    found, damaged = format.newest(tmp_path)
    assert (found.step, damaged) == (4, {})


@pytest.mark.parametrize("given", ["download: true", "splits: {train: {download: true}, val: {train: false}}"])
def test_a_run_from_elsewhere_downloads_nothing(tmp_path: Path, given: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(
        "{epochs: 1, batch_size: 8, model: small_cnn, optimizer: {name: SGD, lr: 0.1}, "
        f"dataset: {{name: CIFAR10, root: elsewhere, {given}}}}}"
    )
    (tmp_path / "status.json").write_text("{}")
    for config in (
        start_from_run(tmp_path, None, trust=False),
        start_fit(None, None, tmp_path, resume=True)[0].config,
        start(path, None).config,
    ):
        assert "'download': False" in str(config.dataset.args)
        assert "'download': True" not in str(config.dataset.args)
    for other in ("dataset.root=downloads", "batch_size=6 # download"):
        assert "'download': True" not in str(start_from_run(tmp_path, [other], trust=False).dataset.args)
    for asked in ("dataset.download=true", "dataset={name: CIFAR10, root: x, download: true}"):
        assert "'download': True" in str(start_from_run(tmp_path, [asked], trust=False).dataset.args)
    asked = "dataset.splits.train.download=true"
    assert "'train': {'download': True" in str(start_from_run(tmp_path, [asked], trust=False).dataset.args)


def test_a_lock_that_is_a_link_makes_a_folder_none_to_begin_in(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    check_free(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(RunDirError, match="is not empty"):
        check_free(tmp_path / "run")


def test_going_back_to_the_beginning_leaves_no_best(tmp_path: Path) -> None:
    format.write(tmp_path, 0, {"model": {}}, {})
    folder.point(tmp_path, "best", format.write(tmp_path, 4, {"model": {}}, {}))
    folder.drop_after(tmp_path, 0, None)
    assert not (tmp_path / "best.json").exists()


def test_an_evaluation_is_looked_for_in_what_was_logged_before_the_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"event": "eval", "step": 3, "loss": 1.0}\n')
    for length, found in ((0, []), (log.stat().st_size, [{"event": "eval", "step": 3, "loss": 1.0}])):
        path = format.write(tmp_path, 3, {"model": {}}, {"log_bytes": {log.name: length}})
        assert list(rows(log, format.open_checkpoint(path), "eval", 3)) == found
        assert list(rows(log, format.open_checkpoint(path), "eval", 2)) == []


def test_a_wish_to_save_does_not_end_the_wait_for_room() -> None:
    full = [errno.ENOSPC, errno.ENOSPC]

    def write() -> None:
        if full:
            raise EnvironmentFault("full") from OSError(full.pop(), "")

    requests = Requests(World())
    requests.begin()
    requests.on_signal(signal.SIGUSR2, None)
    Patience(60, lambda _: None, requests.stop)(write)
    full.append(errno.ENOSPC)
    requests.on_signal(signal.SIGTERM, None)
    with pytest.raises(EnvironmentFault, match="full"):
        Patience(60, lambda _: None, requests.stop)(write)


def test_the_best_is_pointed_to_where_it_is_there_and_nowhere_else(tmp_path: Path) -> None:
    best = {"value": 0.5, "step": 2, "stale": 0}
    path = format.write(tmp_path, 2, {"model": {}}, {"best": best})
    assert point_again(tmp_path, format.open_checkpoint(path)) is None
    assert (folder.pointed(tmp_path, "last"), folder.pointed(tmp_path, "best")) == (path, path)
    path = format.write(tmp_path, 3, {"model": {}}, {"best": {**best, "step": 1}})
    assert point_again(tmp_path, format.open_checkpoint(path)) == "step-00000001"
    assert (folder.pointed(tmp_path, "last"), folder.pointed(tmp_path, "best")) == (path, None)


def test_the_best_of_a_checkpoint_stays_as_long_as_that_one(tmp_path: Path) -> None:
    """Training may go back to it, and has its best again."""
    for step, best in ((4, 4), (8, 4), (12, 12), (16, 12)):
        said = {"best": {"value": 0.5, "step": best, "stale": 0}}
        path = format.write(tmp_path, step, {"model": {}}, said)
        folder.point(tmp_path, "last", path)
        if step == best:
            folder.point(tmp_path, "best", path)
        folder.prune(tmp_path, 2)
        if step == 12:
            assert [path.name[-2:] for path in format.steps(tmp_path)] == ["04", "08", "12"]
    assert [path.name[-2:] for path in format.steps(tmp_path)] == ["12", "16"]
    shutil.rmtree(tmp_path / "step-00000016")
    (tmp_path / "step-00000012" / "manifest.json").write_text("{")
    folder.prune(tmp_path, 2)  # what cannot be read names no best


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT])
def test_what_cannot_be_read_now_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = format.write(tmp_path, 1, {"model": {}}, {})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for module, name in ((manifest, "read_bytes"), (format, "opened"), (format.os, "listdir")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            for look in (lambda: format.newest(tmp_path), lambda: format.verify_all(tmp_path)):
                with pytest.raises(EnvironmentFault, match=os.strerror(number)):
                    look()
    assert format.newest(tmp_path)[0].path == path


def test_a_pointer_that_moved_while_verify_looked_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "metrics.jsonl"
    log.touch()
    said = {"log_bytes": {log.name: 0}, "log_sha256": {log.name: hashlib.sha256().hexdigest()}}
    root, real = tmp_path / "checkpoints", format.verify_all
    format.write(root, 1, {"model": {}}, said)

    def then_saved(*arguments: Any) -> Any:
        found = real(*arguments)
        folder.point(root, "last", format.write(root, 2, {"model": {}}, said))
        return found

    monkeypatch.setattr(format, "verify_all", then_saved)
    verify.run(tmp_path)
    assert "it is whole" in capsys.readouterr().out


@pytest.mark.parametrize(("path", "typed"), [("runs/c", "runs/c"), ("my run", "'my run'"), ("--z", "./--z")])
def test_a_run_is_named_as_it_is_typed(path: str, typed: str) -> None:
    assert RunDir(Path(path)).typed == typed


def test_that_training_diverged_is_said_though_the_report_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, run = job(steps=3), RunDir(tmp_path)
    run.checkpoints.mkdir()
    format.write(run.checkpoints, 0, {"model": {}}, {})

    def full(*_: object) -> None:
        raise EnvironmentFault("nonfinite.json could not be written: No space left on device")

    monkeypatch.setattr(rollback, "write_atomically", full)
    trouble = NotFinite(Trouble(1, {"default": 0.1}, math.nan, {}, "why", ()))
    with pytest.raises(NotFinite, match="step-00000000; no report: nonfinite"):
        rollback.roll_back(made, run, trouble, Screen())


def test_a_planted_link_or_pipe_in_a_temporary_files_place_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".a.json.tmp").symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / ".b.json.tmp")
    for name in ("a.json", "b.json"):
        write_atomically(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "victim").read_text() == "precious"
    (tmp_path / ".c.json.tmp").mkdir()
    with pytest.raises(EnvironmentFault, match=r"c\.json could not be written(.|\n)*at +.*/\.c\.json\.tmp"):
        write_atomically(tmp_path / "c.json", "new")


def test_images_per_second_are_of_the_time_that_was_spent_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation before the first logged step is not as slow as the training before it, nor is training after it."""
    times = iter([0.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr(jsonl.time, "perf_counter", lambda: next(times))
    timing = Timing(tmp_path / "timing.jsonl")
    lrs, metrics = {"default": 0.1}, events.Metrics(40, 1.0, 0.5, 0.9)
    timing(Stepped(1, 90))
    for done in (0, 20, 40):
        timing(Evaluating(done, 40))
    timing(Evaluated(1, 1.0, "val", metrics, 1.0, best=True))
    timing(Stepped(2, 90))
    timing(Logged(2, 2.0, lrs, 1.0))
    said = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [(row["event"], row["images_per_s"]) for row in said] == [("eval", 20.0), ("train", 10.0)]


@pytest.mark.parametrize("lose", [lambda lock: lock.unlink(), lambda lock: (lock.unlink(), lock.touch())])
def test_a_run_whose_lock_is_lost_writes_nothing_more(tmp_path: Path, lose: Any) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    with locked(run) as still_ours:
        still_ours(SaveDue(3, best=False))
        lose(run.checkpoints / ".lock")
        with pytest.raises(EnvironmentFault, match="lock was removed or replaced"):
            still_ours(SaveDue(4, best=False))


def test_a_file_system_that_goes_away_is_said_with_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()

    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    log = Mock(seek=gone)
    words = r"metrics\.jsonl could not be written: Stale(.*\n)+.*mount it again(.*\n)+.*what was saved there is kept"
    monkeypatch.setattr("filelock.FileLock.release", gone)
    with pytest.raises(EnvironmentFault, match=words), naming_kept(run, "lrtrain fit --resume"), locked(run):
        jsonl.append(log, run.metrics, {})


def test_what_goes_while_a_run_is_looked_through_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    run.config.write_text("")
    listed = Path.iterdir

    def and_gone(folder: Path) -> Any:
        yield from listed(folder)
        yield folder / ".status.json.tmp"

    monkeypatch.setattr(Path, "iterdir", and_gone)
    refuse_other_files(run)


def test_a_copy_that_shares_the_checkpoints_of_its_run_does_not_train_on(tmp_path: Path) -> None:
    first, copy, handed = (RunDir(tmp_path / name) for name in ("first", "copy", "handed"))
    disk = tmp_path / "disk"
    disk.mkdir()
    first.path.mkdir()
    first.config.write_text("")
    first.curve.write_text("")
    first.checkpoints.symlink_to(disk)
    with locked(first):
        Status(first, job().state, "acc1")
    shutil.copytree(first.path, copy.path, symlinks=True)
    with pytest.raises(CheckpointError, match=r"these are the checkpoints of the run '.*first', and"), locked(copy):
        pass
    with locked(first):
        pass
    first.path.rename(tmp_path / "moved")
    with locked(RunDir(tmp_path / "moved")):
        pass
    shutil.copytree(tmp_path / "moved", tmp_path / "late", symlinks=True)
    with pytest.raises(CheckpointError, match="copy of the run that was"), locked(RunDir(tmp_path / "late")):
        pass
    shutil.copytree(tmp_path / "late", first.path, symlinks=True)  # restored where it was
    with locked(first):
        pass
    shutil.rmtree(first.path)
    first.path.mkdir()
    with pytest.raises(CheckpointError, match='remove "inode" from status'), locked(RunDir(tmp_path / "late")):
        pass
    shutil.copytree(tmp_path / "moved", handed.path)  # with what the link leads to
    with locked(handed):
        pass
    apart = RunDir(tmp_path / "apart")
    shutil.copytree(tmp_path / "moved", apart.path, symlinks=True)
    shutil.copytree(disk, tmp_path / "another disk")
    apart.checkpoints.unlink()
    apart.checkpoints.symlink_to(tmp_path / "another disk")
    with locked(apart):
        pass
    shutil.rmtree(handed.checkpoints)
    handed.status.unlink()
    victim = RunDir(tmp_path / "victim")
    victim.checkpoints.mkdir(parents=True)
    victim.config.write_text("")  # of any project
    handed.checkpoints.symlink_to(victim.checkpoints)
    with locked(handed):
        pass
    victim.curve.write_text("")
    with pytest.raises(CheckpointError, match=r"of the run '.*victim'"), locked(handed):
        pass


def test_folders_that_are_no_checkpoints_may_hold_folders(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    for other in (run.checkpoints / "lost+found", run.path / ".git"):
        (other / "inner").mkdir(parents=True)
    refuse_other_files(run)
    (run.checkpoints / "step-00000001" / "inner").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="a checkpoint holds files, and 'inner' is a folder"):
        refuse_other_files(run)


def test_the_command_that_goes_on_trusts_the_runs_code_where_it_names_some(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "model: small_cnn\ndataset: {name: FakeData, val_fraction: 0.1}\nbatch_size: 8\nepochs: 1\n"
        "optimizer: {name: SGD, lr: 0.1}\n"
    )
    ours = start(tmp_path / "c.yaml", None).config
    mine = start(tmp_path / "c.yaml", ["model.name=mine:net"]).config
    run = RunDir(Path("runs/a b"))
    assert [again(run, config) for config in (mine, ours)] == [
        "lrtrain fit --resume --out 'runs/a b' --trust",
        "lrtrain fit --resume --out 'runs/a b'",
    ]
