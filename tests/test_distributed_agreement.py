"""Processes that were given different configs, commands or images: the gradients of one must not train another."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lrtrain.build import Job
from lrtrain.checkpoint import format
from lrtrain.commands import resume
from lrtrain.commands.origin import _processor, facts, origin
from lrtrain.commands.rollback import roll_back
from lrtrain.commands.together import refuse_other_start
from lrtrain.engine import distributed
from lrtrain.engine.finite import NotFinite, Trouble
from lrtrain.engine.state import snapshot
from lrtrain.engine.train import train
from lrtrain.errors import CheckpointError, DistributedError
from lrtrain.sinks.console import Screen
from lrtrain.sinks.run_dir import RunDir
from lrtrain.world import World
from tests import forked
from tests.conftest import Ended
from tests.hostile import assert_clear
from tests.test_distributed import environment
from tests.test_distributed_faults import free_port
from tests.test_engine import job

CONFIG = """
steps: 4
batch_size: 8
model: small_cnn
dataset: {name: imagefolder, root: images, val_fraction: 0.25}
optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """c.yaml and its images."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    for k, name in enumerate(("ants", "bees")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(16):
            Image.new("RGB", (12, 12), (100 * k, 8 * i, 50)).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path


def pair(folder: Path, first: list[str], second: list[str]) -> list[Ended]:
    """Processes 0 and 1 of one run, as two machines start them, each with what was typed there."""
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0"}

    def one(rank: int, arguments: list[str]) -> Ended:
        given = {**environment(folder), **place, "RANK": str(rank)}
        ended = forked.run(["fit", "c.yaml", *arguments], folder, given)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, (0, 1), (first, second)))


def refused(ended: list[Ended], code: int, *words: str) -> None:
    """The second tells, each on its own machine, and the first says of what it ended; neither trains."""
    first, second = ended
    assert_clear(second, code, *words)
    assert_clear(first, 8, f"process 1 of 2 ended with exit code {code}", *words[:1])


def test_another_config_is_refused(folder: Path) -> None:
    ended = pair(folder, ["--out", "run"], ["--out", "run", "--set", "optimizer.lr=0.001"])
    refused(ended, 2, "optimizer.lr is '0.001' in process 1, and '0.1' in process 0", "give every process the same")
    assert not (folder / "run").exists()


def test_another_command_is_refused(folder: Path) -> None:
    alone = forked.run(["fit", "c.yaml", "--out", "run"], folder, environment(folder))
    assert alone.returncode == 0, alone.stderr
    refused(pair(folder, ["--resume", "--out", "run"], ["--out", "run"]), 2, "--resume is 'False' in process 1")


def test_other_images_are_refused(folder: Path) -> None:
    shutil.copytree(folder / "images", folder / "theirs")
    (folder / "theirs" / "bees" / "0.png").rename(folder / "theirs" / "bees" / "zero.png")
    ended = pair(folder, ["--out", "run"], ["--out", "run", "--set", "dataset.root=theirs"])
    refused(ended, 3, "the dataset of process 1 is not that of process 0", "/bees", "copy the dataset once more")
    assert not (folder / "run").exists()


def test_another_class_is_refused(folder: Path) -> None:
    shutil.copytree(folder / "images", folder / "theirs")
    shutil.copytree(folder / "images" / "bees", folder / "theirs" / "wasps")
    ended = pair(folder, ["--out", "run"], ["--out", "run", "--set", "dataset.root=theirs"])
    refused(ended, 3, "the dataset of process 1 is not that of process 0; they differ in its classes")
    assert not (folder / "run").exists()


def test_each_machine_has_its_images_where_it_likes(folder: Path) -> None:
    shutil.copytree(folder / "images", folder / "theirs")
    ended = pair(folder, ["--out", "run"], ["--out", "run", "--set", "dataset.root=theirs", "--set", "workers=1"])
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], World]:
    """Makes this process 0 or 1 of two: 1 hears what 0 has said before."""
    said: list[str] = []
    rank = 0

    def broadcast(texts: list[str], source: int) -> None:
        if rank == source:
            said.append(texts[0])
        else:
            texts[0] = said.pop(0)

    def become(number: int) -> World:
        nonlocal rank
        rank = number
        if rank == 0:
            said.clear()
        return World(rank, 2)

    monkeypatch.setattr(distributed.dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: None)
    return become


@pytest.mark.parametrize(("key", "leaders"), [("threads", 64), ("device", "NVIDIA H100"), ("torch", "1.0")])
def test_a_machine_that_computes_other_bits_is_refused(
    speaking: Callable[[int], World], key: str, leaders: object
) -> None:
    known = facts(job())
    refuse_other_start({**known, "origin": {**known["origin"], key: leaders}}, speaking(0))
    with pytest.raises(DistributedError, match=f"it has {key} .* and not {leaders}"):
        refuse_other_start(known, speaking(1))


def save(made: Job, path: Path) -> RunDir:
    """A checkpoint in a run directory, as the run writes it; its log is empty."""
    run = RunDir(path)
    path.mkdir(exist_ok=True)
    run.metrics.touch()
    log = {"log_bytes": {run.metrics.name: 0}, "log_sha256": {run.metrics.name: hashlib.sha256().hexdigest()}}
    parts, manifest = snapshot(made.state)
    format.write(run.checkpoints, made.state.step, parts, {**facts(made), **manifest, **log, "planned": True})
    return run


def test_a_run_goes_on_from_one_checkpoint_on_all_machines(speaking: Callable[[int], World], tmp_path: Path) -> None:
    made = job()
    ours, copy = save(made, tmp_path / "ours"), RunDir(tmp_path / "copy")
    shutil.copytree(ours.path, copy.path)
    with torch.no_grad():
        next(made.state.model.parameters()).add_(1)
    others, empty = save(made, tmp_path / "others"), RunDir(tmp_path / "empty")

    def found_by_the_second(run: RunDir) -> format.Checkpoint | None:
        resume.find(ours, Screen(), speaking(0))
        return resume.find(run, None, speaking(1))

    found = found_by_the_second(copy)
    assert found is not None
    assert found.path == copy.checkpoints / "step-00000000"
    with pytest.raises(
        CheckpointError, match="process 0 goes on from step-00000000, and process 1 has another of that"
    ):
        found_by_the_second(others)
    with pytest.raises(CheckpointError, match="process 1 has none of that name"):
        found_by_the_second(empty)


def test_all_machines_go_back_to_one_checkpoint(speaking: Callable[[int], World], tmp_path: Path) -> None:
    made = job(steps=1, on_nonfinite="rollback")
    save(made, tmp_path / "theirs")
    for _ in train(made.state, made.plan, made.batches, made.recipe):
        pass
    ours, theirs = save(made, tmp_path / "ours"), RunDir(tmp_path / "theirs")

    def second_goes_back() -> Job:
        for rank, run in enumerate((ours, theirs)):
            made.state.world, made.state.rollbacks = speaking(rank), []
            job = roll_back(made, run, NotFinite(Trouble(2, {"default": 0.1}, math.nan, {}, "why", ())))
        return job

    with pytest.raises(CheckpointError, match="process 0 goes on from step-00000001, and process 1 has none of that"):
        second_goes_back()
    shutil.copytree(ours.checkpoints, theirs.checkpoints, dirs_exist_ok=True)
    assert second_goes_back().state.rollbacks[-1].to == 1


@pytest.mark.parametrize(("command", "says"), [(["preview"], "epoch"), (["fit", "--smoke"], "smoke test passed")])
def test_of_several_processes_one_alone_does_what_leaves_no_run(folder: Path, command: list[str], says: str) -> None:
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0"}
    first, second = (
        forked.run([*command, "c.yaml"], folder, {**environment(folder), **place, "RANK": rank}) for rank in "01"
    )
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert says in first.stdout
    assert second.stdout + second.stderr == ""


@pytest.mark.parametrize(
    ("variables", "compiled", "said"),
    [
        ({}, True, ""),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AUTO"}, False, "MKL_CBWR=AUTO ONEDNN_MAX_CPU_ISA=AVX2"),
        ({"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "", "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT"}, True, ""),
        ({"ONEDNN_MAX_CPU_ISA": "\udcff\x1b"}, False, "ONEDNN_MAX_CPU_ISA=\\udcff\\x1b"),
        ({"TORCHINDUCTOR_COMPILE_THREADS": "1"}, True, ""),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, False, ""),  # on a CPU
        ({"TORCH_COMPILE_DISABLE": "1"}, False, ""),
        ({"TORCH_COMPILE_DISABLE": "1", "TORCHINDUCTOR_CACHE_DIR": "x"}, True, "TORCH_COMPILE_DISABLE=1"),
        (
            {"TORCHINDUCTOR_FREEZING": "1", "TORCHDYNAMO_DISABLE": "1"},
            True,
            "TORCHDYNAMO_DISABLE=1 TORCHINDUCTOR_FREEZING=1",
        ),
    ],
)
def test_variables_that_choose_kernels_are_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], compiled: bool, said: str
) -> None:
    for name in [name for name in os.environ if name.startswith(("TORCH", "ONEDNN", "MKL", "DNNL"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = job()
    assert origin(replace(made, config=made.config.model_copy(update={"compile": compiled})))["kernels"] == said


def test_a_cpu_is_told_by_more_than_its_name(tmp_path: Path) -> None:
    """Virtual machines may say no more than the maker's."""
    known = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: 17\ncache size\t: 512 KB\nflags\t: fma avx2"
    others = [
        known,
        known.replace("25", "26"),
        known.replace("17", "1"),
        known.replace("512", "1024"),
        known + " amx_tile",
    ]
    said = []
    for text in others:
        (tmp_path / "cpuinfo").write_text(text + " sse\n\nprocessor\t: 1\nmodel name\t: another\n")
        said.append(_processor(str(tmp_path / "cpuinfo")))
    assert said[0].startswith("AMD EPYC, cpu family 25, model 17, cache size 512 KB, ")
    assert said[0].endswith(", avx2, fma")
    assert len(set(said)) == len(others)
    assert _processor(str(tmp_path / "nothing")).endswith(torch.backends.cpu.get_cpu_capability())
