"""Which device `device:` names, on machines with other GPUs than this one."""

from __future__ import annotations

import re
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch

from lrtrain.build import _resolved
from lrtrain.engine.precision import choose_device
from lrtrain.errors import ConfigError, EnvironmentFault
from lrtrain.world import ALONE, World
from tests.test_engine import job


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """What makes a GPU torch's current one; `gpus` says how many there are."""
    made = Mock()
    monkeypatch.setattr("torch.cuda.set_device", made)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    return made


def gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "name", "world", "chosen"),
    [
        (0, "auto", ALONE, "cpu"),
        (2, "auto", ALONE, "cuda"),
        (2, "cpu", ALONE, "cpu"),
        (2, "cuda:1", ALONE, "cuda:1"),
        (2, "auto", World(rank=1, size=2, local_rank=1), "cuda:1"),
        (2, "cuda", World(rank=3, size=4, local_rank=1), "cuda:1"),
        (0, "auto", World(rank=1, size=2, local_rank=1), "cpu"),
    ],
)
def test_a_gpu_by_number_is_the_current_one_too(count, name, world, chosen, current, monkeypatch):
    gpus(count, monkeypatch)
    assert choose_device(name, "here", world) == torch.device(chosen)
    # Else dropout draws from a generator that no step seeds, and a graph is captured from an idle GPU.
    assert [call.args for call in current.mock_calls] == ([(torch.device(chosen),)] if ":" in chosen else [])


@pytest.mark.parametrize(
    ("count", "name", "world", "what"),
    [
        (1, "cuda:1", ALONE, "device 'cuda:1' is not on this machine"),
        (0, "cuda", ALONE, "device 'cuda' is not on this machine"),
        (1, "auto", World(rank=1, size=2, local_rank=1), "device 'cuda:1' is not on this machine"),
        (2, "cuda:1", World(rank=1, size=2, local_rank=1), "one device, and there are 2 processes"),
    ],
)
def test_nothing_else_is_taken_for_a_device_that_is_not_there(count, name, world, what, current, monkeypatch):
    gpus(count, monkeypatch)
    with pytest.raises(ConfigError, match=what):
        choose_device(name, "here", world)
    current.assert_not_called()


def test_several_processes_go_on_by_the_config_that_the_first_one_wrote(current, monkeypatch):
    made = job(steps=1)
    gpus(2, monkeypatch)
    worlds = [World(rank=rank, size=2, local_rank=rank) for rank in range(2)]
    written = _resolved(made.config, choose_device("cuda", "here", worlds[0]), "fp32", made.pipeline, worlds[0])
    assert written.device == "cuda"
    assert [str(choose_device(written.device, "here", world)) for world in worlds] == ["cuda:0", "cuda:1"]
    alone = _resolved(made.config, torch.device("cuda:1"), "fp32", made.pipeline, ALONE)
    assert alone.device == "cuda:1"


@pytest.mark.parametrize(
    ("name", "value", "threads", "refused"),
    [
        ("OMP_THREAD_LIMIT", "1", 2, True),
        ("OMP_THREAD_LIMIT", "+1", 2, True),
        ("OMP_THREAD_LIMIT", "2", 2, False),
        ("OMP_THREAD_LIMIT", "0", 2, False),  # means nothing
        ("OMP_DYNAMIC", "TRUE", 2, True),
        ("OMP_DYNAMIC", "false", 2, False),
        ("OMP_MAX_ACTIVE_LEVELS", "0", 2, True),
        ("OMP_MAX_ACTIVE_LEVELS", "0", 1, False),
    ],
)
def test_fewer_threads_than_torch_counts_on_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, threads: int, refused: bool
) -> None:
    """With those that are refused, the first step of a convolution never ended."""
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFault, match=re.escape(f"{name}={value} lets fewer")) if refused else nullcontext():
        choose_device("cpu", "c.yaml")
    gpus(1, monkeypatch)
    assert choose_device("cuda", "c.yaml").type == "cuda"  # which needs none of them
