"""The table of learning rates that a run trains with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
NEVER = 2**62  # the step at which a group thaws that is frozen for good
_LARGEST = float(np.finfo(np.float32).max)  # above it the LR of float32 weights is infinite


@dataclass(frozen=True, slots=True)
class GroupLR:
    """One parameter group of the optimizer: what the schedule starts from."""

    name: str
    lr: float
    """Base (peak) LR, with lr_scale and layer_decay applied."""
    momentum: float | None
    """SGD's or RMSprop's momentum, or beta1 of Adam and its like; None where the optimizer has neither."""
    frozen_steps: int = 0
    """The LR is 0 for t < frozen_steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The LR of every parameter group at every step: `lr[t, columns[group]]`, float64, read-only.

    t counts attempted optimizer steps from 0: one that fp16's scaler skips has used up its row.
    Groups whose rows are sure to be the same share a column. Curves add end to end: warm-up + decay.

    Args:
        lr: learning rates, shape (steps, columns).
        columns: the column of each group, in the optimizer's order.
        momentum: momentum or beta1, shape (steps, columns); None where the schedule leaves it alone.

    Raises:
        ValueError: a value is negative, not finite, or more than float32 holds; names the first step.
    """

    lr: Table
    columns: tuple[int, ...]
    momentum: Table | None = None

    def __post_init__(self) -> None:
        if self.lr.ndim != 2 or self.lr.dtype != np.float64 or max(self.columns, default=0) >= self.lr.shape[1]:
            raise ValueError(f"lr must be float64 of shape (steps, columns); got {self.lr.dtype} {self.lr.shape}")
        if self.momentum is not None and self.momentum.shape != self.lr.shape:
            raise ValueError(f"momentum has shape {self.momentum.shape}, lr {self.lr.shape}")
        for table, what in ((self.lr, "LR"), (self.momentum, "momentum")):
            if table is None:
                continue
            bad = ~((table >= 0) & (table <= _LARGEST))  # NaN too
            if bad.any():
                t, column = (int(i) for i in np.argwhere(bad)[0])
                found = f"the {what} would be {table[t, column]:g} at step {t:,}"
                raise ValueError(f"{found}; it must be 0 to {_LARGEST:.1e}")
            table.setflags(write=False)

    def __len__(self) -> int:
        return len(self.lr)

    def __add__(self, after: Curve) -> Curve:
        if self.columns != after.columns or (self.momentum is None) != (after.momentum is None):
            raise ValueError("only curves of the same groups can follow each other")
        momentum = None
        if self.momentum is not None and after.momentum is not None:
            momentum = np.concatenate([self.momentum, after.momentum])
        return Curve(np.concatenate([self.lr, after.lr]), self.columns, momentum)

    def cycling(self, own: Table) -> Curve:
        """The same with a momentum, to be added to one that cycles it: `own` of each column where it is left alone."""
        return self if self.momentum is not None else replace(self, momentum=np.broadcast_to(own, self.lr.shape))

    def of_group(self, group: int) -> Table:
        """One group's LR at every step, shape (steps,)."""
        column: Table = self.lr[:, self.columns[group]]
        return column
