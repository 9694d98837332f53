"""How a run goes on: longer, elsewhere, after signals, and never twice at once."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lrtrain.checkpoint import format
from lrtrain.commands import changes
from lrtrain.config.schema import RunConfig
from lrtrain.errors import ConfigError
from tests import forked
from tests.folders import noise
from tests.forked import Forked, environment, run, until
from tests.schedules import plan_of
from tests.test_fit import (
    QUICK,
    RICH,
    assert_same_bits,
    fit,
    kill_at_row,
    kill_when,
    rows,
)

LONG = QUICK.replace("epochs: 3", "epochs: 5")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    assert fit(folder, QUICK, "--out", "run").returncode == 0
    return folder


def copy_of(done: Path, name: str) -> Path:
    return Path(shutil.copytree(done / "run", done / name))


def lrs(run: Path) -> list[float]:
    with (run / "curve.csv").open() as file:
        return [float(row["lr.default"]) for row in csv.DictReader(file)]


def test_hold_goes_on_with_the_last_lr_and_the_config_repeats_the_longer_run(done: Path) -> None:
    run = copy_of(done, "hold")
    before = lrs(run)
    ended = fit(done, LONG, "--resume", "--out", "hold", "--set", "extended=[{policy: hold, at: 24, steps: 115}]")
    assert ended.returncode == 2
    assert "says how the run was made longer" in ended.stderr
    ended = fit(done, LONG, "--resume", "--extend", "hold", "--out", "hold")
    assert ended.returncode == 0, ended.stderr
    assert "extended by hold: 69 steps become 115" in ended.stdout
    assert ended.stdout.index("steps stay as planned") < ended.stdout.index("val acc1")
    assert lrs(run) == before + before[-1:] * 46
    assert [row["lr"]["default"] for row in rows(run) if row["event"] == "train"][-1] == before[-1]
    again = fit(done, (run / "config.yaml").read_text(), "--out", "hold-again")
    assert again.returncode == 0, again.stderr
    assert_same_bits(run, done / "hold-again")
    # And the continued run may be named by the old config, the new one, or none.
    for config in (QUICK, LONG):
        assert "already complete" in fit(done, config, "--resume", "--out", "hold").stdout


def test_parts_of_the_run_are_those_of_the_one_first_planned_however_long_it_gets(tmp_path: Path) -> None:
    config = QUICK.replace("epochs: 3", "epochs: 1") + "eval_every: 30%\ncheckpoint: {every: 10%, keep: 99}\n"
    assert fit(tmp_path, config, "--out", "run").returncode == 0
    for epochs in (2, 3):
        longer = config.replace("epochs: 1", f"epochs: {epochs}")
        assert fit(tmp_path, longer, "--resume", "--extend", "hold", "--out", "run").returncode == 0
    evaluated = [row["step"] for row in rows(tmp_path / "run") if row["event"] == "eval"]
    assert evaluated == sorted({*range(7, 70, 7), 23, 46, 69})
    assert fit(tmp_path, (tmp_path / "run" / "config.yaml").read_text(), "--out", "again").returncode == 0
    assert_same_bits(tmp_path / "run", tmp_path / "again")
    saved = [sorted(path.name for path in (tmp_path / out / "checkpoints").iterdir()) for out in ("run", "again")]
    assert saved[0] == saved[1]


def test_rescale_follows_the_schedule_of_the_longer_run_from_the_step_reached(done: Path) -> None:
    kill_when(done, QUICK, "rescale", lambda text: text.count("\n") >= 7, signal.SIGTERM)
    at = json.loads((done / "rescale" / "status.json").read_text())["step"]
    before = lrs(done / "rescale")
    ended = fit(done, LONG, "--resume", "--extend", "rescale", "--out", "rescale")
    assert ended.returncode == 0, ended.stderr
    longer = plan_of("{name: OneCycleLR}", lrs=(0.05,), steps_per_epoch=23, length="steps: 115").curve.lr[:, 0].tolist()
    assert lrs(done / "rescale") == before[:at] + longer[at:]
    again = fit(done, (done / "rescale" / "config.yaml").read_text(), "--out", "rescale-again")
    assert again.returncode == 0, again.stderr
    assert_same_bits(done / "rescale", done / "rescale-again")


def test_restart_begins_the_schedule_again_over_the_further_steps(done: Path) -> None:
    run = copy_of(done, "restart")
    ended = fit(done, LONG, "--resume", "--extend", "restart", "--out", "restart")
    assert ended.returncode == 0, ended.stderr
    again = plan_of("{name: OneCycleLR}", lrs=(0.05,), steps_per_epoch=23, length="steps: 46").curve.lr[:, 0].tolist()
    assert lrs(run) == lrs(done / "run") + again


def test_a_schedule_that_does_not_fit_the_added_steps_is_refused_in_those_words(tmp_path: Path, done: Path) -> None:
    phases = QUICK.replace(
        "schedule: {name: OneCycleLR}",
        "schedule: [{name: LinearLR, for: 1ep}, {name: CosineAnnealingLR, for: rest}]",
    )
    assert fit(tmp_path, phases, "--out", "run").returncode == 0
    longer = phases.replace("epochs: 3", "epochs: 4")
    ended = fit(tmp_path, longer, "--resume", "--extend", "restart", "--out", "run")
    assert ended.returncode == 2
    assert "--extend restart: the schedule does not fit the added 23 steps" in ended.stderr
    assert "make the run longer still, or extend it with `hold`" in ended.stderr


def test_a_longer_run_without_a_policy_is_refused_with_all_three(done: Path) -> None:
    before = (done / "run" / "metrics.jsonl").read_bytes()
    ended = fit(done, LONG, "--resume", "--out", "run")
    assert ended.returncode == 2
    for words in ("planned for 69 steps", "makes 115", "--extend hold", "rescale", "restart"):
        assert words in ended.stderr
    shorter = fit(done, QUICK.replace("epochs: 3", "epochs: 2"), "--resume", "--extend", "hold", "--out", "run")
    assert shorter.returncode == 2
    assert "that is not longer" in shorter.stderr
    without = fit(done, LONG, "--extend", "hold")
    assert without.returncode == 2
    assert "--resume" in without.stderr
    assert (done / "run" / "metrics.jsonl").read_bytes() == before


def test_a_second_process_in_the_same_directory_is_refused_and_a_kill_frees_it(done: Path) -> None:
    (done / "c.yaml").write_text(RICH.replace("epochs: 3", "epochs: 200"))
    command = ["fit", "c.yaml", "--out", "busy"]
    first = Forked(command, done, environment())
    try:
        metrics = done / "busy" / "metrics.jsonl"
        assert until(lambda: metrics.exists() and metrics.stat().st_size, first)
        second = run([*command, "--resume"], done)
        assert second.returncode == 7
        assert f"in use by process {first.pid}" in second.stderr
    finally:
        first.kill()
        first.wait()
    # Its data worker may live on for seconds; the lock does not.
    with (done / "busy" / "checkpoints" / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_sigusr2_saves_and_training_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    quiet = RICH.replace("every: 5step", "every: 100%").replace("eval_every: 7step", "eval_every: 1ep")
    assert fit(tmp_path, quiet, "--out", "whole").returncode == 0
    (tmp_path / "c.yaml").write_text(quiet)
    process = Forked(["fit", "c.yaml", "--out", "asked"], tmp_path, environment())
    saved: set[str] = set()
    metrics = tmp_path / "asked" / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") == 2 and not saved - {"step-00000000"}:
            process.send_signal(signal.SIGUSR2)
        saved |= {path.name for path in (tmp_path / "asked" / "checkpoints").glob("step-*")}
        time.sleep(0.002)
    assert process.returncode == 0
    assert saved & {f"step-{step:08d}" for step in range(5, 13)}
    assert_same_bits(tmp_path / "whole", tmp_path / "asked")


def test_a_second_signal_stops_at_once_and_what_was_saved_is_whole(done: Path) -> None:
    (done / "c.yaml").write_text(RICH.replace("epochs: 3", "epochs: 50"))
    process = Forked(["fit", "c.yaml", "--out", "twice"], done, environment())
    metrics = done / "twice" / "metrics.jsonl"
    assert until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 5, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert json.loads((done / "twice" / "status.json").read_text())["state"] == "stopped"
    damaged = format.newest(done / "twice" / "checkpoints")[1]
    assert not damaged


def test_a_signal_before_training_ends_the_process_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef data():\n    pathlib.Path('loading').touch()\n    time.sleep(60)\n"
    )
    (tmp_path / "c.yaml").write_text(QUICK.replace("dataset: digits", 'dataset: "slow:data"'))
    env = environment(PYTHONPATH=f"{environment()['PYTHONPATH']}{os.pathsep}{tmp_path}")
    process = Forked(["fit", "c.yaml", "--out", "run"], tmp_path, env)
    assert until((tmp_path / "loading").exists, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_it_saved_anything_begins_when_resumed(tmp_path: Path, done: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(done / "run" / "config.yaml", run)
    ended = fit(tmp_path, QUICK, "--resume", "--out", "run")
    assert ended.returncode == 0, ended.stderr
    assert "nothing had been saved yet" in ended.stdout
    assert_same_bits(done / "run", run)
    shutil.rmtree(run / "checkpoints")
    lost = fit(tmp_path, QUICK, "--resume", "--out", "run")
    assert lost.returncode == 4
    assert "there is no checkpoint to go on from" in lost.stderr


def test_other_threads_are_refused_and_said_for_ever_where_allowed(done: Path) -> None:
    assert kill_at_row(done, "threads", 8, signal.SIGKILL) == -signal.SIGKILL
    env = environment(OMP_NUM_THREADS="2", OMP_WAIT_POLICY="PASSIVE")  # else threads that wait are busy
    refused = fit(done, RICH, "--resume", "--out", "threads", env=env)
    assert refused.returncode == 4
    for words in ("threads: 1 then, 2 now", "set OMP_NUM_THREADS=1", "--allow-inexact"):
        assert words in refused.stderr
    allowed = fit(done, RICH, "--resume", "--out", "threads", "--allow-inexact", env=env)
    assert allowed.returncode == 0, allowed.stderr
    checkpoint, _ = format.newest(done / "threads" / "checkpoints")
    assert checkpoint.manifest["exact"] is False


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch has these kernels on x86-64")
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ATEN_CPU_CAPABILITY", "default", ["processor: "]),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", ["kernels: '' then, 'ONEDNN_MAX_CPU_ISA=AVX2'", "set those variables as"]),
    ],
)
def test_other_kernels_of_the_cpu_are_refused(done: Path, variable: str, value: str, words: list[str]) -> None:
    run = f"kernels-{variable}"
    assert kill_at_row(done, run, 8, signal.SIGKILL) == -signal.SIGKILL
    refused = fit(done, RICH, "--resume", "--out", run, env=environment(**{variable: value}))
    assert refused.returncode == 4
    for part in ("would not be the same bits", *words, "--allow-inexact"):
        assert part in refused.stderr


def test_a_schedule_that_gives_another_lr_than_was_trained_with_is_refused(tmp_path: Path) -> None:
    code = "from torch.optim.lr_scheduler import ExponentialLR\ndef half(optimizer):\n    return ExponentialLR(optimizer, 0.9)\n"
    (tmp_path / "own.py").write_text(code)
    config = QUICK.replace("OneCycleLR", '"own:half", every: epoch')
    env = environment(PYTHONPATH=f"{environment()['PYTHONPATH']}{os.pathsep}{tmp_path}")
    assert fit(tmp_path, config, "--out", "run", env=env).returncode == 0
    longer = (config, "--resume", "--out", "run", "--extend", "hold", "--set", "epochs=4")
    (tmp_path / "own.py").write_text(code.replace("0.9", "0.80"))  # another size
    refused = fit(tmp_path, *longer, env=env)
    assert refused.returncode == 4
    for words in ("LR of 'default' in step 69: 0.0405", " then, 0.032", "undo what was changed", "--allow-inexact"):
        assert words in refused.stderr
    allowed = fit(tmp_path, *longer, "--allow-inexact", env=env)
    assert allowed.returncode == 0, allowed.stderr
    assert "note: not exact" in allowed.stdout
    assert format.newest(tmp_path / "run" / "checkpoints")[0].manifest["exact"] is False


def test_verify_tells_whole_from_damaged(done: Path) -> None:
    run = copy_of(done, "verified")

    def verify() -> subprocess.CompletedProcess[str]:
        return forked.run(["verify", "verified"], done)

    whole = verify()
    assert whole.returncode == 0, whole.stderr
    assert "step-00000069" in whole.stdout
    assert "last best" in whole.stdout
    model = run / "checkpoints" / "step-00000069" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-9] ^= 4
    model.write_bytes(data)
    damaged = verify()
    assert damaged.returncode == 4
    assert "1 of 2 checkpoints are damaged: step-00000069" in damaged.stderr
    assert "goes on from step-00000046" in damaged.stderr
    assert forked.run(["verify", "."], done).returncode == 4


def started(folder: Path, *args: str) -> subprocess.Popen[str]:
    """A command that heeds signals from now on, and has imported nothing yet."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lrtrain", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=forked.heed_signals,
    )
    if sys.platform == "linux":
        while process.poll() is None:
            caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
            if caught and int(caught[1], 16) >> (signal.SIGUSR2 - 1) & 1:
                break
            time.sleep(0.001)
    else:
        time.sleep(0.2)
    return process


@pytest.mark.parametrize("command", ["fit", "range-test", "preview"])
@pytest.mark.parametrize("wait", [0.0, 0.3, 0.7, 1.1])
def test_ctrl_c_ends_a_command_that_has_just_begun_in_one_line(tmp_path: Path, command: str, wait: float) -> None:
    (tmp_path / "c.yaml").write_text(QUICK.replace("epochs: 3", "epochs: 300"))
    process = started(tmp_path, command, "c.yaml")
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if command != "preview":  # which may have ended
        assert process.returncode == 130, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 1, err


def test_sigusr2_before_there_is_anything_to_save_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(QUICK)
    process = started(tmp_path, "fit", "c.yaml", "--out", "run")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 0
    process.communicate()


@pytest.mark.parametrize("every", ["1ep", "1step"])
@pytest.mark.parametrize(("workers", "broken"), [(0, "train/a/7.png"), (2, "train/a/7.png"), (0, "val/a/7.png")])
def test_an_image_that_cannot_be_read_costs_no_step_that_is_done(
    tmp_path: Path, workers: int, broken: str, every: str
) -> None:
    noise(tmp_path / "data", {"train": 20, "val": 12})
    config = f"""
epochs: 2
batch_size: 4
model: {{name: small_cnn, width: 4}}
dataset: {{name: imagefolder, root: data}}
optimizer: {{name: SGD, lr: 0.05}}
checkpoint: {{every: {every}, keep: 99}}
cache: "off"
workers: {workers}
"""
    assert fit(tmp_path, config, "--out", "whole").returncode == 0
    image = tmp_path / "data" / broken
    whole, age = image.read_bytes(), image.stat()
    image.write_bytes(whole[:60] + bytes(len(whole) - 60))
    os.utime(image, ns=(age.st_atime_ns, age.st_mtime_ns))
    ended = fit(tmp_path, config, "--out", "run")
    assert ended.returncode == 3, ended.stderr
    kept = format.newest(tmp_path / "run" / "checkpoints")[0]
    step = kept.step
    if broken.startswith("train"):
        assert 0 < step < 10, "epochs end at 10"
        assert kept.manifest["planned"] == (every == "1step"), "what was saved as planned stays so"
    else:
        assert (step, kept.manifest["pending"]) == (10, True), "the evaluation is made when the run goes on"
    assert f"step-{step:08d} is kept" in ended.stderr
    image.write_bytes(whole)
    os.utime(image, ns=(age.st_atime_ns, age.st_mtime_ns))
    ended = fit(tmp_path, config, "--resume", "--out", "run")
    assert ended.returncode == 0, ended.stderr
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "key", "may"),
    [
        ("EuroSAT", "root", True),
        ("EuroSAT", "splits.train.root", True),
        ("EuroSAT", "split", False),
        ("imagefolder", "root", True),
        ("imagefolder", "train", True),
        ("mine.data:make", "root", False),
    ],
)
def test_where_images_lie_may_change(name: str, key: str, may: bool) -> None:
    def config(value: str) -> RunConfig:
        inner: dict[str, Any] = {}
        at = inner
        *outer, last = key.split(".")
        for part in outer:
            at = at.setdefault(part, {})
        at[last] = value
        data = {"steps": 4, "batch_size": 8, "model": "resnet18", "optimizer": {"name": "SGD", "lr": 0.1}}
        return RunConfig.model_validate({**data, "dataset": {"name": name, **inner}})

    with nullcontext() if may else pytest.raises(ConfigError, match=f"dataset.{key}"):
        changes.refuse_differences(config("here"), config("there"), (), "{key}: {old} {new}", "hint")
