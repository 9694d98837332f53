"""Run directories that were edited, or hold what no run leaves: refused, and nothing in them or elsewhere changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrtrain.checkpoint import folder, format
from lrtrain.engine.state import restore, snapshot
from lrtrain.engine.train import train
from lrtrain.errors import CheckpointError, EnvironmentFault
from lrtrain.schedule.segments import segment
from tests.conftest import Ended
from tests.hostile import Typed, assert_clear
from tests.test_engine import job
from tests.test_hostile_checkpoint import rewrite, trained, typed

__all__ = ["trained", "typed"]
RESUME = ("fit", "--resume", "--out", "run")


def edit(old: str, new: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        text = (run / "config.yaml").read_text()
        assert old in text
        (run / "config.yaml").write_text(text.replace(old, new))

    return change


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


def test_a_run_is_not_begun_in_a_folder_of_other_things_that_checkpoints_links_to(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "best.json").write_text("precious")
    run = tmp_path / "begun"
    run.mkdir()
    shutil.copy(tmp_path / "run" / "config.yaml", run)
    (run / "checkpoints").symlink_to(tmp_path / "theirs")
    resume = ("fit", "--resume", "--out", "begun")
    assert_clear(typed(*resume), 4, "a link to a folder that holds no checkpoints, but 'best.json'", "remove the link")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["best.json"]
    (tmp_path / "theirs" / "best.json").unlink()
    (tmp_path / "theirs" / "lost+found").mkdir()  # a disk of their own
    ended = typed(*resume)
    assert ended.code == 0, ended.err


def test_a_lock_that_is_a_hard_link_to_a_file_of_others_is_refused(typed: Typed, tmp_path: Path) -> None:
    lock = tmp_path / "run" / "checkpoints" / ".lock"
    lock.unlink(missing_ok=True)
    (tmp_path / "notes").write_text("mine")
    lock.hardlink_to(tmp_path / "notes")
    assert_clear(typed(*RESUME), 4, "hard link to a file of 4 bytes", "remove it")
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_lock_behind_a_link_that_is_a_file_of_others_is_refused(typed: Typed, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    shutil.copy(tmp_path / "run" / "config.yaml", run)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / ".lock").write_text("mine")
    (run / "checkpoints").symlink_to(tmp_path / "theirs")
    assert_clear(typed("fit", "--resume", "--out", "begun"), 4, "behind a link, a file of 4 bytes", "remove it")
    assert (tmp_path / "theirs" / ".lock").read_text() == "mine"


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


@pytest.mark.parametrize("command", [("evaluate", "run"), ("fit", "--resume", "--out", "run")])
def test_a_network_of_another_size_is_refused_before_it_takes_memory(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    edit("width: 4", "width: 3000")(tmp_path / "run")
    step = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    config = json.loads((step / "manifest.json").read_text())["config"]
    config["model"]["width"] = 3000
    rewrite(step, config=config)
    monkeypatch.setattr("lrtrain.build.open_source", lambda *_, **__: pytest.fail("built"))
    assert_clear(typed(*command), 4, "it has 1,761 weights and biases, and this one 810,285,013")


def test_a_plateau_that_no_evaluation_has_seen_is_refused(typed: Typed, tmp_path: Path) -> None:
    plateau = "schedule={name: ReduceLROnPlateau, monitor: val_loss, patience: 0}"
    args = ("--set", plateau, "--set", "eval_every=1step", "--out", "flat")
    assert typed("fit", "c.yaml", *args).code == 0
    shutil.rmtree(tmp_path / "flat" / "checkpoints" / "step-00000004")
    steps = sorted((tmp_path / "flat" / "checkpoints").glob("step-*"))
    for name in ("last", "best"):
        (tmp_path / "flat" / "checkpoints" / f"{name}.json").unlink()
    held = json.loads((steps[-1] / "manifest.json").read_text())["plateau"]
    rewrite(steps[-1], plateau=held | {"best": "0.125"})
    ended = typed("fit", "c.yaml", *args, "--resume")
    assert_clear(ended, 4, "plateau: its best val_loss is 0.125, and metrics.jsonl has no such evaluation")
    rewrite(steps[-1], plateau=held)
    assert typed("fit", "c.yaml", *args, "--resume").code == 0


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
