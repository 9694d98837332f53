"""Optimizers of the user's own: what does not go on from a checkpoint as if nothing had happened is refused before."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_optim import error_of, net, optimizer_of


class Plain(torch.optim.Optimizer):
    """SGD by a factor, which those that follow change by what they keep."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr})
        self.begin()

    def begin(self) -> None:
        pass

    def factor(self, p: Any) -> Any:
        return 1.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad * self.factor(p), alpha=-group["lr"])


class Averaging(Plain):
    """Of what has its place in `state`."""

    def factor(self, p: Any) -> Any:
        kept = self.state[p]
        kept["count"] = kept.get("count", 0) + 1
        kept["mean"] = (kept["mean"] if "mean" in kept else torch.zeros_like(p)) * 0.9 + p.grad
        return kept["mean"] / kept["count"]


class Drawing(Plain):
    def factor(self, p: Any) -> Any:
        return torch.rand_like(p) * float(np.random.rand())


class Table(Plain):
    """As RAdam's, which is filled again."""

    def begin(self) -> None:
        self.table = [[0.0, 0.0] for _ in range(10)]

    def factor(self, p: Any) -> Any:
        kept = self.state[p]
        kept["count"] = kept.get("count", 0) + 1
        row = self.table[kept["count"] % 10]
        if row[0] != kept["count"]:
            row[:] = kept["count"], 1 / kept["count"]
        return row[1]


class Telling(Plain):
    """Of what came of it, to whoever asks."""

    def begin(self) -> None:
        self.history: list[float] = []

    def factor(self, p: Any) -> Any:
        self.history.append(float(p.grad.norm()))
        return 1.0


class Clipping(Telling):
    def factor(self, p: Any) -> Any:
        super().factor(p)
        return sum(self.history) / len(self.history)


class Sized(Plain):
    """For kernels of 3 x 3."""

    def factor(self, p: Any) -> Any:
        return p.reshape(*p.shape[:2], 9).reshape_as(p) if p.ndim == 4 else 1.0


class Ring(Plain):
    def begin(self) -> None:
        self.norms = [0.0] * 5
        self.at = np.zeros(1, int)

    def factor(self, p: Any) -> Any:
        self.norms[int(self.at[0]) % 5] = float(p.grad.norm())
        self.at += 1
        return max(self.norms)


class Array(Plain):
    def begin(self) -> None:
        self.largest = np.zeros(1)

    def factor(self, p: Any) -> Any:
        self.largest[0] = max(self.largest[0], float(p.grad.norm()))
        return 1 / self.largest[0]


class Holder:
    count = 0


class Object(Plain):
    def begin(self) -> None:
        self.holder = Holder()

    def factor(self, p: Any) -> Any:
        self.holder.count += 1
        return 1 / self.holder.count


class Warm(Plain):
    """For 20 steps."""

    def begin(self) -> None:
        self.calls: set[int] = set()

    def factor(self, p: Any) -> Any:
        self.calls = {*self.calls, len(self.calls)}
        return 0.1 if len(self.calls) < 60 else 1.0


class Every(Plain):
    """Each fifth step."""

    def begin(self) -> None:
        self.after = iter(range(10**9))

    def factor(self, p: Any) -> Any:
        kept = self.state[p]
        kept["count"] = kept.get("count", 0)
        return 0.0 if next(self.after) % 5 else 1.0


class Around(Plain):
    """Another one, which keeps its own state."""

    def begin(self) -> None:
        self.inner = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def step(self, closure: Any = None) -> None:
        self.inner.step()


class Start(Plain):
    """Drawn to the weights it was built with."""

    def begin(self) -> None:
        self.start = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    def factor(self, p: Any) -> Any:
        return p - self.start[p]


class OfFour(Plain):
    def factor(self, p: Any) -> Any:
        self.state[p]["sides"] = [torch.zeros(2)] if p.ndim == 4 else torch.zeros(2)
        return 1.0


class Unfinished(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float):
        self.inner = torch.optim.SGD(params, lr)
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, {"lr": lr}

    def step(self, closure: Any = None) -> Any:
        self.inner.step()


class Short(Plain):
    """For runs of at most 30 steps, with rates of its own."""

    def factor(self, p: Any) -> Any:
        kept = self.state[p]
        kept["count"] = kept.get("count", -1) + 1
        return ([0.5] * 30)[kept["count"]]


class OfKernels(Plain):
    def begin(self) -> None:
        if any(p.ndim == 4 and p.shape[2] != 3 for group in self.param_groups for p in group["params"]):
            raise ValueError("kernels of 3x3 only")


class Regrouping(torch.optim.SGD):
    """By dimensions, as many groups as it is given."""

    def __init__(self, params: Any, lr: float):
        every = [p for group in params for p in group["params"]]
        super().__init__([{"params": [p for p in every if (p.ndim > 1) == flat]} for flat in (False, True)], lr)


def named(monkeypatch: pytest.MonkeyPatch, cls: type) -> str:
    module = types.ModuleType("own_optimizers")
    module.__dict__.update({cls.__name__: cls})
    monkeypatch.setitem(sys.modules, "own_optimizers", module)
    return f"own_optimizers:{cls.__name__}"


@pytest.mark.parametrize("cls", [Plain, Averaging, Drawing, Table, Telling, Sized, Short, OfKernels])
def test_what_goes_on_is_taken_and_nothing_is_drawn_from_others(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    module = net()
    before = torch.get_rng_state(), str(np.random.get_state())
    optimizer_of(module, name=named(monkeypatch, cls))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RAdam", "Adafactor", "NAdam", "Rprop", "ASGD", "RMSprop"])
def test_torchs_own_by_an_import_path_are_taken(name: str) -> None:
    optimizer_of(net(), name=f"torch.optim:{name}")


@pytest.mark.parametrize("cls", [Clipping, Ring, Array, Object, Warm, Every, Around, Start])
def test_what_keeps_more_than_a_checkpoint_holds_is_refused(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = error_of(net(), name=named(monkeypatch, cls)).problems[0]
    assert "does not go on from a checkpoint as if nothing had happened" in problem.what
    assert "after a checkpoint at step" in problem.what
    assert problem.where == "optimizer"
    assert "keeps what changes in `state`" in str(problem.hint)


@pytest.mark.parametrize(
    ("cls", "words"),
    [(OfFour, "keeps a list as 'sides'"), (Unfinished, "as if nothing had happened: it cannot be loaded: Attribute")],
)
def test_what_cannot_be_saved_or_loaded_is_refused_before(
    cls: type, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words in error_of(net(), name=named(monkeypatch, cls)).problems[0].what


def test_one_with_other_groups_than_it_is_given_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's LR of a group would be another one's."""
    groups = [{"params": r"weight$", "lr": 0.2}]
    problem = error_of(net(), name=named(monkeypatch, Regrouping), groups=groups).problems[0]
    assert "Regrouping has other param_groups than the 2 that it is given" in problem.what
    assert problem.where == "optimizer"
