"""`compile: true`: what is compiled, how often, and that it trains as the network does without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lrtrain.engine.events import Logged
from tests.test_engine import job, run, weights


def test_an_lr_that_changes_compiles_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap T17."""
    compiled: list[Any] = []
    original = torch.compile

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: original(module, backend=counting, **kwargs))
    changes = {"schedule": {"name": "OneCycleLR"}, "steps": 14}
    made, plain = job(compile=True, **changes), job(**changes)
    lrs = [event.lr["default"] for event in run(made) if isinstance(event, Logged)]
    assert len(set(lrs)) == 14
    assert len(compiled) == 1
    run(plain)
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(made).items())


def test_what_is_compiled_is_the_same_whatever_was_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that goes on trains in other bits: with what is compiled for any batch size, or not compiled at all."""
    compiled: list[tuple[Any, ...]] = []
    used: list[int] = []
    original = torch.compile

    def counting(graph: Any, inputs: Any) -> Any:
        at = len(compiled)
        compiled.append(tuple(size for tensor in inputs if isinstance(tensor, torch.Tensor) for size in tensor.shape))

        def forward(*args: Any) -> Any:
            used.append(at)
            return graph.forward(*args)

        return forward

    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: original(module, backend=counting, **kwargs))
    parts = ("conv1", "bn1", "conv2", "bn2", "conv3")
    groups = [{"params": rf"^{part}\.", "frozen_until": f"{4 * (5 - i)}step"} for i, part in enumerate(parts)]
    made = job(compile=True, optimizer={"name": "SGD", "lr": 0.01, "groups": groups}, batch_size=400, steps=24)
    run(made)
    assert len(used) == 24
    assert [used.count(at) for at in range(len(compiled))] == [3, 1] * 6
    assert all(isinstance(size, int) for sizes in compiled for size in sizes)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_blocks_that_are_compiled_one_by_one_are_all_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[Any] = []
    original = torch.compile

    def counting(graph: Any, inputs: Any) -> Any:
        if any("linear" in str(node.target) for node in graph.graph.nodes):
            compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: original(module, backend=counting, **kwargs))
    counts = []
    for limit in (8, 10_000):
        compiled.clear()
        torch.compiler.reset()
        with torch._dynamo.config.patch(recompile_limit=limit, accumulated_recompile_limit=max(limit, 256)):
            run(job(compile=True, model={"name": "tests.nets:broken"}, batch_size=400, steps=4, eval_every="100%"))
        counts.append(len(compiled))
    assert counts[0] == counts[1] >= 2 * 13  # of every block and the head, for either batch size


def test_what_thaws_trains_where_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 compiles nothing again when a weight that had no gradient gets one."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: original(module, backend="aot_eager", **kwargs))
    changes = {
        "optimizer": {"name": "SGD", "lr": 0.1, "groups": [{"params": r"^conv1\.", "frozen_until": "2step"}]},
        "steps": 4,
    }
    made, plain = job(compile=True, **changes), job(**changes)
    run(made)
    run(plain)
    assert not torch.equal(weights(made)["conv1.weight"], weights(job(**changes))["conv1.weight"])
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(made)[name], tensor)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_part_is_compiled_around(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: original(module, backend="eager", **kwargs))
    made, plain = (job(model={"name": "tests.nets:scripted"}, compile=each, steps=2) for each in (True, False))
    for each in (made, plain):
        run(each)
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(made).items())
