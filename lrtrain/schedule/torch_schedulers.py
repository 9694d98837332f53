"""What torch's own schedulers set, stepped once over a stand-in optimizer, is written down."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler

from lrtrain import lookup
from lrtrain.schedule.curve import GroupLR, Table

# What optimizers read from their groups beside lr and momentum, which for a schedule is beta1 of Adam's too.
_SETTINGS = frozenset(("weight_decay", "betas", "eps", "dampening", "nesterov", "alpha"))


class StandIn(Optimizer):
    """An optimizer that trains nothing: parameter groups for a scheduler to write to.

    `Optimizer.__init__` is left out on purpose: it imports torch's compiler, slower than all the steps.
    """

    def __init__(self, groups: Sequence[GroupLR]):
        own = [{} if group.momentum is None else {"momentum": group.momentum} for group in groups]
        self.param_groups: list[dict[str, Any]] = [
            {"params": [torch.zeros(())], "lr": group.lr, **momentum}
            for group, momentum in zip(groups, own, strict=True)
        ]
        self.defaults: dict[str, Any] = {"lr": groups[0].lr, **own[0]}
        self.state = defaultdict(dict)

    def step(self, closure: Any = None) -> Any:
        """Nothing; schedulers want to see that it was called."""


def build(name: str, args: dict[str, Any], optimizer: Optimizer) -> Any:
    """The scheduler object: torch's class by its name, or whatever an import path leads to."""
    if name == "ChainedScheduler":
        return ChainedScheduler([build(child, given, optimizer) for child, given in args["schedulers"]], optimizer)
    return lookup.find("scheduler", name)(optimizer, **args)


def tabulate(make: Callable[[Optimizer], Any], groups: Sequence[GroupLR], ticks: int) -> tuple[Table, Table | None]:
    """Let a scheduler drive a stand-in optimizer and write down what it sets.

    Args:
        make: the scheduler for an optimizer.
        groups: one parameter group each.
        ticks: rows wanted; the scheduler is stepped `ticks - 1` times.

    Returns:
        LR and momentum, each of shape (ticks, groups); no momentum where the optimizer has none.

    Raises:
        ValueError: it sets more than these, which nothing would come of.
    """
    optimizer = StandIn(groups)
    scheduler = make(optimizer)
    optimizer.step()
    step, written = _stepper(scheduler), optimizer.param_groups
    lrs = array("d", [group["lr"] for group in written])  # eight bytes each, where a list takes 32
    momenta = array("d", [] if groups[0].momentum is None else [group["momentum"] for group in written])
    for _ in range(ticks - 1):
        step()
        for group in written:
            lrs.append(group["lr"])
            if momenta:
                momenta.append(group["momentum"])
    if more := sorted(_SETTINGS & {key for group in written for key in group}):
        raise ValueError(f"it sets {more[0]} of the optimizer's groups, and a schedule sets lr and momentum alone")
    shape = (ticks, len(groups))
    momentum = np.array(momenta, dtype=np.float64).reshape(shape) if momenta else None
    return _without_rounding_below_zero(np.array(lrs, dtype=np.float64).reshape(shape)), momentum


def _stepper(scheduler: Any) -> Callable[[], None]:
    """`scheduler.step`, without the checks around `get_lr` where the class is torch's: they take most of its time.

    What is left out is of no use to a table: warnings, `last_lr`, and tensors as LR. Parity with `step` is tested.
    """
    if type(scheduler).__module__ != LRScheduler.__module__ or type(scheduler).step is not LRScheduler.step:
        return scheduler.step  # type: ignore[no-any-return]
    get_lr, written = scheduler.get_lr, scheduler.optimizer.param_groups
    scheduler._get_lr_called_within_step = True

    def step() -> None:
        scheduler._step_count += 1
        scheduler.last_epoch += 1
        for group, lr in zip(written, get_lr(), strict=True):
            group["lr"] = lr

    return step


def _without_rounding_below_zero(lr: Table) -> Table:
    """Make 0 of the -1e-17 of the peak at which torch's recursive forms end a fall to 0."""
    lr[(lr < 0) & (lr > -1e-12 * np.abs(lr).max(initial=0.0))] = 0.0
    return lr
