"""`lrtrain fit` through real processes: what it leaves behind, and that it goes on in the same bits."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lrtrain.checkpoint import format
from lrtrain.checkpoint.folder import pointed
from tests.forked import Forked, environment, run, until

QUICK = """
seed: 3
epochs: 3
batch_size: 64
model: {name: small_cnn, width: 8}
dataset: digits
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
schedule: {name: OneCycleLR}
log_every: 5step
"""

# Everything that has state, on a schedule whose epochs do not fall together with anything.
RICH = """
seed: 5
epochs: 3
batch_size: 100
accumulate: 2
model: {name: tests.nets:with_dropout}
dataset: {name: digits, transforms: {train: [{name: RandomCrop, size: 8, padding: 1}, {name: RandomRotation, degrees: 10}]}}
optimizer:
  name: AdamW
  lr: 0.003
  groups: [{params: norm_and_bias, weight_decay: 0, lr_scale: 2}, {params: "^head", lr: 0.01}]
schedule:
  - {name: LinearLR, for: 0.5ep}
  - {name: ReduceLROnPlateau, patience: 0, threshold: 0.5, factor: 0.5}
ema: 0.98
mixup: 0.2
cutmix: 1.0
label_smoothing: 0.1
clip_norm: 1.0
log_every: 4step
eval_every: 7step
early_stop: {patience: 50}
checkpoint: {every: 5step, keep: 2}
workers: 1
"""


def fit(folder: Path, config: str, *more: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    (folder / "c.yaml").write_text(config)
    return run(["fit", "c.yaml", *more], folder, env)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's last checkpoint, by file and name."""
    step = json.loads((run / "checkpoints" / "last.json").read_text())["checkpoint"]
    return {
        f"{path.stem}/{name}": tensor
        for path in sorted((run / "checkpoints" / step).glob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(path).items()
    }


def assert_same_bits(one: Path, other: Path) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick")
    ended = fit(folder, QUICK)
    assert ended.returncode == 0, ended.stderr
    (folder / "stdout").write_text(ended.stdout)
    return folder / "runs" / "c"


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    ended = fit(folder, RICH, "--out", "whole")
    assert ended.returncode == 0, ended.stderr
    return folder


def test_a_run_leaves_what_the_contract_says(quick: Path) -> None:
    assert {path.name for path in quick.iterdir()} == {
        "config.yaml",
        "curve.csv",
        "metrics.jsonl",
        "timing.jsonl",
        "status.json",
        "checkpoints",
    }
    status = json.loads((quick / "status.json").read_text())
    assert status["state"] == "done"
    assert status["exit_code"] == 0
    assert status["step"] == 69
    assert status["last_checkpoint"] == "step-00000069"
    found = {path.name for path in (quick / "checkpoints").iterdir()}
    assert {"last.json", "best.json", "step-00000069"} <= found
    assert not list(quick.rglob("*.pt")) + list(quick.rglob("*.pkl"))


def test_every_logged_lr_equals_the_planned_curve_exactly(quick: Path) -> None:
    with (quick / "curve.csv").open() as file:
        curve = {int(row["step"]): float(row["lr.default"]) for row in csv.DictReader(file)}
    trained = [row for row in rows(quick) if row["event"] == "train"]
    assert len(trained) == 14
    assert [row["lr"]["default"] for row in trained] == [curve[row["step"]] for row in trained]
    assert list(trained[0]) == ["event", "step", "epoch", "lr", "loss"]
    assert list(rows(quick)[4]) == ["event", "step", "epoch", "split", "loss", "acc1", "acc5"]


def test_a_person_sees_the_plan_the_epochs_and_the_next_command(quick: Path) -> None:
    shown = (quick.parents[1] / "stdout").read_text()
    for words in (
        "training into runs/c",
        "small_cnn",
        "1,437 train, 360 val",
        "OneCycleLR",
        "3 epochs, 69 steps",
        "train loss",
        "best",
        "lrtrain evaluate runs/c",
    ):
        assert words in shown
    epochs = [line.split() for line in shown.splitlines() if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert len(epochs) == 3
    assert all(len(line) == 7 for line in epochs)


def test_the_resolved_config_repeats_the_run(quick: Path) -> None:
    folder = quick.parents[1]
    ended = fit(folder, (quick / "config.yaml").read_text(), "--out", "again")
    assert ended.returncode == 0, ended.stderr
    assert_same_bits(quick, folder / "again")
    assert (folder / "again" / "curve.csv").read_bytes() == (quick / "curve.csv").read_bytes()


def test_another_seed_gives_another_run(quick: Path) -> None:
    folder = quick.parents[1]
    assert fit(folder, QUICK, "--out", "seed4", "--set", "seed=4").returncode == 0
    assert (folder / "seed4" / "metrics.jsonl").read_bytes() != (quick / "metrics.jsonl").read_bytes()


def test_runs_are_numbered_and_a_full_folder_is_refused(quick: Path) -> None:
    folder = quick.parents[1]
    ended = fit(folder, QUICK, "--out", "runs/c")
    assert ended.returncode == 7
    assert "--resume" in ended.stderr
    assert fit(folder, QUICK, "--set", "epochs=1").returncode == 0
    assert (folder / "runs" / "c-2" / "metrics.jsonl").exists()


def test_resuming_a_finished_run_changes_nothing(quick: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in quick.rglob("*") if path.is_file()}
    ended = fit(quick.parents[1], QUICK, "--resume", "--out", "runs/c")
    assert ended.returncode == 0
    assert "already complete" in ended.stdout
    assert before == {path: path.stat().st_mtime_ns for path in quick.rglob("*") if path.is_file()}


def test_a_finished_run_keeps_no_more_than_it_may_though_it_was_killed_before_it_deleted_the_rest(quick: Path) -> None:
    folder = quick.parents[1]
    shutil.copytree(quick, folder / "killed")
    checkpoints = folder / "killed" / "checkpoints"
    assert len(list(checkpoints.glob("step-*"))) == 2
    ended = fit(folder, QUICK, "--resume", "--out", "killed", "--set", "checkpoint.keep=1")
    assert "already complete" in ended.stdout
    assert list(checkpoints.glob("step-*")) == [pointed(checkpoints, "last")]


def test_resuming_with_another_config_is_refused_with_the_difference(quick: Path) -> None:
    ended = fit(quick.parents[1], QUICK.replace("0.05", "0.06"), "--resume", "--out", "runs/c")
    assert ended.returncode == 2
    assert "optimizer.lr was 0.05 when the run began and is 0.06 now" in ended.stderr


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    assert fit(tmp_path, QUICK, "--resume").returncode == 4
    assert fit(tmp_path, QUICK, "--resume", "--out", "nowhere").returncode == 4


def kill_at_row(folder: Path, out: str, wanted_rows: int, signal_number: int, *more: str) -> int:
    """Start a run and send it a signal once metrics.jsonl has so many rows, wherever in an epoch that is."""
    return kill_when(folder, RICH, out, lambda text: text.count("\n") >= wanted_rows, signal_number, *more)


def kill_when(
    folder: Path,
    config: str,
    out: str,
    ready: Callable[[str], bool],
    signal_number: int = signal.SIGKILL,
    *more: str,
) -> int:
    """Start a run and send it a signal once its metrics.jsonl reads as wanted."""
    (folder / "c.yaml").write_text(config)
    process = Forked(["fit", "c.yaml", "--out", out, *more], folder, environment(), new_session=True)
    metrics = folder / out / "metrics.jsonl"
    if until(lambda: metrics.exists() and ready(metrics.read_text()), process):
        os.kill(process.pid, signal_number)
    return process.wait(60)


@pytest.mark.parametrize("wanted_rows", random.Random(11).sample(range(1, 17), 5))
def test_a_killed_run_resumes_to_the_same_bytes(rich: Path, wanted_rows: int) -> None:
    out = f"killed-{wanted_rows}"
    assert kill_at_row(rich, out, wanted_rows, signal.SIGKILL) == -signal.SIGKILL
    ended = fit(rich, RICH, "--resume", "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert_same_bits(rich / "whole", rich / out)


def test_a_run_killed_again_and_again_resumes_to_the_same_bytes(rich: Path) -> None:
    kill_at_row(rich, "chain", 2, signal.SIGKILL)
    for wanted in (5, 9, 13):
        kill_at_row(rich, "chain", wanted, signal.SIGKILL, "--resume")
    assert fit(rich, RICH, "--resume", "--out", "chain").returncode == 0
    assert_same_bits(rich / "whole", rich / "chain")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 75)]
)
def test_a_signal_saves_and_the_run_goes_on_in_the_same_bits(rich: Path, number: int, code: int) -> None:
    out = f"signal-{code}"
    assert kill_at_row(rich, out, 6, number) == code
    status = json.loads((rich / out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", code)
    assert fit(rich, RICH, "--resume", "--out", out).returncode == 0
    assert_same_bits(rich / "whole", rich / out)


def test_the_plateau_lowers_the_lr_of_every_group_by_the_same_factor(rich: Path) -> None:
    trained = [row["lr"] for row in rows(rich / "whole") if row["event"] == "train"]
    assert trained[2] == {"norm_and_bias": 0.006, "^head": 0.01, "default": 0.003}
    assert {"norm_and_bias": 0.003, "^head": 0.005, "default": 0.0015} in trained


def test_a_damaged_checkpoint_is_passed_over_and_named(rich: Path) -> None:
    assert kill_at_row(rich, "damaged", 12, signal.SIGKILL) == -signal.SIGKILL
    newest = sorted((rich / "damaged" / "checkpoints").glob("step-*"))[-1]
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    refused = fit(rich, RICH, "--resume", "--out", "damaged", "--set", "seed=6")
    assert refused.returncode == 2
    assert newest.is_dir()  # what is refused changes nothing
    ended = fit(rich, RICH, "--resume", "--out", "damaged")
    assert ended.returncode == 0, ended.stderr
    assert f"{newest.name} is damaged, the one before is used: model.safetensors is damaged" in " ".join(
        ended.stdout.split()
    )
    assert_same_bits(rich / "whole", rich / "damaged")


def test_when_every_checkpoint_is_damaged_nothing_starts_from_scratch(rich: Path) -> None:
    kill_at_row(rich, "ruined", 8, signal.SIGKILL)
    for model in (rich / "ruined" / "checkpoints").glob("step-*/model.safetensors"):
        model.write_bytes(b"")
    ended = fit(rich, RICH, "--resume", "--out", "ruined")
    assert ended.returncode == 4
    assert "every checkpoint is damaged" in ended.stderr


def test_a_loss_that_is_not_finite_ends_with_6_and_keeps_what_was_good(tmp_path: Path) -> None:
    ended = fit(
        tmp_path, QUICK, "--set", "optimizer.lr=900", "--set", "schedule=fixed", "--set", "model=tests.nets:linear"
    )
    assert ended.returncode == 6, ended.stdout
    assert "training loss is nan" in ended.stderr or "training loss is inf" in ended.stderr
    status = json.loads((tmp_path / "runs" / "c" / "status.json").read_text())
    assert status["state"] == "failed"
    saved = tensors(tmp_path / "runs" / "c")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_compiling_without_a_compiler_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    missing = {"PATH": str(tmp_path / "empty"), "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = fit(tmp_path, QUICK, "--set", "compile=true", env={**environment(), **missing})
    assert done.returncode == 5
    assert "error: torch.compile failed" in done.stderr
    assert "leave `compile: true` out" in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads((tmp_path / "runs" / "c" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)
    assert status["message"].startswith("torch.compile failed")


def test_training_goes_on_when_nobody_reads_its_output(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(QUICK.replace("epochs: 3", "epochs: 1"))
    command = f"{sys.executable} -m lrtrain fit c.yaml --out {{}} {{}}"
    for out, rest in (("closed", ">&- 2>&-"), ("head", "| head -1"), ("full", "> /dev/full")):
        subprocess.run(
            ["bash", "-c", command.format(out, rest)], cwd=tmp_path, env=environment(), timeout=120, capture_output=True
        )
        assert json.loads((tmp_path / out / "status.json").read_text())["state"] == "done", out
        assert not (tmp_path / out / "checkpoints" / ".lock").read_bytes(), "no file has the number of stdout"


def test_a_narrow_terminal_without_unicode_is_fine(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(QUICK.replace("epochs: 3", "epochs: 1"))
    env = {**environment(), "LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "COLUMNS": "40"}
    ended = subprocess.run(
        [sys.executable, "-m", "lrtrain", "fit", "c.yaml"], cwd=tmp_path, env=env, timeout=120, capture_output=True
    )
    assert ended.returncode == 0
    lines = ended.stdout.decode("ascii").splitlines()
    assert max(map(len, lines)) <= 40


def test_smoke_runs_everything_and_leaves_nothing(tmp_path: Path) -> None:
    ended = fit(tmp_path, QUICK, "--smoke")
    assert ended.returncode == 0, ended.stderr
    assert "smoke test passed" in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_smoke_leaves_nothing_when_a_signal_ends_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(QUICK.replace("width: 8", "width: 256"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "lrtrain", "fit", "c.yaml", "--smoke"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(TMPDIR=str(temporary)))
    assert until(lambda: any(temporary.glob("lrtrain-smoke-*")), process)
    process.terminate()
    assert process.wait(60) == 143
    assert not any(temporary.glob("lrtrain-smoke-*"))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_smoke_takes_the_steps_that_there_are(tmp_path: Path, steps: int) -> None:
    ended = fit(tmp_path, QUICK.replace("epochs: 3", f"steps: {steps}"), "--smoke")
    assert ended.returncode == 0, ended.stderr
    assert f"{steps} step" in ended.stdout.partition("smoke test passed")[2]


def test_evaluate_agrees_with_what_training_found(quick: Path, tmp_path: Path) -> None:
    ended = run(["evaluate", quick, "--checkpoint", "last", "--json", "e.json"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "e.json").read_text())
    last = [row for row in rows(quick) if row["event"] == "eval"][-1]
    assert (found["loss"], found["acc1"], found["acc5"]) == (last["loss"], last["acc1"], last["acc5"])
    assert sum(part["images"] for part in found["classes"].values()) == 360


def test_evaluate_agrees_where_the_network_draws_too(tmp_path: Path) -> None:
    drawing = QUICK.replace("{name: small_cnn, width: 8}", "'tests.nets:drawing'")
    ended = fit(tmp_path, drawing, "--set", "epochs=1", "--out", "run")
    assert ended.returncode == 0, ended.stderr
    ended = run(["evaluate", "run", "--trust", "--json", "e.json"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    (last,) = (row for row in rows(tmp_path / "run") if row["event"] == "eval")
    assert json.loads((tmp_path / "e.json").read_text())["loss"] == last["loss"]


def test_the_best_checkpoint_is_what_the_newest_says_it_is(quick: Path, tmp_path: Path) -> None:
    """A kill may have left best.json behind, and anything else may have been written there."""
    checkpoints = shutil.copytree(quick, tmp_path / "run") / "checkpoints"
    newest, _ = format.newest(checkpoints)
    best = newest.manifest["best"]["step"]
    (checkpoints / "best.json").write_text('{"checkpoint": "step-00000000"}')
    ended = run(["evaluate", "run"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"step-{best:08d} (best)" in ended.stdout
    shutil.rmtree(checkpoints)
    assert "the run has no checkpoint yet" in run(["evaluate", "run"], tmp_path).stderr


def test_a_run_that_names_foreign_code_is_evaluated_only_with_trust(rich: Path) -> None:
    refused = run(["evaluate", "whole"], rich)
    assert refused.returncode == 2
    assert "tests.nets:with_dropout" in refused.stderr
    allowed = run(["evaluate", "whole", "--trust"], rich)
    assert allowed.returncode == 0, allowed.stderr
