"""A full disk: training waits for room in memory, and one too small is refused before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrtrain.commands.fit import write_plan
from lrtrain.errors import EnvironmentFault
from lrtrain.sinks.jsonl import append
from lrtrain.sinks.patience import Patience
from lrtrain.sinks.run_dir import RunDir
from tests.folders import files_of_at_most
from tests.forked import environment
from tests.test_engine import job
from tests.test_fit import QUICK, assert_same_bits, fit


def test_a_full_disk_is_waited_for_and_nothing_is_written_twice(tmp_path: Path) -> None:
    path, said, failures = tmp_path / "log.jsonl", list[str](), [28, 28]

    def write() -> None:
        if failures:
            append_to_full_disk(path, failures.pop())
        with path.open("ab", buffering=0) as file:
            append(file, path, {"step": 1})

    patience = Patience(60, said.append, lambda: None)
    import lrtrain.sinks.patience as module

    before, module.EVERY_SECONDS = module.EVERY_SECONDS, 0.01
    try:
        patience(write)
    finally:
        module.EVERY_SECONDS = before
    assert path.read_text() == '{"step": 1}\n'
    assert len(said) == 2
    assert "No space left on device" in said[0]
    assert said[1].startswith("there is room again")
    with pytest.raises(EnvironmentFault, match="No space left"):
        Patience(0, said.append, lambda: None)(lambda: append_to_full_disk(path, 28))
    with pytest.raises(EnvironmentFault, match="No space left"):
        Patience(60, said.append, lambda: "SIGTERM")(lambda: append_to_full_disk(path, 28))
    with pytest.raises(EnvironmentFault, match="Input/output error"):
        Patience(60, said.append, lambda: None)(lambda: append_to_full_disk(path, 5))


def append_to_full_disk(path: Path, number: int) -> None:
    error = OSError(number, os.strerror(number))
    raise EnvironmentFault(f"{path.name} could not be written: {error.strerror}", str(path)) from error


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="makes a small file system of its own")
def test_a_disk_that_fills_up_pauses_training_and_room_lets_it_go_on(tmp_path: Path) -> None:
    """A real file system of 400 kB, filled up after the first checkpoint and emptied again a second later."""
    assert fit(tmp_path, QUICK, "--out", "run").returncode == 0
    (tmp_path / "c.yaml").write_text(QUICK)
    script = f"""
    mount -t tmpfs -o size=900k none small || exit 77
    mkdir small/other && head -c 100 /dev/zero > small/other/x
    {sys.executable} -m lrtrain fit c.yaml --out small/run > out 2>&1 &
    while ! [ -e small/run/checkpoints/last.json ]; do sleep 0.02; done
    cat /dev/zero > small/other/filler 2>/dev/null
    for i in $(seq 200); do grep -q 'training waits' out && break; sleep 0.05; done
    rm small/other/filler
    wait $!; code=$?
    rm -rf small/other; cp -r small/run saved
    exit $code
    """
    (tmp_path / "small").mkdir()
    ended = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    if ended.returncode == 77:
        pytest.skip("may not mount")
    shown = (tmp_path / "out").read_text()
    assert ended.returncode == 0, shown + ended.stderr
    assert "training waits" in shown
    assert "there is room again" in shown
    assert_same_bits(tmp_path / "run", tmp_path / "saved")


def test_a_disk_too_small_is_refused_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lrtrain.sinks.run_dir import refuse_small_disk

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 4 * 10**6, 4 * 10**6))
    refuse_small_disk(tmp_path / "run", 10**6)
    with pytest.raises(EnvironmentFault, match=r"needs 6.6 MB .* 4.0 MB are free"):
        refuse_small_disk(tmp_path / "run", 3 * 10**6)


def test_a_run_whose_config_could_not_be_written_is_begun_anew(tmp_path: Path) -> None:
    made = job()
    with files_of_at_most(100), pytest.raises(EnvironmentFault, match="begin anew, without --resume"):
        write_plan(made, RunDir(tmp_path), "c.yaml")
    write_plan(made, RunDir(tmp_path), "c.yaml")
    with files_of_at_most(100), pytest.raises(EnvironmentFault, match="then `--resume`"):
        write_plan(made, RunDir(tmp_path), "c.yaml")
