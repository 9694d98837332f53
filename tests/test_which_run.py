"""Which run is begun, gone on with, or begun again by torchrun."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from lrtrain.commands.start import start_fit
from lrtrain.errors import EnvironmentFault, RunDirError
from lrtrain.sinks.run_dir import ORIGIN, RunDir, check_free, create, latest, mark_begun
from lrtrain.sinks.status import Status
from lrtrain.world import World, from_environment
from tests.test_engine import job

HERE, SELF, NOBODY = socket.gethostname(), "ours", 2**22 + 1  # above the most that Linux gives
CONFIG = "{epochs: 1, batch_size: 8, model: small_cnn, optimizer: {name: SGD, lr: 0.1}, dataset: digits}"


def test_what_torchrun_starts_again_goes_on_with_its_own_run_alone(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    begun, again = World(0, 2, 0, 0, "x"), World(0, 2, 0, 1, "x")

    def resumed() -> RunDir | None:
        return start_fit(tmp_path / "c.yaml", None, run.path, resume=False, world=again)[1]

    mark_begun(run, begun, [begun.launch])
    assert resumed() is None  # it was killed before it wrote its config, and begins
    run.config.write_text(CONFIG)
    assert resumed() == run
    (tmp_path / "c.yaml").write_text("epochs: [")  # is being edited for the next run
    assert resumed() == run
    (tmp_path / "c.yaml").write_text(CONFIG)
    for other in (World(0, 2, 0, 0, "y"), again):  # another torchrun's, and what this start has just begun itself
        mark_begun(run, other, [other.launch])
        with pytest.raises(RunDirError, match="is not empty"):
            resumed()


def test_what_torchrun_starts_again_goes_on_with_no_run_that_was_begun_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lrtrain.yaml").write_text(CONFIG)
    for launch in ("x", "y"):
        run = create(None, "lrtrain")
        run.config.write_text(ORIGIN.format("lrtrain.yaml", "1.0") + CONFIG)
        mark_begun(run, World(0, 2, 0, 0, launch), [launch])
    for launch, name in (("x", "runs/lrtrain"), ("y", "runs/lrtrain-2")):
        for resume in (False, True):
            again = World(0, 2, 0, 1, launch)
            assert str(start_fit(None, None, None, resume=resume, world=again)[1]) == name


def test_what_torchrun_starts_again_finds_its_images_where_this_machine_has_them(tmp_path: Path) -> None:
    config = "{epochs: 1, batch_size: 8, model: small_cnn, optimizer: {name: SGD, lr: 0.1}, workers: 1, dataset: %s}"
    here, leaders = tmp_path / "here", tmp_path / "leaders"
    here.mkdir()
    (tmp_path / "c.yaml").write_text(config % f"{{name: imagefolder, root: {here}}}")
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.config.write_text(config % f"{{name: imagefolder, root: {leaders}}}")
    mark_begun(run, World(0, 2, 0, 0, "x"), ["x"])

    def found(*overrides: str) -> tuple[str | None, int]:
        again = World(1, 2, 0, 1, "x")
        started = start_fit(tmp_path / "c.yaml", overrides, run.path, resume=False, world=again)[0].config
        return started.dataset.root, started.workers

    assert found() == (str(here), 1)
    assert found("dataset.root=there", "workers=3", "epochs=9") == ("there", 3)
    (tmp_path / "c.yaml").write_text("epochs: [")
    assert found() == (str(leaders), 1)
    leaders.mkdir()
    (tmp_path / "c.yaml").write_text(config % "{name: imagefolder, root: edited}")
    assert found() == (str(leaders), 1)


def test_launches_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in {**numbers, "TORCHELASTIC_RUN_ID": "job7"}.items():
        monkeypatch.setenv(name, value)
    for file, launch in {
        "/tmp/torchelastic_a/job7_b/attempt_0/0/error.json": "job7_b",
        "/tmp/torchelastic_a/job7_b/attempt_1/3/error.json": "job7_b",
        "/tmp/torchelastic_c/job7_d/attempt_0/0/error.json": "job7_d",
        "/elsewhere/error.json": str(os.getppid()),
    }.items():
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
        assert from_environment().launch == f"{HERE} {launch}"


def test_the_newest_run_of_a_config_is_not_that_of_another_whose_name_ends_in_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = [(name, f"{name}.yaml") for name in ("b", "b-1", "b-01", "a-02", "a-002")]
    for run, config in (("a", "a.yaml"), ("a-2", "sub/a.yaml"), ("a-3", "a-2.yaml"), ("a-2-2", "a-2.yaml"), *others):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(ORIGIN.format(config, "1.0") + "epochs: 1\n")
    assert str(latest("a")) == "runs/a-2"
    assert str(latest("a-2")) == "runs/a-2-2"
    assert all(str(latest(name)) == f"runs/{name}" for name, _ in others)
    assert latest("a-3") is None
    (tmp_path / "runs" / "a-4").mkdir()  # killed before it wrote its config
    assert str(latest("a")) == "runs/a-4"
    began = World(0, 2, 0, 0, "job7")
    mark_begun(RunDir(tmp_path / "runs" / "a"), began, [began.launch])
    assert str(latest("a", World(0, 2, 0, 1, "job7"))) == "runs/a"
    assert latest("a", World(0, 2, 0, 1, "job8")) is None


def test_the_newest_run_is_the_one_that_began_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what each says of itself: a number may be a person's, and a copy's files are of any time."""
    monkeypatch.chdir(tmp_path)
    state = job(steps=1).state

    def begin(out: str | None) -> RunDir:
        run = create(out and Path(out), "a")
        run.config.write_text(ORIGIN.format("a.yaml", "1.0") + "epochs: 1\n")
        Status(run, state, "acc1")
        return run

    runs = [begin(f"runs/{name}") for name in ("a-10", "a", "a-3")]
    assert latest("a") == runs[2]
    Status(runs[0], state, "acc1").write("done", 0)
    assert latest("a") == runs[2]
    shutil.rmtree(runs[2].path)
    assert latest("a") == runs[1]
    for said in ("null", "3", '"soon"', '"9999-99-99T99:99"'):  # an earlier lrtrain's run says nothing
        runs[1].status.write_text(f'{{"begun": {said}}}')
        assert latest("a") == runs[0]
    for run in runs:
        shutil.rmtree(run.path, ignore_errors=True)
    assert [begin(None).path.name for _ in range(3)] == ["a", "a-2", "a-3"]
    shutil.rmtree("runs/a")  # whose number is free again
    assert str(begin(None)) == str(latest("a")) == "runs/a"


def test_no_run_is_begun_among_the_checkpoints_of_another(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    check_free(run.checkpoints / "x")  # anybody's
    (run.checkpoints / ".lock").touch()
    run.config.touch()
    for out in (run.checkpoints / "step-00000009", run.checkpoints / "x" / "y"):
        with pytest.raises(RunDirError, match=r"is among the checkpoints of the run '.*/run'"):
            check_free(out)
    check_free(run.path / "sub")
    check_free(run.checkpoints / ".." / ".." / "other")
    run.config.unlink()
    (run.checkpoints / "step-1.ckpt").touch()  # another program's
    check_free(run.checkpoints / "mine")


def test_a_folder_that_no_run_can_be_made_in_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_free(None)
    Path("runs").mkdir()
    check_free(None)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "runs")
    with pytest.raises(EnvironmentFault, match="the run directory cannot be made: Permission denied"):
        check_free(None)
    Path("runs").rmdir()
    Path("runs").symlink_to("/mnt/not-there")
    with pytest.raises(EnvironmentFault, match="cannot be made: it leads to /mnt/not-there, which is not there"):
        check_free(None)
    Path("runs").unlink()
    Path("runs").touch()
    with pytest.raises(EnvironmentFault, match="the run directory cannot be made: Not a directory"):
        check_free(None)


def test_what_is_no_run_is_passed_over_and_one_on_a_disk_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(CONFIG)
    run = create(None, "a")
    run.config.write_text(ORIGIN.format("a.yaml", "1.0") + CONFIG)
    Path("runs/a-9").write_text("notes")
    assert start_fit(Path("a.yaml"), None, None, resume=True)[1] == run
    Path("runs/a-11").symlink_to("/mnt/gone")
    with pytest.raises(EnvironmentFault, match="the run is a link to '/mnt/gone', which is not there") as caught:
        start_fit(Path("a.yaml"), None, None, resume=True)
    assert caught.value.problems[0].where == "runs/a-11"
