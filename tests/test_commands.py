"""The commands beside `fit`, through real processes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended

GROUPS = """
epochs: 4
batch_size: 64
model: small_cnn
dataset: digits
optimizer:
  name: SGD
  lr: 0.1
  momentum: 0.9
  groups: [{name: head, params: "^fc", lr: 0.3}, {params: norm_and_bias, lr_scale: 0.5, weight_decay: 0, frozen_until: 1ep}]
schedule: {name: OneCycleLR, warmup: 25%}
"""


def test_the_example_previews_and_trains_as_it_is(lrtrain: Callable[..., Ended], tmp_path: Path) -> None:
    assert "lrtrain fit" in lrtrain("init", "--example").out
    assert lrtrain("init", "--example").code == 2
    assert "CosineAnnealingLR" in lrtrain("preview").out
    assert lrtrain("fit", "--smoke").code == 0
    assert (tmp_path / "lrtrain.yaml").exists()


def test_preview_shows_and_writes_what_fit_will_use(lrtrain: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GROUPS)
    shown = lrtrain("preview", "c.yaml", "--csv", "p.csv", "--plot", "p.svg")
    assert shown.code == 0, shown.err
    assert lrtrain("fit", "c.yaml", "--out", "run").code == 0
    assert (tmp_path / "run" / "curve.csv").read_bytes() == (tmp_path / "p.csv").read_bytes()
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 92
    assert list(rows[0])[:5] == ["step", "epoch", "lr.head", "lr.norm_and_bias", "lr.default"]
    assert float(rows[0]["lr.norm_and_bias"]) == 0.0
    assert float(rows[30]["lr.head"]) == pytest.approx(3 * float(rows[30]["lr.default"]))
    assert float(rows[30]["lr.norm_and_bias"]) == pytest.approx(0.5 * float(rows[30]["lr.default"]))
    assert "momentum.head" in rows[0]
    trained = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in (row for row in trained if row["event"] == "train"):
        planned = rows[row["step"] - 1]
        assert row["lr"] == {name: float(planned[f"lr.{name}"]) for name in ("head", "norm_and_bias", "default")}
    assert b"OneCycleLR" in (tmp_path / "p.svg").read_bytes()


def test_a_plain_preview_shows_what_fit_will_use_and_needs_no_torchvision(
    lrtrain: Callable[..., Ended], tmp_path: Path
) -> None:
    plain = re.sub(r"optimizer:.*schedule", "optimizer: {name: AdamW, lr: 0.01}\nschedule", GROUPS, flags=re.DOTALL)
    (tmp_path / "c.yaml").write_text(plain)
    assert lrtrain("fit", "c.yaml", "--out", "run").code == 0
    probe = (
        "import sys\nfrom lrtrain.cli import app\nsys.argv = ['lrtrain', 'preview', 'c.yaml', '--csv', 'p.csv']\n"
        "try:\n    app()\nfinally:\n    print('torchvision' in sys.modules, file=sys.stderr)\n"
    )
    shown = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shown.stderr == "False\n"
    assert (tmp_path / "run" / "curve.csv").read_bytes() == (tmp_path / "p.csv").read_bytes()


def test_the_range_tests_next_command_keeps_the_ratio_of_groups(lrtrain: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GROUPS.replace("name: SGD", "name: AdamW").replace("  momentum: 0.9\n", ""))
    ended = lrtrain("range-test", "c.yaml", "--steps", "40", COLUMNS="40")
    assert ended.code == 0, ended.err
    assert "every group that trains was swept with it" in " ".join(ended.out.split())
    (command,) = (line for line in ended.out.splitlines() if "lrtrain fit c.yaml" in line)
    found = re.search(r"--set optimizer\.lr=(\S+) --set optimizer\.groups\.0\.lr=(\S+)", command)
    assert found is not None
    if found[1] != "...":
        assert float(found[2]) == pytest.approx(3 * float(found[1]), rel=0.01)


def test_preview_at_tells_the_lr_exactly(lrtrain: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GROUPS)
    lrtrain("preview", "c.yaml", "--csv", "p.csv")
    shown = lrtrain("preview", "c.yaml", "--at", "2ep", "--at", "50%", "--at", "46step").out
    found = re.findall(r"step 46  (\S+)  LR (\S+)", shown)
    assert len(found) == 9
    with (tmp_path / "p.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[46]
    assert all(float(lr) == float(row[f"lr.{name}"]) for name, lr in found)


def test_a_range_test_leaves_plot_and_evidence(lrtrain: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GROUPS)
    ended = lrtrain("range-test", "c.yaml", "--steps", "40", "--start", "1e-4", "--end", "5", "--json", "r.json")
    assert ended.code == 0, ended.err
    assert "as before the test" in ended.out
    evidence = json.loads((tmp_path / "r.json").read_text())
    assert evidence["lr"][0] == 1e-4
    assert len(evidence["lr"]) == len(evidence["loss"]) == len(evidence["smoothed"])
    assert set(evidence["suggestions"]) >= {"valley", "steepest", "slide", "minimum_tenth"}
    assert evidence["state_sha256"]["before"] == evidence["state_sha256"]["after"]
    assert (tmp_path / "runs" / "c-range-test" / "range-test.png").read_bytes().startswith(b"\x89PNG")


def test_a_range_test_refuses_groups_too_far_apart(lrtrain: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GROUPS)
    ended = lrtrain("range-test", "c.yaml", "--set", "optimizer.lr=1e-300", "--set", "optimizer.groups.0.lr=1000")
    assert ended.code == 2, ended.err
    assert "every group is swept in its ratio to optimizer.lr, and that of group" in ended.err
    assert "RuntimeWarning" not in ended.err


def test_a_range_test_over_an_epochs_end_refuses_a_last_batch_of_one_image(
    lrtrain: Callable[..., Ended], tmp_path: Path
) -> None:
    one_step = re.sub("optimizer:.*", "optimizer: {name: SGD, lr: 0.1}\n", GROUPS, flags=re.DOTALL)
    (tmp_path / "c.yaml").write_text(one_step.replace("epochs: 4\nbatch_size: 64", "steps: 1\nbatch_size: 1436"))
    ended = lrtrain("range-test", "c.yaml", "--steps", "20")
    assert ended.code == 2, ended.err
    assert "BatchNorm needs two images or more at a time, and the last batch of an epoch leaves it one" in ended.err


def test_photos_of_ones_own_train_and_evaluate(lrtrain: Callable[..., Ended], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("""
epochs: 2
batch_size: 8
model: resnet18
dataset: {name: imagefolder, root: photos, transforms: {train: [{name: RandomResizedCrop, size: 32}, RandomHorizontalFlip]}}
optimizer: {name: AdamW, lr: 0.001}
schedule: {name: CosineAnnealingLR, warmup: 1ep}
workers: 1
""")
    ended = lrtrain("fit", "c.yaml")
    assert ended.code == 0, ended.err
    assert "2 classes of 12 images: blue, red" in ended.out
    evaluated = lrtrain("evaluate", "runs/c", "--split", "train")
    assert evaluated.code == 0, evaluated.err
    assert "24 images" in evaluated.out
    assert lrtrain("evaluate", "runs/c", "--split", "test").code == 3
    shutil.copy(photos / "train" / "red" / "0.jpg", photos / "train" / "red" / "more.jpg")
    evaluated = lrtrain("evaluate", "runs/c")
    assert evaluated.code == 0, "25 images leave a training batch of one, and nothing is trained"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("models", "resnet18"),
        ("schedules", "OneCycleLR"),
        ("optimizers", "AdamW"),
        ("datasets", "CIFAR10"),
        ("transforms", "RandomResizedCrop"),
    ],
)
def test_list_shows_names_with_their_arguments(lrtrain: Callable[..., Ended], kind: str, name: str) -> None:
    assert re.search(rf"^{name}\b", lrtrain("list", kind).out, re.MULTILINE)


def test_list_marks_what_must_be_given_and_what_is_filled_in(lrtrain: Callable[..., Ended]) -> None:
    shown = lrtrain("list", "schedules").out
    rows = {line.split()[0]: line for line in shown.splitlines() if line}
    assert "T_max+, eta_min" in rows["CosineAnnealingLR"]
    assert "max_lr+, total_steps+, epochs," in rows["OneCycleLR"]
    assert "base_lr*, max_lr+" in rows["CyclicLR"]
    assert "total_iters+" in rows["LinearLR"]
    assert "step_size*" in rows["StepLR"]
    assert "* has no default; + is filled in when left out." in shown
    assert "+" not in lrtrain("list", "optimizers").out


def test_the_schema_is_json(lrtrain: Callable[..., Ended]) -> None:
    assert json.loads(lrtrain("schema").out)["title"] == "lrtrain config"


def test_at_the_exit_torch_looks_for_no_package() -> None:
    """It would look in the working folder, whose disk may be gone."""
    script = """
import atexit, sys, types
from lrtrain.ending import ending
found = sys.modules["torch._dynamo.utils"] = types.SimpleNamespace(dump_compile_times=lambda: print("looked"))
atexit.register(found.dump_compile_times)
atexit.register(print, "left")
ending(lambda: 3)()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "left\n", "")
