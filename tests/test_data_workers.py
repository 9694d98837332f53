"""Processes that make images: what they lack, how they end, and what is said of it."""

from __future__ import annotations

import ctypes
import glob
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import SemLock
from unittest.mock import Mock

import pytest
import torch

from lrtrain.commands.faults import no_bug
from lrtrain.data.inspect import look
from lrtrain.data.workers import by_workers, one_made
from lrtrain.errors import AtOnce, EnvironmentFault
from tests.folders import files_of_at_most, noise
from tests.test_data_batches import batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """26 images of noise, 16x16, in two classes, half of them beside as val."""
    return noise(tmp_path_factory.mktemp("images"), {"train": 13, "val": 5})


def test_a_worker_that_dies_is_an_environment_fault(folder):
    made = batches(folder, "photos", workers=1, cache="off")
    object.__setattr__(made.pipeline.source.train, "root", Dies())
    with pytest.raises(EnvironmentFault, match="a data worker died"):
        list(made.train(0, 4))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_system_that_has_gone_away_is_no_fault_of_an_image(folder, workers, monkeypatch):
    def gone(path, links):
        raise OSError(107, "Transport endpoint is not connected", path)

    made = batches(folder, "photos", workers=workers, cache="off")
    monkeypatch.setattr("lrtrain.foreign.opened", gone)
    with pytest.raises(OSError, match="Transport endpoint") as caught:
        list(made.train(0, 4))
    problem, code = no_bug(caught.value)
    assert (code, "Transport endpoint is not connected" in problem.what) == (5, True)
    assert ".png" in f"{problem.what} {problem.where}"
    assert "mount it again" in problem.hint
    with pytest.raises(OSError, match="Transport endpoint"):
        look(made.pipeline.source.train, 0, 3)


class Hangs(list):
    """Hangs with the third order, such that nothing can be had from the process, not even what it made before."""

    def __getitem__(self, i):
        if i == 2:
            time.sleep(0.5)
            ctypes.PyDLL(None).sleep(60)
        return torch.full((3,), i)


def test_workers_that_were_stopped_with_the_main_process_do_not_hang():
    """As Ctrl-Z and fg, or a cluster that suspends a job: the clock goes on, and nobody had any time."""
    script = """
import time, torch
from lrtrain.data.workers import by_workers
class Slow(list):
    def __getitem__(self, i):
        time.sleep(1)
        return torch.full((1,), i)
for images in by_workers(Slow(), range(3), workers=1, patience_s=4.0):
    print(images.item(), flush=True)
"""
    started = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", script], **started) as run:
        said = [run.stdout.readline()]
        os.killpg(run.pid, signal.SIGSTOP)
        time.sleep(6)
        os.killpg(run.pid, signal.SIGCONT)
        assert said + run.stdout.readlines() == ["0\n", "1\n", "2\n"]
    assert run.returncode == 0


def test_a_worker_that_hangs_with_images_in_its_hands_is_not_waited_for_for_ever():
    made = by_workers(Hangs(), range(4), workers=1, patience_s=2.0)
    assert next(made).tolist() == [0, 0, 0]
    time.sleep(2)
    with pytest.raises(EnvironmentFault, match=r"the data workers hang: no images came for 2 s"):
        next(made)
    assert not multiprocessing.active_children()


class Computes(list):
    def __getitem__(self, i):
        began = time.monotonic()
        while time.monotonic() < began + 4:
            pass
        return torch.zeros(3)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known what workers do")
def test_a_worker_that_computes_for_long_does_not_hang():
    assert len(list(by_workers(Computes(), [0], workers=1, patience_s=1.0))) == 1


class Waits(list):
    def __getitem__(self, i):
        for _ in range(16):
            time.sleep(0.3)
            one_made()
        return torch.zeros(3)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
def test_a_worker_that_makes_image_after_image_does_not_hang_however_slowly():
    assert len(list(by_workers(Waits(), [0], workers=1, patience_s=1.0))) == 1


BEGINS = """
import multiprocessing, sys, torch
from lrtrain.data.workers import by_workers, one_made
from lrtrain.errors import LrtrainError
class Own(list):
    made = lambda self, i: torch.full((1,), i)
    def __getitem__(self, i):
        return self.made(i)
own = Own()
if sys.argv[2:]:
    own.how = lambda: None
if __name__ == "__main__":
    if sys.argv[1] != "-":
        multiprocessing.set_start_method(sys.argv[1])
    try:
        print([images.item() for images in by_workers(own, range(3), workers=2)])
    except LrtrainError as error:
        print(type(error).__name__, error)
    print(multiprocessing.active_children())
"""


@pytest.mark.parametrize(
    ("method", "own", "said"),
    [
        ("-", ["lambda"], "[0, 1, 2]"),
        ("forkserver", [], "[0, 1, 2]"),
        ("forkserver", ["lambda"], "ConfigError error: data workers cannot be sent what they need"),
        ("spawn", ["lambda"], "ConfigError error: data workers cannot be sent what they need"),
    ],
)
def test_workers_are_forked_unless_own_code_has_chosen_and_what_cannot_be_sent_is_named(tmp_path, method, own, said):
    (tmp_path / "own.py").write_text(BEGINS)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "multiprocessing.py").write_text("print('of the working folder')")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [*sys.path[:1], *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        ),
    }
    ended = subprocess.run(
        [sys.executable, "../own.py", method, *own],
        cwd=tmp_path / "here",
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said in ended.stdout, ended.stderr
    assert "of the working folder" not in ended.stdout
    assert ended.stdout.endswith("[]\n")
    assert ("workers: 0" in ended.stdout) == ("ConfigError" in said)


def test_a_worker_that_dies_before_it_has_all_that_it_is_given_is_told_as_dead(monkeypatch):
    def broken(made, loader):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__init__", broken)
    with pytest.raises(EnvironmentFault, match="a data worker died: DataLoader worker exited as it began"):
        next(by_workers(Sleeps(), range(3), workers=1))


class Sleeps(list):
    def __getitem__(self, i):
        if i:
            time.sleep(60)
        return torch.zeros(3)


def test_workers_that_are_busy_are_not_waited_for_at_the_end():
    made = by_workers(Sleeps(), range(9), workers=2)
    next(made)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 8  # torch would wait ten seconds for each
    assert not multiprocessing.active_children()


def test_a_second_signal_while_workers_are_ended_is_no_traceback(monkeypatch, capfd):
    def interrupted(made):
        raise AtOnce(143)

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown_workers", interrupted)
    made = by_workers(Sleeps(), range(9), workers=2)
    next(made)
    del made
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


def test_a_worker_that_cannot_be_killed_is_not_waited_for(monkeypatch):
    """As one that waits in the kernel for a file system that does not answer."""
    kept = []
    monkeypatch.setattr("multiprocessing.process.BaseProcess.kill", lambda self: kept.append(self))
    with pytest.raises(EnvironmentFault, match="the data workers hang"):
        list(by_workers(Sleeps(), [1], workers=1, patience_s=1.0))
    assert kept[0].is_alive()
    assert not multiprocessing.active_children()
    os.kill(kept[0].pid, signal.SIGKILL)
    kept[0].join()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_a_worker_that_just_begins(sent, monkeypatch):
    """One to the whole process group is for the main process; what kills it is told and not waited for."""
    launch = pkgutil.resolve_name("multiprocessing.popen_fork.Popen._launch")

    def launched(self, process):
        launch(self, process)
        os.kill(self.pid, sent)
        if sent == signal.SIGKILL:  # before torch notes which workers there are
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr("multiprocessing.popen_fork.Popen._launch", launched)
    made = by_workers([torch.ones(3)], [0], workers=1, patience_s=15.0)
    if sent == signal.SIGKILL:
        with pytest.raises(EnvironmentFault, match=r"a data worker died.*killed by signal: Killed"):
            list(made)
    else:
        assert [images.tolist() for images in made] == [[1, 1, 1]]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(
    ("starting", "error", "orders"),
    [
        ("multiprocessing.popen_fork.Popen._launch", BlockingIOError(11, "Resource temporarily unavailable"), [0, 1]),
        ("threading.Thread.start", RuntimeError("can't start new thread"), [0, 1]),
        ("threading.Thread.start", RuntimeError("can't start new thread"), [0]),
    ],
    ids=["fork", "a thread", "a thread, at the end"],
)
def test_no_worker_stays_where_a_second_process_or_thread_is_not_allowed(starting, error, orders, monkeypatch):
    start, started, main = pkgutil.resolve_name(starting), [], os.getpid()

    def once(self, *args):
        started.append(self)
        if len(started) > 1 and os.getpid() == main:
            raise error
        return start(self, *args)

    monkeypatch.setattr(starting, once)
    with pytest.raises(type(error)) as caught:
        list(by_workers([torch.ones(3)] * 2, orders, workers=2, patience_s=15.0))
    for worker in multiprocessing.active_children():
        worker.join(5)
    assert not multiprocessing.active_children()
    problem, code = no_bug(caught.value)
    assert (code, problem.what) == (5, "no more processes or threads are allowed here")
    assert "workers" in problem.hint


@pytest.mark.parametrize(
    ("error", "made"),
    [
        (FileNotFoundError(2, "No such file or directory"), 0),
        (ImportError("no functioning sem_open"), 0),
        (OSError(28, "No space left on device"), 3),
    ],
    ids=["none", "no locks", "few files"],
)
def test_workers_without_shared_memory_are_refused_in_those_words(error, made, monkeypatch):
    lock, left = SemLock.__init__, iter(range(made))

    def few(*args, **kwargs):
        if next(left, None) is None:
            raise error
        lock(*args, **kwargs)

    monkeypatch.setattr(SemLock, "__init__", few)
    with pytest.raises(EnvironmentFault, match=f"shared memory.*: {error.args[-1]}\n  at   /dev/shm") as caught:
        list(by_workers([torch.ones(3)], [0], workers=1))
    assert "`workers:`, or 0" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (None, "ulimit -f"),
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left", "--shm-size 8g"),
    ],
    ids=["a file's size", "room"],
)
def test_a_batch_that_shared_memory_has_no_room_for_is_told_at_once(folder, error, hint, monkeypatch, capfd):
    made = batches(folder, "photos", workers=1, cache="off")
    if error:
        monkeypatch.setattr("torch.UntypedStorage._new_shared", Mock(side_effect=RuntimeError(error)))
    there = set(glob.glob("/dev/shm/torch_*"))
    words = r"no room for a batch of 0\.00614 MB: (File too large|No space left)"
    with files_of_at_most(5_000), pytest.raises(EnvironmentFault, match=words) as caught:
        list(made.train(0, 4))
    (problem,) = caught.value.problems
    assert problem.where == "/dev/shm"
    assert hint in problem.hint
    assert "`workers: 0`" in problem.hint
    assert "Traceback" not in capfd.readouterr().err
    left = set(glob.glob("/dev/shm/torch_*")) - there
    time.sleep(0.1)  # other processes' own are gone at once
    assert not left & set(glob.glob("/dev/shm/torch_*"))


def test_a_worker_that_cannot_send_its_images_is_not_waited_for(capfd):
    with pytest.raises(EnvironmentFault, match="a data worker died"):
        list(by_workers([Unsendable()], [0], workers=1))
    assert (
        "a data worker cannot hand over its images: OSError: [Errno 24] Too many open files" in capfd.readouterr().err
    )


class Unsendable:
    def __reduce__(self):
        raise OSError(24, "Too many open files")


def test_workers_send_images_where_the_folder_for_temporary_files_has_a_long_path(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    (sent,) = by_workers([torch.ones(3)], [0], workers=1, patience_s=15.0)
    assert sent.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("error", "told"), [("BrokenPipeError", False), ("ValueError", True)])
def test_a_worker_says_nothing_of_a_main_process_that_ends(error, told):
    code = f"from lrtrain.data import workers; workers._start_worker(None, None, 0); raise {error}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ("Traceback" in ended.stderr) == told


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's own watch ends it")
@pytest.mark.parametrize(("parent", "code"), [("os.getppid()", 0), ("1", 1), ("None", 0)])
def test_a_worker_whose_main_process_was_killed_as_it_began_ends(parent, code):
    begins = f"import os; from lrtrain.data import workers; workers._start_worker(None, {parent}, 0)"
    assert subprocess.run([sys.executable, "-c", begins], check=False).returncode == code


class Dies:
    """A folder that ends the process which looks into it."""

    def __fspath__(self):
        os._exit(9)
