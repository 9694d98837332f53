"""A signal to one process, to all, or to torchrun stops and saves all of them; so does torchrun's own end.

Through real torchrun processes, whose heartbeat is shortened as in test_distributed_faults.py.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from lrtrain.commands.signals import ECHO_S
from lrtrain.engine import heartbeat
from lrtrain.world import World
from tests.test_distributed_faults import PROMISED_S, READ_IN_WORKERS, Run, folder, photos, soon, within

__all__ = ["folder"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def test_a_torchrun_that_ctrl_z_stops_is_waited_for(folder: Path) -> None:
    run = Run(folder, "")
    run.until_fault()
    os.kill(run.process.pid, signal.SIGSTOP)
    time.sleep(9)  # a store that is silent for 4 s is lost, and 2 s later its processes end
    os.kill(run.process.pid, signal.SIGCONT)
    run.ended(0)
    assert (run.status()["state"], run.status()["exit_code"]) == ("done", 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_and_saves_all(folder: Path, rank: int) -> None:
    # Long enough a save that torchrun would hurry the leading process when the other has ended.
    slow = "from lrtrain.checkpoint import format; real = format.write_synced; "
    slow += "format.write_synced = lambda path, data: (time.sleep(0.5), real(path, data)); "
    run = Run(folder, slow + "os.kill(os.getpid(), signal.SIGTERM)", rank=rank)
    run.until_fault()
    run.ended()
    assert (run.status()["state"], run.status()["exit_code"], run.status()["step"]) == ("stopped", 143, 7)
    assert run.status()["last_checkpoint"] == "step-00000007"
    assert "error: " not in run.errors()


def test_a_signal_to_one_process_in_an_evaluation_gives_it_up_in_all(folder: Path) -> None:
    # In the only batch of process 1, of three.
    ask = "os.kill(os.getpid(), signal.SIGTERM)"
    during = f"real = Net.forward; Net.forward = lambda self, images: (self.training or {ask}, real(self, images))[1]"
    run = Run(folder, during, "--set", "batch_size=120", "--set", "epochs=1")
    run.until_fault()
    run.ended()
    assert (run.status()["state"], run.status()["exit_code"], run.status()["step"]) == ("stopped", 143, 12)
    assert run.status()["last_checkpoint"] == "step-00000012"
    assert '"eval"' not in (run.out / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("to", "number", "code"),
    [("torchrun", signal.SIGINT, 130), ("leader", signal.SIGTERM, 143), ("follower", signal.SIGTERM, 143)],
)
def test_a_second_signal_ends_a_process_at_once_and_the_others_know_it(
    folder: Path, to: str, number: int, code: int
) -> None:
    run = Run(folder, "time.sleep(60)", rank=int(to == "follower"))
    at = run.until_fault()
    pid = run.process.pid if to == "torchrun" else run.ranks[to == "follower"]
    os.kill(pid, number)
    time.sleep(ECHO_S + 0.2)
    os.kill(pid, number)
    run.ended(None)
    assert time.monotonic() - at < PROMISED_S
    if to == "follower":
        run.assert_lost(f"process 1 of 2 ended with exit code {code}: it was stopped at once, most often by a second")
    else:
        assert (run.status()["state"], run.status()["exit_code"]) == ("stopped", code)
        assert "at once by a second signal" in run.status()["message"]
        assert "error: " not in run.errors()


def test_a_signal_for_a_queue_that_ends_torchrun_too_is_the_one_told(folder: Path) -> None:
    run = Run(folder, "time.sleep(3)")
    run.until_fault()
    for pid in (run.process.pid, *run.ranks):
        os.kill(pid, signal.SIGUSR1)
    run.ended(code=-signal.SIGUSR1)
    assert soon(lambda: not within(folder))
    assert (run.status()["state"], run.status()["exit_code"]) == ("stopped", 75)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_whose_launcher_is_killed_save_and_end(folder: Path, processes: int) -> None:
    photos(folder / "photos")
    run = Run(folder, "", *READ_IN_WORKERS, rank=0, processes=processes, SIZE="16,16")
    run.until_fault()
    assert len(within(folder)) == 1 + 2 * processes  # torchrun, its processes, and a worker of each
    run.process.kill()
    run.ended(code=-9)
    assert soon(lambda: not within(folder))
    assert (run.status()["state"], run.status()["exit_code"]) == ("stopped", 143)


def test_a_signal_to_one_process_ends_the_wait_of_another_for_room(folder: Path) -> None:
    full = "import errno; from lrtrain.checkpoint import format; no_room = OSError(errno.ENOSPC, 'No space left on device'); "
    full += "format.write_synced = lambda path, data: (pathlib.Path('full').touch(), (_ for _ in ()).throw(no_room))"
    run = Run(folder, full, rank=0)
    run.until(lambda: (folder / "full").exists())
    time.sleep(1)  # by then it waits for the other, in gloo
    os.kill(run.ranks[1], signal.SIGTERM)
    run.ended()
    run.assert_lost("the checkpoint of step 10 could not be written: No space left on device", code=5)


def test_a_step_longer_than_a_hanging_process_is_waited_for_is_saved_after_torchruns_end(folder: Path) -> None:
    run = Run(folder, "time.sleep(8); pathlib.Path('slept').touch()", rank=0)
    run.until_fault()
    run.process.kill()
    run.ended(code=-9)
    assert soon(lambda: not within(folder))
    assert (folder / "slept").exists()
    assert (run.status()["state"], run.status()["exit_code"], run.status()["step"]) == ("stopped", 143, 7)


def test_a_process_that_dies_when_all_is_saved_is_torchruns_to_tell(folder: Path) -> None:
    die = "from lrtrain.engine import distributed; distributed._wait_for_all = lambda: os.kill(os.getpid(), 9)"
    run = Run(folder, die, "--set", "epochs=2")
    run.ended()
    assert (run.status()["state"], run.status()["exit_code"]) == ("done", 0)
    assert "error: " not in run.errors()
    assert "exitcode  : -9" in run.errors()


def test_processes_that_are_all_ended_from_outside_do_not_look_for_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRTRAIN_TESTING", "1")
    monkeypatch.setenv("LRTRAIN_BEAT_S", "0.05")
    monkeypatch.setattr(heartbeat, "ENDED_BEATS", 10_000)
    store = dist.HashStore()
    beats = [heartbeat.Heartbeat(store, World(rank, 2), lambda error: None) for rank in range(2)]
    for beat in beats:
        beat.start()
    try:
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(lambda beat: beat.cause(ended_from_outside=True), beats)) == [None, None]
    finally:
        for beat in beats:
            beat.stop()


def test_an_end_of_torchrun_from_before_torch_was_imported_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRTRAIN_TESTING", "1")
    monkeypatch.setenv("LRTRAIN_BEAT_S", "0.05")
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with heartbeat.ending_with_torchrun(World(launch="job", parent=-1)):
            assert soon(lambda: bool(heard))
    finally:
        signal.signal(signal.SIGTERM, before)
