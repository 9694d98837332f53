"""Whether an optimizer of anybody's goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.errors import out_of_memory
from lrtrain.optim.groups import ParamGroup
from lrtrain.optim.kept import kept, put_back
from lrtrain.random import key, seed_model, seeded

# Steps before the checkpoint: some things happen every few steps, or after some. What happens every fifth is seen by
# the first, and what happens every seventh by the second.
_BEFORE = (7, 25)
_AFTER = 12

T = TypeVar("T")
_Make = Callable[[list[dict[str, Any]]], Optimizer]


def goes_on_otherwise(make: _Make, groups: Sequence[ParamGroup]) -> str | None:
    """In which way an optimizer would go on otherwise from a checkpoint; None where it would not.

    It trains stand-ins of two to a side, with as many sides as the parameters have; what it `kept` then is put into a
    new one, which is what resume does, and both go on.

    Args:
        make: the optimizer for parameter groups.
        groups: of the network.

    Raises:
        CheckpointError: it keeps what a checkpoint cannot hold.
        Exception: what its steps raise after that checkpoint alone.
    """
    with seeded(key("trial")):  # what is drawn here is not taken from others
        return next((found for before in _BEFORE if (found := _difference(make, groups, before))), None)


def _difference(make: _Make, groups: Sequence[ParamGroup], before: int) -> str | None:
    first = _tried(lambda: _trained(make, groups, before))
    if isinstance(first, Exception):  # it may need the network's own sizes, and nothing is known of it then
        return None
    tensors, scalars = kept(first.optimizer, first.names)
    second = _tried(lambda: _loaded(make, groups, first, tensors, scalars))
    if isinstance(second, Exception):
        return f"it cannot be loaded: {type(second).__name__}: {second}"
    for step in range(before, before + _AFTER):
        if isinstance(_tried(partial(first.step, step)), Exception):  # it may be for shorter runs
            return None
        second.step(step)
        for name, mine, theirs in zip(first.names, second.weights, first.weights, strict=True):
            if not _same(mine, theirs):
                return f"after a checkpoint at step {before} it gives {name.partition(';')[0]} another value"
    return None


def _tried(work: Callable[[], T]) -> T | Exception:
    """What it gives, or what it raises, as a class that may be anybody's may raise anything."""
    try:
        return work()
    except Exception as error:
        if out_of_memory(error):
            raise
        return error


def _trained(make: _Make, groups: Sequence[ParamGroup], steps: int) -> _Trial:
    trial = _Trial(make, groups, "first")
    for step in range(steps):
        trial.step(step)
    return trial


def _loaded(
    make: _Make, groups: Sequence[ParamGroup], saved: _Trial, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> _Trial:
    """Another one, as resume would make it of what is saved."""
    trial = _Trial(make, groups, "second")
    with torch.no_grad():
        for mine, theirs in zip(trial.weights, saved.weights, strict=True):
            mine.copy_(theirs)
    put_back(trial.optimizer, trial.names, {name: tensor.clone() for name, tensor in tensors.items()}, scalars)
    return trial


class _Trial:
    """An optimizer over stand-ins for a network's parameters."""

    def __init__(self, make: _Make, groups: Sequence[ParamGroup], which: str):
        self.weights: list[nn.Parameter] = []
        self.names: list[str] = []
        parameters = []
        for group in groups:
            own = []
            for like in {(p.ndim, p.dtype): p for p in group.parameters}.values():
                # Other weights to begin with: a run that goes on from a checkpoint is not given its pretrained ones.
                drawn = self._drawn(which, (2,) * like.ndim)
                own.append(nn.Parameter(drawn.to(like.device, like.dtype)))
                self.names.append(f"a parameter of {like.ndim} dimensions in group {group.name!r}")
            self.weights += own
            parameters.append({"params": own, "lr": group.lr, **group.options})
        self.names = [f"{name}; {i}" for i, name in enumerate(self.names)]
        self.optimizer = make(parameters)

    def step(self, number: int) -> None:
        """A step with gradients of its own, and random numbers that begin anew as in training."""
        for i, weight in enumerate(self.weights):
            weight.grad = self._drawn(f"{number}/{i}", weight.shape).to(weight.device, weight.dtype)
        with torch.no_grad(), seeded(key("trial", number)):
            seed_model(key("trial", number), self.weights[0].device)  # which each step of training begins with too
            inspect.unwrap(type(self.optimizer).step)(self.optimizer)  # without the hooks that count a training's steps

    def _drawn(self, which: str, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(key("trial", which)))


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
