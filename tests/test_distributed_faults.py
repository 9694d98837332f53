"""A process that dies, hangs or runs out of disk ends the others, with the first error shown, and leaves nothing behind.

Through real torchrun processes, whose heartbeat is shortened: a process counts as lost after 4 s, not 16.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrtrain.config.schema import Dataset
from lrtrain.config.yaml import dotted
from lrtrain.data.batches import Batches
from lrtrain.data.build import make_pipeline
from lrtrain.data.loader import Order, Workshop, fulfilled
from lrtrain.data.open import open_source
from lrtrain.data.transforms import Moment
from lrtrain.engine import heartbeat
from lrtrain.engine.distributed import needing_peers
from lrtrain.engine.heartbeat import Fault
from lrtrain.errors import DistributedError, EnvironmentFault, Problem
from lrtrain.world import World, from_environment
from tests import forked
from tests.conftest import Ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

PROMISED_S = 30
CONFIG = """
epochs: 40
batch_size: 100
model: "faulty:net"
dataset: digits
optimizer: {name: SGD, lr: 0.01}
schedule: {name: CosineAnnealingLR}
log_every: 1step
checkpoint: {every: 5step}
"""
# At the seventh step, one process does what FAULT says.
NET = """
import os, pathlib, signal, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.steps, self.head = 0, nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        self.head(torch.zeros(2, channels, *map(int, os.environ.get("SIZE", "8,8").split(","))))

    def forward(self, images):
        if self.training:
            self.steps += 1
            if self.steps == 7 and os.environ["RANK"] == os.environ.get("FAULT_RANK", "1"):
                pathlib.Path("fault").touch()
                exec(os.environ.get("FAULT", ""), globals())
            time.sleep(0.02)
        return self.head(images * globals().get("SCALE", 1))

def net(num_classes, in_channels):
    if os.environ.get("FAULT_RANK") == "1" == os.environ["RANK"] and "build" in os.environ:
        exec(os.environ["build"])
    return Net(num_classes, in_channels)
"""


class Run:
    """A run of two processes in a folder, and when its fault came."""

    def __init__(self, folder: Path, fault: str = "", *arguments: str, rank: int = 1, processes: int = 2, **env: str):
        self.folder, self.out = folder, folder / "run"
        (folder / "faulty.py").write_text(NET)
        (folder / "c.yaml").write_text(CONFIG)
        torchrun = [
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "-m",
            "lrtrain",
            "fit",
            "c.yaml",
            "--out",
            "run",
        ]
        told = {**environment(folder), "FAULT": fault, "FAULT_RANK": str(rank), **env}
        self.process = forked.Forked([*torchrun, *arguments], folder, told, module="torch.distributed.run")
        self.ranks: list[int] = []

    def until_fault(self) -> float:
        """Wait for the fault; when it came."""
        return self.until(lambda: (self.folder / "fault").exists())

    def until(self, true: Callable[[], bool]) -> float:
        """Wait until something holds; when it did."""

        def so() -> bool:
            self.ranks = ranks(self.process.pid) or self.ranks
            return true()

        if not forked.until(so, self.process) and not true():
            self.process.kill()
            pytest.fail(self.errors())
        return time.monotonic()

    def ended(self, code: int | None = 1) -> None:
        """Wait for torchrun."""
        found = self.process.wait(timeout=90)
        assert code is None or found == code, self.errors()

    def errors(self) -> str:
        return self.process.communicate(timeout=90)[1]

    def status(self) -> dict[str, Any]:
        return json.loads((self.out / "status.json").read_text())

    def assert_lost(self, words: str, code: int = 8) -> None:
        """The leading process ended with `code`, said so where programs look, and one error was shown."""
        assert (self.status()["state"], self.status()["exit_code"]) == ("failed", code)
        assert words in self.status()["message"]
        assert self.errors().count("error: ") == 1
        assert words in self.errors()
        assert "lrtrain/engine" not in self.errors()  # the only traceback is torchrun's own
        assert "is kept: `lrtrain fit --resume --out run --trust`" in self.errors()


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder}{os.pathsep}{forked.REPOSITORY}"
    return forked.environment(PYTHONPATH=path, LRTRAIN_TESTING="1", LRTRAIN_BEAT_S="0.5", LRTRAIN_JOIN_S="10")


def ranks(launcher: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    try:
        return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def within(folder: Path) -> list[int]:
    """Processes that work in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink() == folder and alive(int(path.name)):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def soon(true: Callable[[], bool], seconds: float = PROMISED_S) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    shared = set(Path("/dev/shm").glob("torch_*"))
    yield tmp_path
    left = within(tmp_path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    assert not set(Path("/dev/shm").glob("torch_*")) - shared


@pytest.mark.parametrize(
    ("fault", "words"),
    [  # one that is killed: see test_distributed.py
        ("os._exit(0)", "process 1 of 2 ended without a word"),
        ("raise KeyError('oops')", "process 1 of 2 ended with exit code 2: code of your own fails: KeyError: 'oops'"),
        ("raise SystemExit(7)", "process 1 of 2 ended with exit code 2: code of your own fails: SystemExit: 7"),
    ],
    ids=["left", "raises", "exits"],
)
def test_a_process_that_ends_ends_the_others(folder: Path, fault: str, words: str) -> None:
    run = Run(folder, fault)
    at = run.until_fault()
    run.ended()
    assert time.monotonic() - at < PROMISED_S
    run.assert_lost(words)
    assert "exitcode  : 8" in run.errors()


def test_a_loss_that_is_not_finite_in_one_process_is_told_with_the_images_of_all(folder: Path) -> None:
    run = Run(folder, "SCALE = float('nan')")
    run.until_fault()
    run.ended()
    report = json.loads((folder / "run" / "nonfinite-00000007.json").read_text())
    assert len(report["images"]) == 100
    assert report["culprit"].startswith("the first layer whose output is not finite is")
    assert "loss" in report
    assert run.status()["exit_code"] == 6


def test_a_process_that_is_killed_before_training_ends_the_others(folder: Path) -> None:
    run = Run(folder, "", build="os.kill(os.getpid(), signal.SIGKILL)")
    run.ended()
    assert run.errors().count("error: ") == 1
    assert "error: process 1 of 2 ended without a word" in run.errors()
    assert "exitcode  : 8" in run.errors()


def test_a_leading_process_that_is_killed_ends_the_others(folder: Path) -> None:
    run = Run(folder, "os.kill(os.getpid(), signal.SIGKILL)", rank=0)
    at = run.until_fault()
    run.ended()
    assert time.monotonic() - at < PROMISED_S
    assert run.errors().count("error: ") == 1
    assert "error: process 0 of 2 ended without a word" in run.errors()


def test_a_process_that_hangs_ends_the_others_and_a_slow_one_does_not(folder: Path) -> None:
    # The leading one sleeps for longer than a silent process is waited for, and then the other is stopped.
    run = Run(folder, "time.sleep(6); pathlib.Path('slept').touch()", "--set", "workers=1", rank=0)
    run.until(lambda: (folder / "slept").exists())
    steps = len((run.out / "metrics.jsonl").read_text().splitlines())
    run.until(lambda: len((run.out / "metrics.jsonl").read_text().splitlines()) > steps + 5)
    leading, stopped = run.ranks
    os.kill(stopped, signal.SIGSTOP)
    at = time.monotonic()
    assert soon(lambda: not alive(leading))
    assert time.monotonic() - at < PROMISED_S
    os.kill(stopped, signal.SIGCONT)  # else torchrun takes 30 s to end it
    run.ended()
    run.assert_lost("process 1 of 2 has not answered for 4 s")


TRANSFORMS = "transforms: {train: [{name: CenterCrop, size: 16}], val: [{name: CenterCrop, size: 16}]}"
PHOTOS = ("--set", f"dataset={{name: imagefolder, root: photos, {TRANSFORMS}}}", "--set", "batch_size=8")
READ_IN_WORKERS = (*PHOTOS, "--set", "cache=off", "--set", "workers=1")


def photos(root: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 6)):
        for name in ("red", "blue"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")


def test_the_error_of_the_process_that_reads_a_broken_image_is_the_one_shown(folder: Path) -> None:
    photos(folder / "photos")
    crop = [{"name": "CenterCrop", "size": 16}]
    section = Dataset.model_validate(
        {"name": "imagefolder", "root": str(folder / "photos"), "transforms": {"train": crop, "val": crop}}
    )

    def where(*loc: str | int) -> str:
        return dotted(loc)

    source = open_source(section, 1, where)
    pipeline = make_pipeline(source, section, seed=1, where=where)
    own = Batches(pipeline, batch_size=8, where=where, cache="off", world=World(1, 2))
    broken = Path(source.train.path(int(own._order(6).index[0])))
    broken.write_bytes(broken.read_bytes()[:-60])
    run = Run(folder, "", *READ_IN_WORKERS, "--set", "seed=1", SIZE="16,16")
    run.ended()
    run.assert_lost(f"process 1 of 2 ended with exit code 3: cannot read the image {broken.relative_to(folder)}")
    assert "exitcode  : 3" in run.errors()


def test_a_full_disk_of_the_leading_process_ends_the_others(folder: Path) -> None:
    full = "import errno; from lrtrain.checkpoint import format; " + (
        "format.write_synced = lambda path, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space left on device'))"
    )
    run = Run(folder, full, "--set", "checkpoint.disk_full_wait=0", rank=0)
    at = run.until_fault()
    run.ended()
    assert time.monotonic() - at < PROMISED_S
    run.assert_lost("the checkpoint of step 10 could not be written: No space left on device", code=5)
    assert "exitcode  : 5" in run.errors()
    assert "exitcode  : 8" in run.errors()


def test_a_killed_data_worker_ends_the_run(folder: Path) -> None:
    photos(folder / "photos")
    run = Run(folder, "", *READ_IN_WORKERS, SIZE="16,16")
    run.until_fault()
    worker = ranks(run.ranks[1])[0]
    os.kill(worker, signal.SIGKILL)
    at = time.monotonic()
    run.ended()
    assert time.monotonic() - at < PROMISED_S
    run.assert_lost("process 1 of 2 ended with exit code 5: a data worker died: DataLoader worker (pid")
    assert f" {worker})" in run.errors()  # torch writes pid or pid(s), by how it noticed
    assert "most often memory ran out" in run.errors()


def test_a_stopped_worker_is_an_error_after_a_time() -> None:
    class Slow:
        def __len__(self) -> int:
            return 1

        def read(self, i: int) -> Any:
            os.kill(os.getpid(), signal.SIGSTOP)

        def path(self, i: int) -> str:
            return "slow"

    orders = [Order(np.array([0]), Moment(0, 0))]
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match="data workers hang: no images came for 1 s"):
        list(fulfilled(Workshop("train", Slow(), None), orders, workers=1, patience_s=1))  # type: ignore[arg-type]
    assert time.monotonic() - began < PROMISED_S


def test_the_workers_of_a_killed_process_end_with_it(folder: Path) -> None:
    photos(folder / "photos")
    (folder / "faulty.py").write_text(NET)
    (folder / "c.yaml").write_text(CONFIG)
    command = ["fit", "c.yaml", *READ_IN_WORKERS, "--set", "workers=2"]
    process = forked.Forked(command, folder, {**environment(folder), "SIZE": "16,16", "RANK": "1"})
    assert forked.until(lambda: (folder / "fault").exists(), process)
    assert len(within(folder)) == 3
    process.kill()
    process.wait()
    assert soon(lambda: not within(folder), 10)


def alone(folder: Path, **env: str) -> Ended:
    """One process, told that it is one of several."""
    given = {
        "TORCHELASTIC_RUN_ID": "x",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "LOCAL_RANK": "0",
        "LRTRAIN_JOIN_S": "2",
        **env,
    }
    (folder / "c.yaml").write_text(CONFIG)
    (folder / "faulty.py").write_text(NET)
    ended = forked.run(["fit", "c.yaml", "--out", "run"], folder, {**environment(folder), **given})
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_process_that_waits_for_the_others_to_come_heeds_a_signal(folder: Path) -> None:
    (folder / "c.yaml").write_text(CONFIG)
    (folder / "faulty.py").write_text(NET)
    here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "LRTRAIN_JOIN_S": "60"}
    port = free_port()
    launch = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_PORT": str(port)}
    env = {**environment(folder), **here, **launch}
    process = forked.Forked(["fit", "c.yaml", "--out", "run"], folder, env)
    listens = f":{port:04X} "
    sockets = [file for file in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if file.exists()]
    assert forked.until(lambda: any(listens in file.read_text() for file in sockets), process)
    time.sleep(0.5)
    at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - at < PROMISED_S


def test_processes_that_cannot_meet_are_told_which_variable_to_look_at(folder: Path) -> None:
    import socket

    here = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with socket.socket() as taken, ThreadPoolExecutor() as pool:
        taken.bind(("", 0))
        taken.listen()
        tried = [here, {**here, "RANK": "1", "MASTER_ADDR": "127.0.0.9", "MASTER_PORT": str(free_port())}]
        tried.append({**here, "MASTER_PORT": str(taken.getsockname()[1])})
        few, wrong, busy = pool.map(lambda env: alone(folder, **env), tried)
    met = "of WORLD_SIZE=2 cannot meet the others at MASTER_ADDR="
    assert f"process 0 {met}127.0.0.1, MASTER_PORT=" in few.err
    assert f"process 1 {met}127.0.0.9, MASTER_PORT=" in wrong.err
    assert "EADDRINUSE" in busy.err
    for found in (few, wrong, busy):
        assert found.code == 8, found.err
        assert found.err.count("error: ") == 1
        assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be below WORLD_SIZE"),
        ({"RANK": "one"}, "RANK must be a whole number; it is 'one'"),
        ({"RANK": "1" * 5000}, "RANK must be a whole number; it is '1111"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE must be a whole number; it is '-2'"),
        ({"LOCAL_RANK": "1", "RANK": "0"}, "LOCAL_RANK not above RANK"),
    ],
)
def test_places_that_contradict_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], words: str
) -> None:
    right = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in {"TORCHELASTIC_RUN_ID": "x", **right, **env}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=words):
        from_environment()


def test_a_place_that_is_refused_is_told_by_the_command(folder: Path) -> None:
    found = alone(folder, RANK="2", WORLD_SIZE="2")
    assert found.code == 8
    assert found.err.count("error: ") == 1


def test_what_code_of_the_users_says_of_a_server_is_no_lost_peer() -> None:
    with pytest.raises(RuntimeError, match="timed out"), needing_peers(World(size=2)):
        raise RuntimeError("request timed out")
    with pytest.raises(DistributedError, match="lost its connection"), needing_peers(World(size=2)):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")  # from an own .wait()


def test_a_store_that_blocks_for_ever_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen:
        def __init__(self) -> None:
            self.thawed = threading.Event()

        def add(self, key: str, amount: int) -> int:
            self.thawed.wait()
            raise RuntimeError("connection reset by peer")

        set = check = add

    monkeypatch.setenv("LRTRAIN_TESTING", "1")
    monkeypatch.setenv("LRTRAIN_BEAT_S", "0.05")
    ended = threading.Event()
    monkeypatch.setattr(heartbeat, "_end_process_unless", lambda over, grace_s: ended.set())
    store, told = Frozen(), []
    beat = heartbeat.Heartbeat(store, World(1, 2), told.append)  # type: ignore[arg-type]
    beat.start()
    try:
        assert ended.wait(5)
    finally:
        store.thawed.set()
        beat.stop()
    assert [str(error).partition(" at ")[0] for error in told] == [
        "error: process 1 of 2 cannot reach torchrun's store"
    ]


def test_a_fault_comes_back_from_the_store_as_it_was() -> None:
    fault = Fault(1, (Problem("broken", "c.yaml:3", "mend it"), Problem("also")), 3)
    assert Fault.from_json(fault.to_json().encode()) == fault
    assert str(fault.error(4)).startswith("error: process 1 of 4 ended with exit code 3: broken\n  at   c.yaml:3")


def test_all_go_on_from_the_checkpoint_that_the_leading_process_finds_whole(folder: Path) -> None:
    run = Run(folder, "", "--set", "epochs=1")
    run.ended(0)
    newest = run.out / "checkpoints" / "step-00000015" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = Run(folder, "", "--set", "epochs=1", "--resume")
    again.ended(0)
    assert "resuming run at step 10 of 15" in again.process.communicate()[0]
    assert again.status()["step"] == 15
    for path in run.out.glob("checkpoints/*/manifest.json"):
        path.write_text("{}")
    refused = Run(folder, "", "--set", "epochs=1", "--resume")
    refused.ended(1)
    assert refused.errors().count("error: ") == 1
    assert "every checkpoint is damaged" in refused.errors()
    assert "exitcode  : 4" in refused.errors()
