"""Files that people name are replaced once the new content is whole, or stay as they were."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from io import TextIOWrapper
from pathlib import Path
from stat import S_ISDIR
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory

import pytest

from lrtrain.checkpoint.format import write
from lrtrain.data.disk_cache import completed
from lrtrain.errors import EnvironmentFault
from lrtrain.foreign import user_path
from lrtrain.sinks.run_dir import refuse_unwritable
from lrtrain.writing import new, replacing, write_atomically
from tests.forked import environment
from tests.hostile import Typed, assert_clear

CONFIG = """
steps: 4
batch_size: 64
model: {name: small_cnn, width: 4}
dataset: digits
optimizer: {name: SGD, lr: 0.01}
"""


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    """Types commands in a folder with c.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    return Typed(monkeypatch, capfd)


def test_what_could_not_be_written_whole_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    for name in ("a", "b"):
        with suppress(ZeroDivisionError), replacing(tmp_path / name) as file:
            file.write(b"half" * (1 // 0))
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "precious"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="has no files in memory")
def test_a_file_in_memory_is_a_file_and_no_way_out(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / "c.yaml").write_text(CONFIG)
        monkeypatch.chdir(folder)
        assert_clear(typed("preview", "c.yaml", "--csv", "c.yaml"), 2, "--csv would write over the config")
        assert (Path(folder) / "c.yaml").read_text() == CONFIG


def test_of_two_that_write_one_file_at_once_each_is_whole(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from lrtrain.writing import replacing
with replacing(Path("a")) as file:
    file.write(b"x" * 1000)
    print("begun", flush=True)
    sys.stdin.read()
    file.write(b"x" * 1000)
"""
    other = Popen([sys.executable, "-c", script], cwd=tmp_path, stdin=PIPE, stdout=PIPE, env=environment())
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"begun\n"
    with replacing(tmp_path / "a") as file:
        file.write(b"y" * 1000)
    assert (tmp_path / "a").read_bytes() == b"y" * 1000
    other.communicate()
    assert other.returncode == 0
    assert (tmp_path / "a").read_bytes() == b"x" * 2000
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_system_that_has_gone_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))

    with monkeypatch.context() as away:
        for name in ("open", "stat", "lstat"):
            away.setattr(os, name, gone)
        away.setattr(Path, "open", gone)
        with pytest.raises(EnvironmentFault, match=r"a\.json could not be written: Transport .*\n.*\n.*mount it again"):
            write_atomically(tmp_path / "a.json", "{}")
        with pytest.raises(EnvironmentFault, match=r"cannot be reached: Transport .*\n.*mount it again"):
            user_path(tmp_path / "data")


def test_a_new_file_is_never_another_and_never_half(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    (tmp_path / "link").symlink_to("nothing")
    for name in ("a", "link"):
        with pytest.raises(FileExistsError), new(tmp_path / name):
            pass
    with suppress(ZeroDivisionError), new(tmp_path / "b") as file:
        file.write(b"half" * (1 // 0))
    assert sorted(os.listdir(tmp_path)) == ["a", "link"]
    assert (tmp_path / "a").read_text() == "precious"


def test_a_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    """/dev/stdout may be a file, where the shell says `> FILE`."""
    with (tmp_path / "shell").open("wb", buffering=0) as shell:
        shell.write(b"a table, ")
        with replacing(Path(f"/dev/fd/{shell.fileno()}")) as file:
            file.write(b"told")
        shell.write(b", and the next line")
    assert (tmp_path / "shell").read_text() == "a table, told, and the next line"
    assert os.listdir(tmp_path) == ["shell"]
    with replacing(Path(os.devnull)) as file, TextIOWrapper(file) as text:
        text.write("nothing")
    refuse_unwritable(Path(os.devnull), "--json")
    assert Path(os.devnull).is_char_device()


def test_what_is_written_to_stdout_stands_between_what_is_printed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    line = f"{sys.executable} -m lrtrain preview c.yaml --csv /dev/stdout > out"
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), check=True)
    before, _, after = (tmp_path / "out").read_text().partition("step,epoch,lr.default\n1,")
    assert "steps  LR" in before
    assert after.endswith("\nwrote 4 rows to /dev/stdout\n")


def test_a_name_as_long_as_a_name_can_be_is_written(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / ("ü" * 127), "--json")
    write_atomically(tmp_path / ("ü" * 127), "x")
    assert os.listdir(tmp_path) == ["ü" * 127]
    with pytest.raises(EnvironmentFault, match="File name too long"):
        refuse_unwritable(tmp_path / ("ü" * 128), "--json")


def test_what_to_do_next_is_what_the_command_can_do(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="put it back, then try again"):
        write_atomically(tmp_path / "gone" / "a.json", "x", then="try again")


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_refuses_to_sync_folders_keeps_checkpoints_and_a_disk_that_fails_does_not(
    number: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int, sync: Callable[[int], None] = os.fsync) -> None:
        if S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    with nullcontext() if passes else pytest.raises(EnvironmentFault, match="Input/output"):
        write(tmp_path, 1, {"model": {}}, {})
    with nullcontext() if passes else pytest.raises(OSError, match="Input/output"), completed(tmp_path / "a") as file:
        file.write(b"images")


def test_a_full_disk_costs_no_picture(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrtrain import writing

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    for name, arguments in {
        "a.png": ("preview", "c.yaml", "--plot", "a.png"),
        "a.csv": ("preview", "c.yaml", "--csv", "a.csv"),
    }.items():
        (tmp_path / name).write_text("precious")
        assert_clear(typed(*arguments), 5, "No space left on device", name)
        assert (tmp_path / name).read_text() == "precious"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_range_test_knows_before_its_sweep_that_it_cannot_write(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "rt" / "range-test.png").mkdir(parents=True)
    ended = typed("range-test", "c.yaml", "--steps", "20", "--out", "rt")
    assert_clear(ended, 5, "rt/range-test.png", "--out")
    assert not (tmp_path / "rt" / "range-test.json").exists()


def test_the_next_command_of_a_range_test_keeps_its_overrides(typed: Typed) -> None:
    more = ("--set", "optimizer.momentum=0.5", "--set", "optimizer.lr=0.01", "--set", "seed=3")
    ended = typed("range-test", "c.yaml", "--steps", "20", *more)
    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    assert "lrtrain fit c.yaml --set optimizer.momentum=0.5 --set seed=3 --set optimizer.lr=" in said
