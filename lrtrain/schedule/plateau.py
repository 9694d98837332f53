"""The one schedule not known in advance: torch's ReduceLROnPlateau, kept alive as a run's last phase."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from lrtrain.errors import CheckpointError
from lrtrain.schedule.curve import GroupLR
from lrtrain.schedule.torch_schedulers import StandIn

_COUNTERS = ("last_epoch", "num_bad_epochs", "cooldown_counter")


@dataclass(frozen=True, slots=True)
class Plateau:
    """How a live tail reacts: the monitored metric, and ReduceLROnPlateau's own arguments."""

    monitor: str
    args: dict[str, Any]


class Live:
    """A running ReduceLROnPlateau over a stand-in optimizer; its few numbers are the only schedule state."""

    def __init__(self, plateau: Plateau, groups: Sequence[GroupLR]):
        self._optimizer = StandIn(groups)
        self._scheduler = ReduceLROnPlateau(self._optimizer, **plateau.args)

    def observe(self, metric: float) -> bool:
        """Take in one evaluation's metric; True where it reduced an LR."""
        before = self.lrs
        self._scheduler.step(metric)
        return self.lrs != before

    @property
    def lrs(self) -> tuple[float, ...]:
        """The LR of each group, in the optimizer's order."""
        return tuple(float(group["lr"]) for group in self._optimizer.param_groups)

    def state(self) -> dict[str, float | int | str]:
        """What a checkpoint keeps, exact through JSON; `best` is text, as it starts infinite."""
        counters: dict[str, float | int | str] = {key: getattr(self._scheduler, key) for key in _COUNTERS}
        return {
            **counters,
            "best": repr(float(self._scheduler.best)),
            **{f"lr.{i}": lr for i, lr in enumerate(self.lrs)},
        }

    def restore(self, state: Mapping[str, float | int | str]) -> None:
        """Go on where `state` was taken; the arguments are the config's, never the checkpoint's.

        Raises:
            CheckpointError: the state is of another number of groups, or incomplete.
        """
        groups = self._optimizer.param_groups
        wanted = {*_COUNTERS, "best", *(f"lr.{i}" for i in range(len(groups)))}
        if set(state) != wanted:
            raise CheckpointError(
                f"the checkpoint's ReduceLROnPlateau state has {', '.join(sorted(state)) or 'nothing'}; "
                f"this run with {len(groups)} parameter groups needs {', '.join(sorted(wanted))}",
                hint="resume with the config that the checkpoint was made with",
            )
        lrs = [float(state[f"lr.{i}"]) for i in range(len(groups))]
        falls = all(0 <= lr <= group["lr"] for lr, group in zip(lrs, groups, strict=True))
        counts = all(type(state[key]) is int and int(state[key]) >= 0 for key in _COUNTERS)
        if not falls or not counts or isinstance(state["lr.0"], str) or math.isnan(float(state["best"])):
            raise CheckpointError(
                f"the checkpoint's ReduceLROnPlateau state has LRs {lrs}, best {float(state['best'])} and counts "
                f"{[state[key] for key in _COUNTERS]}: not numbers that training arrives at",
                hint="restore the checkpoint from a copy, or remove it: then the one before it is used",
            )
        counters = {key: int(state[key]) for key in _COUNTERS}
        self._scheduler.load_state_dict({**counters, "best": float(state["best"])})
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = lr
