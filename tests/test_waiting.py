"""A run that waits for images: signals are heard, and no step is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.forked import Forked, environment, run, until
from tests.test_fit import QUICK, assert_same_bits, rows

WAITS = """
import pathlib, time
from PIL import Image
class Data:
    def __init__(self, slow):
        self.slow, self.targets = pathlib.Path(slow + ".slow"), [i % 2 for i in range(64)]
    def __len__(self):
        return 64
    def __getitem__(self, i):
        time.sleep(0.003)
        if self.slow.exists():
            self.slow.with_suffix(".waits").touch()
            time.sleep(60)
        return Image.new("L", (8, 8), 3 * i), self.targets[i]
def data():
    return Data("train"), Data("val")
"""
CONFIG = (
    QUICK.replace("dataset: digits", 'dataset: {name: "waits:data"}\ncache: off\nworkers: 1')
    .replace("epochs: 3", "epochs: 12")
    .replace("batch_size: 64", "batch_size: 16")
    .replace("log_every: 5step", "log_every: 1step\neval_every: 2ep\ncheckpoint: {every: 100step}")
)


def environment_with(folder: Path) -> dict[str, str]:
    return environment(PYTHONPATH=f"{environment()['PYTHONPATH']}{os.pathsep}{folder}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waiting")
    (folder / "waits.py").write_text(WAITS)
    (folder / "c.yaml").write_text(CONFIG)
    ended = run(["fit", "c.yaml", "--out", "whole"], folder, environment_with(folder))
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize(("slow", "number", "code"), [("train", signal.SIGTERM, 143), ("val", signal.SIGUSR1, 75)])
def test_a_signal_is_heard_while_no_images_come_and_no_step_is_lost(
    whole: Path, slow: str, number: signal.Signals, code: int
) -> None:
    process = Forked(["fit", "c.yaml", "--out", slow], whole, environment_with(whole))
    metrics = whole / slow / "metrics.jsonl"
    assert until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 5, process)
    (whole / f"{slow}.slow").touch()
    assert until((whole / f"{slow}.waits").exists, process)
    time.sleep(2)  # what had been made ahead is trained on
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (code, False)
    trained = [row["step"] for row in rows(whole / slow) if row["event"] == "train"]
    saved = json.loads((whole / slow / "checkpoints" / "last.json").read_text())["checkpoint"]
    assert saved == f"step-{max(trained):08d}"
    (whole / f"{slow}.slow").unlink()
    ended = run(["fit", "c.yaml", "--out", slow, "--resume"], whole, environment_with(whole))
    assert ended.returncode == 0, ended.stderr
    assert_same_bits(whole / "whole", whole / slow)
