"""Several processes, started by torchrun, train what one process trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lrtrain.config.schema import Dataset
from lrtrain.config.yaml import dotted
from lrtrain.data.batches import Batches
from lrtrain.data.build import make_pipeline
from lrtrain.data.open import open_source
from lrtrain.engine.distributed import replicated
from lrtrain.engine.evaluate import evaluate
from lrtrain.errors import ConfigError
from lrtrain.world import World
from tests import forked
from tests.conftest import Ended

# Without BatchNorm and dropout, two processes compute what one does, up to rounding.
NET = """
from torch import nn
def plain(num_classes, in_channels):
    head = nn.Linear(16, num_classes)
    return nn.Sequential(nn.Conv2d(in_channels, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
"""
PLAIN = """
epochs: 2
batch_size: 100
model: "plain_net:plain"
dataset: {name: digits, transforms: {train: [{name: RandomCrop, size: 8, padding: 1}]}}
optimizer:
  name: SGD
  lr: 0.1
  momentum: 0.9
  groups: [{name: head, params: "^4", frozen_until: 5step}]
schedule: {name: OneCycleLR}
precision: fp32
accumulate: 4
clip_norm: 1.0
ema: 0.9
log_every: 1step
"""
# Everything that has state.
WHOLE = """
epochs: 3
batch_size: 128
model: small_cnn
dataset: {name: digits, transforms: {train: [{name: RandomCrop, size: 8, padding: 1}]}}
optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
schedule: {name: CosineAnnealingLR, warmup: 1ep}
mixup: 0.2
ema: 0.9
log_every: 1step
checkpoint: {every: 3step, keep: 20}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plain_net.py").write_text(NET)
    (tmp_path / "plain.yaml").write_text(PLAIN)
    (tmp_path / "whole.yaml").write_text(WHOLE)
    return tmp_path


def started(folder: Path, *arguments: str, launcher: tuple[str, ...] = (), processes: int = 2) -> forked.Forked:
    """torchrun in the background."""
    torchrun = ["--standalone", "--nproc-per-node", str(processes), *launcher, "-m", "lrtrain", "fit", *arguments]
    return forked.Forked(torchrun, folder, environment(folder), module="torch.distributed.run")


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return forked.environment(PYTHONPATH=path, LRTRAIN_TESTING="1", LRTRAIN_BEAT_S="0.5")


def ended(process: forked.Forked) -> Ended:
    out, err = process.communicate(timeout=120)
    return Ended(process.wait(), out, err)


def two(folder: Path, *arguments: str) -> Ended:
    return ended(started(folder, *arguments))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, part: str = "model") -> dict[str, torch.Tensor]:
    last = json.loads((run / "checkpoints" / "last.json").read_text())["checkpoint"]
    return load_file(run / "checkpoints" / last / f"{part}.safetensors")


def after_step(process: forked.Forked, run: Path, step: int) -> None:
    """Wait until a run has logged a step."""

    def logged() -> bool:
        return (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= step

    assert forked.until(logged, process), f"step {step} was not reached: {process.communicate(timeout=60)}"


def batches(world: World, batch_size: int = 100, drop_last: bool = False) -> Batches:
    section = Dataset(name="digits")

    def where(*loc: str | int) -> str:
        return dotted(loc)

    pipeline = make_pipeline(open_source(section, 1, where), section, seed=1, where=where)
    return Batches(pipeline, batch_size=batch_size, where=where, drop_last=drop_last, workers=0, world=world)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_parts_of_all_processes_are_the_batches_of_one(size: int) -> None:
    alone, parts = batches(World()), [batches(World(rank, size)) for rank in range(size)]
    together = zip(*(part.train(10, 20) for part in parts), strict=True)
    for whole, own in zip(alone.train(10, 20), together, strict=True):
        assert np.array_equal(whole.index, np.concatenate([part.index for part in own]))
        assert torch.equal(whole.images, torch.cat([part.images for part in own]))
        assert {part.total for part in own} == {len(whole.labels)}
    seen = np.concatenate([batch.index for part in parts for batch in part.evaluate("val")])
    assert sorted(seen.tolist()) == list(range(360))


@pytest.mark.parametrize("size", [2, 3, 7])
def test_all_processes_are_asked_equally_often_whether_to_give_an_evaluation_up(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrtrain.engine.evaluate.summed", lambda sums, world: sums)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    asked, seen = [0] * size, 0
    for rank in range(size):

        def stopping(rank: int = rank) -> None:
            asked[rank] += 1

        world = World(rank, size)
        steps = evaluate(net, batches(world).evaluate("val"), 360, "fp32", stopping, world=world)
        while True:
            try:
                done = next(steps).done
            except StopIteration as end:
                seen += end.value.images
                break
        assert done <= 360
    assert seen == 360
    assert asked == [-(-360 // (100 * size))] * size


def test_a_batch_too_small_for_its_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 images each; the smallest has 13"):
        batches(World(0, 7), batch_size=89)
    assert batches(World(0, 7), batch_size=89, drop_last=True).steps_per_epoch == 16


@pytest.mark.parametrize("own", [torch.zeros(3, dtype=torch.int16), torch.eye(2).to_sparse()])
def test_a_buffer_that_processes_cannot_send_each_other_is_refused(own: torch.Tensor) -> None:
    net = nn.Linear(4, 2)
    net.register_buffer("order", own)
    with pytest.raises(ConfigError, match=r"'order' is (int16|sparse_coo), which several processes cannot send"):
        replicated(net, World(0, 2), torch.device("cpu"))
    assert replicated(net, World(), torch.device("cpu")) is net


def test_two_processes_train_what_one_trains(lrtrain: Callable[..., Ended], folder: Path) -> None:
    assert lrtrain("fit", "plain.yaml", "--out", "one", PYTHONPATH=str(folder)).code == 0
    # The one pair of processes that is started as users do.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "lrtrain", "fit", "plain.yaml", "--out", "two"]
    pair = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=240)
    assert pair.returncode == 0, pair.stderr
    assert "2 processes, each cpu" in pair.stdout
    assert "find_unused_parameters" not in pair.stderr
    assert "Grad strides" not in pair.stderr
    one, other = rows(folder / "one"), rows(folder / "two")
    assert [row["lr"] for row in one if "lr" in row] == [row["lr"] for row in other if "lr" in row]
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    for part in ("model", "ema"):
        expected, found = weights(folder / "one", part), weights(folder / "two", part)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


def test_an_optimizer_that_draws_draws_alike_in_all_processes(folder: Path) -> None:
    (folder / "noisy.py").write_text(
        "import os, torch\n"
        "class Noisy(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        with open(f'drawn-{os.environ[\"RANK\"]}', 'a') as file:\n"
        "            print(torch.rand(1).item(), file=file)\n"
        "        return super().step(closure)\n"
    )
    optimizer = "optimizer={name: 'noisy:Noisy', lr: 0.1, momentum: 0.9}"
    pair = two(folder, "plain.yaml", "--out", "run", "--set", optimizer, "--set", "epochs=null", "--set", "steps=4")
    assert pair.code == 0, pair.err
    drawn = [(folder / f"drawn-{rank}").read_text().split()[-4:] for rank in (0, 1)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4


def test_three_processes_stopped_and_killed_go_on_in_the_same_bits(folder: Path) -> None:
    """Three, since the sum of two numbers does not depend on their order."""
    three = partial(started, folder, "whole.yaml", processes=3)
    assert ended(three("--out", "whole")).code == 0
    process = three("--out", "cut")
    after_step(process, folder / "cut", 8)
    process.send_signal(signal.SIGTERM)
    ended(process)
    status = json.loads((folder / "cut" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 143)
    process = three("--out", "cut", "--resume")
    after_step(process, folder / "cut", 18)
    for child in workers(process.pid):
        os.kill(child, signal.SIGKILL)
    assert ended(process).code != 0
    last = ended(three("--out", "cut", "--resume"))
    assert last.code == 0, last.err
    assert (folder / "cut" / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()
    for part in ("model", "ema", "optimizer"):
        expected, found = weights(folder / "whole", part), weights(folder / "cut", part)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def workers(launcher: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_the_run_and_is_started_again_when_asked(folder: Path) -> None:
    process = started(folder, "whole.yaml", "--set", "epochs=40", "--out", "run")
    after_step(process, folder / "run", 5)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    lost = ended(process)
    assert lost.code != 0
    assert lost.err.count("error: ") == 1
    assert "error: process 1 of 2 ended without a word" in lost.err
    assert "lrtrain/engine" not in lost.err  # the only traceback is torchrun's own
    assert json.loads((folder / "run" / "status.json").read_text())["exit_code"] == 8
    process = started(folder, "whole.yaml", "--out", "again", launcher=("--max-restarts", "1"))
    after_step(process, folder / "again", 5)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    recovered = ended(process)
    assert recovered.code == 0, recovered.err
    assert "resuming again at step" in recovered.out
    steps = [row["step"] for row in rows(folder / "again") if row["event"] == "train"]
    assert steps == list(range(1, 37))


def test_a_mistake_is_told_once(folder: Path) -> None:
    found = two(folder, "whole.yaml", "--set", "optimizer.momentun=0.5")
    assert found.err.count("SGD has no argument 'momentun'") == 1
    missing = two(folder, "whole.yaml", "--set", "dataset={name: imagefolder, root: nowhere}")
    assert missing.err.count("does not exist") == 1
