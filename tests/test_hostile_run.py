"""Run directories that were edited, or hold what no run leaves: refused, and nothing in them or elsewhere changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from lrtrain import foreign
from lrtrain.checkpoint import folder, format
from lrtrain.engine.state import restore, snapshot
from lrtrain.engine.train import train
from lrtrain.errors import CheckpointError, EnvironmentFault
from lrtrain.schedule.segments import segment
from lrtrain.sinks.jsonl import refuse_other_log
from tests.conftest import Ended
from tests.forked import environment
from tests.hostile import Typed, assert_clear
from tests.shards.making import samples, shard
from tests.test_engine import job
from tests.test_hostile_checkpoint import manifest_of, rewrite, trained, typed

__all__ = ["trained", "typed"]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
RESUME = ("fit", "--resume", "--out", "run")


def edit(old: str, new: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        text = (run / "config.yaml").read_text()
        assert old in text
        (run / "config.yaml").write_text(text.replace(old, new))

    return change


def test_modules_that_lie_in_a_run_directory_are_not_run(tmp_path: Path) -> None:
    """`python -m` looks in the working folder first; code of one's own is found there, after what is installed."""
    for name in ("signal", "typer", "yaml", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(99)")
    (tmp_path / "mine.py").write_text(
        "from torch.optim.lr_scheduler import LambdaLR\n\ndef half(optimizer):\n    return LambdaLR(optimizer, lambda t: 0.5)"
    )
    (tmp_path / "c.yaml").write_text(
        "{epochs: 1, batch_size: 64, model: small_cnn, dataset: digits, optimizer: {name: SGD, lr: 1.0},"
        " schedule: {name: 'mine:half', every: step}}"
    )
    command = [sys.executable, "-m", "lrtrain", "preview", "c.yaml", "--at", "2step"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "0.5" in ended.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("lr: 0.05", "lr: 0.5"), ("optimizer.lr is 0.5 in config.yaml, and was 0.05 when step-00000004",)),
        (edit("seed: 0", "seed: 1"), ("seed is 1",)),
        (edit("steps: 4", "steps: 8"), ("steps is 8", "put the value back", "lrtrain fit run/config.yaml --out DIR")),
        (edit("ema: 0.9", "mixup: 0.2"), ("ema is 'absent'", "mixup is 0.2")),
        (
            lambda run: (run / "config.yaml").write_text(
                (run / "config.yaml").read_text() + "extended: [{policy: hold, at: 2, steps: 9}]\n"
            ),
            ("extended is",),
        ),
    ],
)
def test_a_config_edited_in_the_run_directory_is_refused(
    typed: Typed, tmp_path: Path, change: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    """Else it would be compared with itself, and other bits would come out."""
    change(tmp_path / "run")
    assert_clear(typed(*RESUME), 2, "config.yaml:", *words)
    # Nor does it help that the config is named.
    assert_clear(typed("fit", "c.yaml", "--resume", "--out", "run"), 2)


def test_the_run_of_a_config_is_found_where_other_checkpoints_lie_beside_it(typed: Typed, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "run", tmp_path / "runs" / "c")
    (tmp_path / "checkpoints").mkdir()
    for config in ("c.yaml", "runs/c/config.yaml"):
        ended = typed("fit", config, "--resume")
        assert (ended.code, "already complete" in ended.out) == (0, True), ended.err


def test_what_no_result_depends_on_may_be_edited_there_too(typed: Typed, tmp_path: Path) -> None:
    edit("workers: 0", "workers: 1")(tmp_path / "run")
    edit("keep: 2", "keep: 5")(tmp_path / "run")
    ended = typed(*RESUME)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    "name", ["timing.jsonl", "metrics.jsonl", ".status.json.tmp", "checkpoints/.tmp-last.json", "x"]
)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")], ids=["pipe", "link"])
def test_a_run_with_a_pipe_or_link_in_it_is_not_gone_on_with(
    typed: Typed, tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True)
    make(path)
    assert_clear(typed(*RESUME), 4, "a run", name.split("/")[-1], "remove")


@pytest.mark.parametrize("name", [".old-step-00000003", ".bad-step-00000005", ".tmp-00000004-17", ".tmp-step-00000004"])
def test_a_file_where_a_folder_is_expected_is_got_over(typed: Typed, tmp_path: Path, name: str) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / name).write_text("x")
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000005")
    ended = typed(*RESUME)
    assert ended.code == 0, ended.err
    assert "step-00000005 is damaged" in ended.out
    assert (checkpoints / ".bad-step-00000005").is_dir()
    assert {path.name for path in checkpoints.glob(".*")} == {".bad-step-00000005", ".lock"}


@pytest.mark.parametrize(
    "name", ["step-000000004", "step-4", "step-00000004x", "step-9999999999999999", "step-00000000\n"]
)
def test_only_the_exact_name_of_a_step_is_a_checkpoint(typed: Typed, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / "checkpoints" / name).mkdir()
    ended = typed(*RESUME)
    assert ended.code == 0, ended.err
    assert "damaged" not in ended.out


def test_nothing_is_swept_out_of_a_folder_that_checkpoints_links_to(typed: Typed, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    kept = [".tmp-work", ".tmp-notes.json", ".old-thing", ".tmp-00000004", ".old-step-x", ".bad-step-00000009"]
    for name in kept:
        (theirs / name).write_text("precious")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.rmtree(checkpoints)
    checkpoints.symlink_to(theirs)
    assert_clear(typed(*RESUME), 4, "no checkpoint to go on from")
    assert {path.name for path in theirs.iterdir()} == {*kept, ".lock"}


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(typed: Typed, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert_clear(typed(*RESUME), 4, "there is no checkpoint to go on from", "--resume")


def test_a_file_system_that_refuses_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (".tmp-00000004-17", ".bad-step-00000004", "step-00000004"):
        (tmp_path / name).mkdir()

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", "model.safetensors")

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(EnvironmentFault, match=f"cannot be put in order: Permission denied\n  at   {tmp_path}"):
        folder.set_aside_after(tmp_path, 3)
    folder.sweep(tmp_path)  # what nothing counts may stay


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"classes": ["\udcff"]}, "classes.0"),
        ({"classes": ["x" * 10_001]}, "classes.0"),
        ({"classes": [f"{i:0200}" for i in range(50_000)]}, "would have 10,300,"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, manifest: dict[str, object], words: str) -> None:
    format.write(tmp_path, 3, {"model": {"w": torch.zeros(1)}}, {})
    with pytest.raises(CheckpointError, match=words):
        format.write(tmp_path, 4, {"model": {"w": torch.ones(1)}}, manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert format.newest(tmp_path)[0].step == 3


def test_a_run_stopped_early_is_not_extended(typed: Typed, tmp_path: Path) -> None:
    text = (tmp_path / "c.yaml").read_text().replace("steps: 4", "steps: 12")
    (tmp_path / "c.yaml").write_text(
        text + "early_stop: {monitor: train_loss, patience: 1, min_delta: 9}\neval_every: 2step\n"
    )
    assert typed("fit", "c.yaml", "--out", "early").code == 0
    assert "stopped early" in (tmp_path / "early" / "status.json").read_text()
    extend = ("fit", "c.yaml", "--resume", "--extend", "hold", "--set", "steps=20", "--out", "early")
    assert_clear(typed(*extend), 2, "was stopped early, at step 4", "begin another run with more patience than 1")


def test_a_run_that_has_saved_nothing_is_not_extended(typed: Typed, tmp_path: Path) -> None:
    """As a kill right after its directory was made leaves it."""
    (tmp_path / "none" / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "run" / "config.yaml", tmp_path / "none")
    extend = ("fit", "c.yaml", "--resume", "--extend", "hold", "--set", "steps=6", "--out", "none")
    assert_clear(typed(*extend), 2, "had not saved anything yet, so there is nothing to extend", "--resume --out none")


@pytest.mark.parametrize(
    "extensions",
    [[("hold", 5 + i) for i in range(101)], [("rescale", 9_000_000 + i) for i in range(30)]],
    ids=["many", "long"],
)
def test_a_run_that_says_that_it_was_extended_for_ever_is_not_planned(
    typed: Typed, tmp_path: Path, extensions: list[tuple[str, int]]
) -> None:
    written = ", ".join(f"{{policy: {policy}, at: 4, steps: {steps}}}" for policy, steps in extensions)
    with open(tmp_path / "run" / "config.yaml", "a") as file:
        file.write(f"extended: [{written}]\n")
    words = "a run is extended 100 times at most, and by rescale and restart for 20,000,000 steps together"
    assert_clear(typed("preview", "run/config.yaml"), 2, words, "begin another run")


def test_the_same_extension_again_goes_on_with_it(typed: Typed, tmp_path: Path) -> None:
    """As after an interruption, where the same command is what one types."""
    extend = ("fit", "c.yaml", "--resume", "--extend", "hold", "--set", "steps=6", "--out", "run")
    assert typed(*extend).code == 0
    last = tmp_path / "run" / "checkpoints" / "step-00000006"
    whole = (last / "model.safetensors").read_bytes()
    shutil.copytree(last, tmp_path / "kept")
    again = typed(*extend)
    assert again.code == 0, again.err
    assert "already complete" in again.out
    # Killed after config.yaml was written, before any checkpoint of the longer run.
    shutil.rmtree(last)
    again = typed(*extend)
    assert again.code == 0, again.err
    assert (last / "model.safetensors").read_bytes() == whole
    assert json.loads((last / "manifest.json").read_text())["config"]["extended"] == [
        {"policy": "hold", "at": 4, "steps": 6}
    ]


def test_an_extension_that_says_something_else_than_its_checkpoint_is_refused(typed: Typed, tmp_path: Path) -> None:
    extend = ("fit", "c.yaml", "--resume", "--extend", "hold", "--set", "steps=6", "--out", "run")
    assert typed(*extend).code == 0
    edit("policy: hold", "policy: restart")(tmp_path / "run")
    assert_clear(typed(*RESUME), 2, "extended is")
    rewrite(tmp_path / "run" / "checkpoints" / "step-00000006", total_steps=7)
    edit("policy: restart", "policy: hold")(tmp_path / "run")
    assert_clear(typed(*RESUME), 4, "total_steps is 7, and by its config the run has 6")


def test_an_extension_that_no_whole_checkpoint_has_is_gone_on_with_before_another(typed: Typed, tmp_path: Path) -> None:
    def extended(policy: str, steps: int) -> Ended:
        return typed("fit", "c.yaml", "--resume", "--extend", policy, "--set", f"steps={steps}", "--out", "run")

    assert extended("hold", 6).code == 0
    model = tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    assert_clear(extended("restart", 9), 2, "extended to 6 steps by hold already", "step-00000004 is older", "--resume")
    assert typed("fit", "c.yaml", "--resume", "--out", "run").code == 0
    assert extended("restart", 9).code == 0
    assert "at: 6" in (tmp_path / "run" / "config.yaml").read_text()


ROW = b'{"event": "train", "step": 9, "epoch": 0.1, "lr": {"default": 0.1}, "loss": 1.0}\n'


@pytest.mark.parametrize(
    ("edited", "words"),
    [
        (lambda log: log[:-40], "metrics.jsonl is shorter than the checkpoint says"),
        (lambda log: ROW + log, "metrics.jsonl is not this run's: it was changed"),
        (lambda log: log.replace(b'"acc1": 0.', b'"acc1": 1.'), "it was changed: the SHA-256 of its first"),
        (None, "metrics.jsonl is not there"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--extend", "hold", "--set", "steps=8")], ids=["resume", "extend"])
def test_a_log_of_something_else_is_refused_and_the_run_left_as_it_is(
    typed: Typed, tmp_path: Path, edited: Callable[[bytes], bytes] | None, words: str, more: tuple[str, ...]
) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    if edited is None:
        log.unlink()
    else:
        log.write_bytes(edited(log.read_bytes()))
    before = {file: file.read_bytes() for file in (tmp_path / "run").glob("*.*") if file.name != "status.json"}
    assert_clear(typed(*RESUME, *more), 4, words)
    assert before == {file: file.read_bytes() for file in before}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_log_that_is_no_file_is_damage(typed: Typed, tmp_path: Path, make: Callable[[Path], object]) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    log.unlink()
    make(log)
    ended = typed("verify", "run")
    assert_clear(ended, 4, "1 of 1 checkpoints are damaged")
    assert "metrics.jsonl cannot be read" in " ".join(ended.out.split())


def test_a_log_that_is_hardly_there_is_not_read_to_its_end(tmp_path: Path) -> None:
    (log := tmp_path / "metrics.jsonl").write_bytes(ROW)
    checkpoint = logged(tmp_path / "checkpoints", 9, log, len(ROW))
    os.truncate(log, size := 2**36)
    checkpoint.manifest["log_bytes"][log.name] = size
    with pytest.raises(CheckpointError, match="of its 68,719,476,736 bytes most were never written"):
        refuse_other_log(log, checkpoint)


@pytest.mark.parametrize(("most", "data", "holes", "refused"), [(2**19, 1, 3, True), (2**19, 3, 2, False), (2**30, 1, 3, False)])  # fmt: skip
def test_a_file_with_a_few_holes_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int, data: int, holes: int, refused: bool
) -> None:
    monkeypatch.setattr(foreign, "_MOST_HOLES", most)
    monkeypatch.setattr(foreign, "_holes", 0)
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * (data * 2**20))
        file.truncate((data + holes) * 2**20)
    with foreign.opened(tmp_path / "file") as file:
        file.seek(5)
        with pytest.raises(ValueError, match="it is a sparse file") if refused else nullcontext():
            foreign.refuse_holes(file)
        assert file.tell() == 5


def test_what_is_hardly_there_is_bounded_for_all_files_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(foreign, "_MOST_HOLES", 2**21)
    monkeypatch.setattr(foreign, "_holes", 0)
    for name, data, holes in (("half", 1, 1), ("empty", 0, 1)):
        with (tmp_path / name).open("wb") as file:
            file.write(b"x" * (data * 2**20))
            file.truncate((data + holes) * 2**20)
    with foreign.opened(tmp_path / "half") as half, foreign.opened(tmp_path / "empty") as empty:
        for _ in range(9):
            foreign.refuse_holes(half)  # as long as what is there
        foreign.refuse_holes(empty)
        foreign.refuse_holes(empty)
        with pytest.raises(ValueError, match="it is a sparse file"):
            foreign.refuse_holes(empty)
        foreign.refuse_holes(half)


def test_a_log_that_is_cut_after_an_earlier_checkpoint_costs_the_later_one_alone(typed: Typed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "c.yaml").write_text((tmp_path / "c.yaml").read_text().replace("steps: 4", "steps: 8"))
    assert (
        typed(
            "fit",
            "c.yaml",
            "--out",
            "longer",
            "--set",
            "checkpoint={every: 2step, keep: 9}",
            "--set",
            "log_every=1step",
        ).code
        == 0
    )
    run, checkpoints = tmp_path / "longer", tmp_path / "longer" / "checkpoints"
    log, model = run / "metrics.jsonl", checkpoints / "step-00000008" / "model.safetensors"
    whole = log.read_bytes(), model.read_bytes()
    earlier = sorted(checkpoints.glob("step-*"))[-2]
    log.write_bytes(whole[0][: manifest_of(earlier)["log_bytes"]["metrics.jsonl"] + 9])
    assert_clear(typed("verify", "longer"), 4, "1 of", f"goes on from {earlier.name}")
    curve = (run / "curve.csv").read_bytes()
    (run / "curve.csv").unlink()
    ended = typed("fit", "--resume", "--out", "longer")
    assert ended.code == 0, ended.err
    assert (run / "curve.csv").read_bytes() == curve
    assert "step-00000008 is damaged, the one before is used: metrics.jsonl is shorter" in " ".join(ended.out.split())
    assert whole == (log.read_bytes(), model.read_bytes())
    # What was logged from the beginning is not begun again.
    # `verify` promises no resume that would be refused.
    (earlier / "folder").mkdir()
    (checkpoints / "step-00000008" / "model.safetensors").write_bytes(b"")
    assert_clear(typed("verify", "longer"), 4, "'folder' is a folder; then", f"goes on from {earlier.name}")
    (earlier / "folder").rmdir()
    log.write_bytes(b"")
    assert_clear(typed("verify", "longer"), 4, "no other fits the log")
    assert_clear(
        typed("fit", "--resume", "--out", "longer"), 4, "every checkpoint is damaged", "metrics.jsonl is shorter"
    )


@pytest.mark.parametrize(
    ("edited", "words"),
    [
        (lambda log: log[:-9] + b" " * 9, "no row of it ends at byte"),
        (lambda log: bytes(len(log)), "metrics.jsonl is not this run's"),
        (
            lambda log: log.replace(b'"step": 4', b'"step": 7'),
            "is of step 7, after step 0, and the checkpoint of step 4",
        ),
        (lambda log: log.replace(b'"event": "eval"', b'"event": "evil"'), "is no row of it"),
    ],
)
def test_a_log_of_something_else_is_refused_though_the_manifest_says_that_it_is_this_one(
    typed: Typed, tmp_path: Path, edited: Callable[[bytes], bytes], words: str
) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_bytes(edited(log.read_bytes()))
    digest = hashlib.sha256(log.read_bytes()).hexdigest()
    rewrite(tmp_path / "run" / "checkpoints" / "step-00000004", log_sha256={"metrics.jsonl": digest})
    assert_clear(typed(*RESUME), 4, words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ema: 0.9", "mixup: 0.2", "ema is 'absent' in config.yaml"),
        ("lr: 0.05", "lr: 0.5", "optimizer.lr is 0.5"),
    ],
)
def test_a_run_whose_config_was_edited_is_not_evaluated(
    typed: Typed, tmp_path: Path, old: str, new: str, words: str
) -> None:
    edit(old, new)(tmp_path / "run")
    assert_clear(typed("evaluate", "run"), 2, words)


def test_a_checkpoint_of_a_newer_lrtrain_is_not_passed_over(typed: Typed, tmp_path: Path) -> None:
    steps = tmp_path / "run" / "checkpoints"
    shutil.copytree(steps / "step-00000004", steps / "step-00000003")
    rewrite(steps / "step-00000003", step=3)
    rewrite(steps / "step-00000004", version=2)
    assert_clear(typed(*RESUME), 4, "has format 2; this lrtrain reads 1", "take the lrtrain that wrote it")
    assert sorted(path.name for path in steps.glob("*step*")) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize(
    ("optimizer", "key", "value"),
    [
        ("Adam", "step", -1.0),
        ("Adam", "step", 0.5),
        ("RAdam", "step", 1e30),
        ("Adafactor", "step", -2.0),
        ("NAdam", "mu_product", -5.0),
        ("ASGD", "eta", -1.0),
        ("AdamW", "exp_avg_sq", -1.0),
    ],
)
def test_an_optimizers_numbers_that_no_training_arrives_at_are_refused(
    tmp_path: Path, optimizer: str, key: str, value: float
) -> None:
    made = job(steps=3, optimizer={"name": optimizer, "lr": 0.001}, checkpoint={"every": "1step"})
    for _ in train(made.state, made.plan, made.batches, made.recipe):
        pass
    parts, manifest = snapshot(made.state)
    restore(
        job(steps=3, optimizer={"name": optimizer, "lr": 0.001}).state,
        made.plan,
        _saved(tmp_path / "a", parts, manifest),
    )
    name = next(name for name in parts["optimizer"] if name.endswith(f"/{key}"))
    parts["optimizer"][name] = torch.full_like(parts["optimizer"][name], value)
    other = job(steps=3, optimizer={"name": optimizer, "lr": 0.001})
    with pytest.raises(CheckpointError, match="which no training of 3 steps arrives at"):
        restore(other.state, other.plan, _saved(tmp_path / "b", parts, manifest))


def _saved(root: Path, parts: dict[str, dict[str, torch.Tensor]], manifest: dict[str, Any]) -> format.Checkpoint:
    return format.open_checkpoint(format.write(root, 3, parts, manifest))


def logged(root: Path, step: int, log: Path, keep: int) -> format.Checkpoint:
    """A checkpoint from when so many bytes had been logged."""
    digest = hashlib.sha256(log.read_bytes()[:keep]).hexdigest()
    manifest = {"log_bytes": {log.name: keep}, "log_sha256": {log.name: digest}}
    return format.open_checkpoint(format.write(root, step, {"model": {}}, manifest))


@pytest.mark.parametrize(
    ("broken", "fits"),
    [(None, True), (3, False), (99_990, False), (50_000, True)],
    ids=["whole", "begin", "end", "middle"],
)
def test_of_a_long_log_beginning_and_end_are_looked_at(tmp_path: Path, broken: int | None, fits: bool) -> None:
    rows = [f'{{"event": "train", "step": {step}, "loss": 1.0}}' for step in range(100_000)]
    if broken is not None:
        rows[broken] = rows[broken].replace('"event"', '"evil"')
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(rows) + "\n" + "a row that was begun")
    keep = log.stat().st_size - len("a row that was begun")
    with nullcontext() if fits else pytest.raises(CheckpointError, match="is no row of it"):
        refuse_other_log(log, logged(tmp_path / "checkpoints", 100_000, log, keep))


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "curve.csv",
        "timing.jsonl",
        "status.json",
        "config.yaml",
        "checkpoints/last.json",
        "checkpoints/x",
    ],
)
def test_what_a_run_has_written_is_not_written_over(typed: Typed, tmp_path: Path, name: str) -> None:
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    for command in (
        ("evaluate", "run", "--json"),
        ("preview", "run/config.yaml", "--csv"),
        ("check", "c.yaml", "--json"),
    ):
        assert_clear(typed(*command, f"run/{name}"), 2, "would write over")
    (tmp_path / "link").symlink_to(f"run/{name}")
    assert_clear(typed("check", "c.yaml", "--json", "link"), 2, "would write over")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "disk")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    assert_clear(typed("check", "c.yaml", "--json", f"run/{name}"), 2, "would write over")
    (tmp_path / "run" / "checkpoints").unlink()
    (tmp_path / "disk").rename(tmp_path / "run" / "checkpoints")
    assert before == {file: file.read_bytes() for file in before}
    assert typed("evaluate", "run", "--json", "run/mine.json").code == 0


@pytest.mark.parametrize("at", [12, 15, 20])
def test_a_run_evaluated_in_parts_of_its_length_can_be_extended_from_anywhere(
    typed: Typed, tmp_path: Path, at: int
) -> None:
    config = (tmp_path / "c.yaml").read_text().replace("steps: 4", "steps: 40")
    (tmp_path / "c.yaml").write_text(config + "eval_every: 10%\ncheckpoint: {every: 1step, keep: 99}\n")
    assert typed("fit", "c.yaml", "--out", "parts").code == 0
    for step in (tmp_path / "parts" / "checkpoints").glob("step-*"):
        if int(step.name[5:]) > at:
            shutil.rmtree(step)
    ended = typed("fit", "c.yaml", "--resume", "--out", "parts", "--extend", "hold", "--set", "steps=60")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row["step"] for row in rows if row["event"] == "eval"]
    assert evaluated == list(range(4, 61, 4))


SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}


@pytest.mark.parametrize(
    ("forged", "words"),
    [
        (None, "there is none, unlike"),
        ({"scale": 1e300}, "scale must be above 0 and at most 3.40282e"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"_growth_tracker": 1e300}, "_growth_tracker counts to 2000"),
        ({"_growth_tracker": 0.5}, "_growth_tracker counts to 2000"),
        ({"growth_factor": 1e30}, "this run's has growth_factor 2.0"),
        ({"growth_interval": 0}, "this run's has growth_factor"),
        ({"more": 1.0}, "this run's has"),
    ],
)
def test_a_scaler_of_no_run_is_refused(tmp_path: Path, forged: dict[str, float] | None, words: str) -> None:
    def made() -> Any:
        return job(steps=3, precision="fp16", checkpoint={"every": "1step"})

    began = made()
    for _ in train(began.state, began.plan, began.batches, began.recipe):
        pass
    parts, manifest = snapshot(began.state)
    assert manifest["scaler"] == SCALER
    restore(made().state, began.plan, _saved(tmp_path / "a", parts, manifest))
    manifest["scaler"] = None if forged is None else SCALER | forged
    with pytest.raises(CheckpointError, match=re.escape(f"scaler is not this run's: {words}")):
        restore(made().state, began.plan, _saved(tmp_path / "b", parts, manifest))


def test_an_extension_that_was_stopped_early_may_be_asked_for_again(typed: Typed, tmp_path: Path) -> None:
    rule = "early_stop: {monitor: train_loss, patience: 2, min_delta: 9}\neval_every: 2step\n"
    (tmp_path / "c.yaml").write_text((tmp_path / "c.yaml").read_text() + rule)
    assert typed("fit", "c.yaml", "--out", "early").code == 0
    extend = ("fit", "c.yaml", "--resume", "--extend", "hold", "--set", "steps=20", "--out", "early")
    for shown in ("stopped early", "already complete"):
        ended = typed(*extend)
        assert ended.code == 0, ended.err
        assert shown in ended.out
    assert_clear(typed(*extend, "--set", "steps=30"), 2, "was stopped early, at step 6")


def test_a_config_that_is_no_file_is_not_read(typed: Typed, tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.yaml"
    config.rename(tmp_path / "secret")
    config.symlink_to(tmp_path / "secret")
    for command in (("evaluate", "run"), ("check", "run"), RESUME):
        assert_clear(typed(*command), 4, "link")


def test_an_edited_length_is_refused_before_it_is_planned(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrtrain.commands.evaluate.build", lambda *_, **__: pytest.fail("built"))
    edit("steps: 4", "steps: 20000000")(tmp_path / "run")
    assert_clear(typed("evaluate", "run"), 2, "steps is 20000000 in config.yaml")


def test_what_is_only_evaluated_is_not_planned(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    monkeypatch.setattr("lrtrain.schedule.plan.segment", lambda *args: lengths.append(args[0].steps) or segment(*args))
    assert typed("evaluate", "run").code == 0
    assert lengths == [1]


FOLDER = """
epochs: 1
batch_size: 8
model: {name: small_cnn, width: 4}
dataset: {name: imagefolder, root: photos, transforms: {train: [{name: Resize, size: [16, 16]}]}}
optimizer: {name: SGD, lr: 0.05}
workers: 0
"""


@pytest.fixture
def on_photos(typed: Typed, photos: Path) -> Path:
    (photos.parent / "p.yaml").write_text(FOLDER)
    ended = typed("fit", "p.yaml", "--out", "moving")
    assert ended.code == 0, ended.err
    return photos


def test_images_may_be_moved(typed: Typed, on_photos: Path) -> None:
    moved = on_photos.rename(on_photos.with_name("elsewhere"))
    extend = ("fit", "--resume", "--out", "moving", "--extend", "hold")
    assert_clear(typed(*extend, "--set", "epochs=2"), 3, "--set dataset.root=FOLDER")
    for epochs in (2, 3):
        ended = typed(*extend, "--set", f"epochs={epochs}", "--set", "dataset.root=elsewhere")
        assert ended.code == 0, ended.err
    moved.joinpath("train", "red", "0.jpg").unlink()
    ended = typed(*extend, "--set", "epochs=4", "--set", "dataset.root=elsewhere")
    assert_clear(ended, 4, "train/red: 12 images when the run began, 11 now")


@pytest.mark.parametrize("name", ["csv", "webdataset"])
def test_so_may_those_of_a_manifest_and_of_shards(typed: Typed, on_photos: Path, name: str) -> None:
    if name == "webdataset":
        pytest.importorskip("webdataset")
        parts = {"train": [0, 1] * 5, "val": [1, 0] * 3}
        for split, labels in parts.items():
            shard(on_photos / f"{split}.tar", samples(*labels))
        keys = {split: f"{split}.tar" for split in parts}
    else:
        files = [f"train/{label}/{i}.jpg,{label},train" for label in ("red", "blue") for i in range(12)]
        files += [f"val/{label}/{i}.jpg,{label},val" for label in ("red", "blue") for i in range(6)]
        (on_photos / "m.csv").write_text("\n".join(["path,label,split", *files, ""]))
        keys = {"manifest": "m.csv"}

    def places(folder: Path) -> list[str]:
        return [word for key, file in keys.items() for word in ("--set", f"dataset.{key}={folder.name}/{file}")]

    named = FOLDER.replace("imagefolder, root: photos", f"{name}, {', '.join(f'{key}: x' for key in keys)}")
    (on_photos.parent / "other.yaml").write_text(named)
    ended = typed("fit", "other.yaml", "--out", "other", *places(on_photos))
    assert ended.code == 0, ended.err
    moved = on_photos.rename(on_photos.with_name("elsewhere"))
    resume = ("fit", "--resume", "--out", "other", *places(moved))
    ended = typed(*resume, "--extend", "hold", "--set", "epochs=2")
    assert ended.code == 0, ended.err
    if name == "csv":
        moved.joinpath("m.csv").write_text("\n".join(["path,label,split", *files[1:], ""]))
    else:
        shard(moved / "train.tar", samples(1, 0, *parts["train"][2:]))
    assert_clear(typed(*resume, "--extend", "hold", "--set", "epochs=3"), 4, "the dataset is not the one")


def test_another_number_of_images_is_told_as_that(typed: Typed, on_photos: Path) -> None:
    """Not by what follows from it: a last batch of one image, where the model has BatchNorm."""
    for i in range(9):
        shutil.copy(on_photos / "train" / "red" / "0.jpg", on_photos / "train" / "red" / f"more{i}.jpg")
    assert_clear(typed("fit", "--resume", "--out", "moving"), 4, "train/red: 12 images when the run began, 21 now")


def test_the_weights_that_a_run_began_with_are_not_needed_to_go_on(typed: Typed, tmp_path: Path) -> None:
    weights = shutil.copy(
        tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors", tmp_path / "w.safetensors"
    )
    (tmp_path / "c.yaml").write_text(
        (tmp_path / "c.yaml").read_text().replace("width: 4}", "width: 4, weights: w.safetensors}")
    )
    assert typed("fit", "c.yaml", "--out", "tuned").code == 0
    Path(weights).unlink()
    assert_clear(typed("fit", "c.yaml", "--resume", "--out", "tuned"), 4, "w.safetensors")
    ended = typed("fit", "--resume", "--out", "tuned", "--extend", "hold", "--set", "steps=6")
    assert ended.code == 0, ended.err
