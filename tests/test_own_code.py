"""The working folder under `python -m lrtrain`: no code in it is run that the config does not ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.forked import environment


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


def test_modules_that_libraries_would_take_if_they_were_there_are_not_taken_from_the_working_folder(
    tmp_path: Path,
) -> None:
    for name in ("opt_einsum", "planted"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(99)")
    (tmp_path / "dill").mkdir()  # a class of herbs
    (tmp_path / "a-1.dist-info").mkdir()
    (tmp_path / "a-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: a\nVersion: 1\n")
    points = "".join(f"[{group}]\na = planted:run\n" for group in ("torch.backends", "pydantic"))
    (tmp_path / "a-1.dist-info" / "entry_points.txt").write_text(points)
    (tmp_path / "c.yaml").write_text(
        "{steps: 2, batch_size: 64, model: {name: small_cnn, width: 4}, dataset: digits, optimizer: {name: SGD, lr: 1.0}}"
    )
    command = [sys.executable, "-m", "lrtrain", "fit", "c.yaml", "--out", "run"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
