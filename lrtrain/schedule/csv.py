"""The planned curve as a file: one row for each optimizer step taken."""

from __future__ import annotations

import csv
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from lrtrain.errors import printable
from lrtrain.schedule.plan import Plan

_CHUNK_ROWS = 20_000


def write_csv(plan: Plan, file: TextIO, max_rows: int | None = None) -> None:
    """Write `step,epoch,lr.<group>...[,momentum.<group>...]`; floats read back exactly.

    Row k is the k-th step taken, so its LR is `curve.lr[k - 1]`, and its epoch is k / steps_per_epoch.

    Args:
        plan: what the run will do.
        file: opened with newline="".
        max_rows: thin to at most so many rows (4 at least), where ends and corners are kept; None writes all.
    """
    groups = range(len(plan.groups))
    tables = [("lr", plan.curve.lr)] + ([] if plan.curve.momentum is None else [("momentum", plan.curve.momentum)])
    columns = plan.curve.columns
    writer = csv.writer(file, lineterminator="\n")
    names = [printable(group.name) for group in plan.groups]
    writer.writerow(["step", "epoch", *(f"{what}.{names[g]}" for what, _ in tables for g in groups)])
    rows = np.arange(len(plan.curve))
    if max_rows is not None and len(rows) > max_rows:
        rows = kept_rows(np.concatenate([table for _, table in tables], axis=1), max(max_rows, 4))
    for start in range(0, len(rows), _CHUNK_ROWS):
        t = rows[start : start + _CHUNK_ROWS]
        steps = [k + 1 for k in t.tolist()]
        texts: list[list[str]] = [list(map(str, steps)), [repr(k / plan.steps_per_epoch) for k in steps]]
        for _, table in tables:
            written: dict[bytes, list[str]] = {}
            for column in (columns[g] for g in groups):
                values = table[t, column]
                texts.append(
                    written.get(values.tobytes())
                    or written.setdefault(values.tobytes(), list(map(repr, values.tolist())))
                )
        file.write("\n".join(map(",".join, zip(*texts, strict=True))) + "\n")


def kept_rows(table: NDArray[np.float64], max_rows: int) -> NDArray[np.int64]:
    """The rows that tell most about a table: the ends, the sharpest corners, and the rest evenly spread.

    Args:
        table: one curve a column, shape (rows, columns).
        max_rows: at most so many.
    """
    span = np.ptp(table, axis=0)
    bends = (np.abs(np.diff(table, 2, axis=0)) / np.where(span > 0, span, 1.0)).max(axis=1)
    sharp = bends > max(10 * float(np.median(bends)), 1e-12)
    corners = np.argsort(-bends, kind="stable")[: min(int(sharp.sum()), max_rows // 2)] + 1
    even = np.linspace(0, len(table) - 1, max_rows - len(corners)).round().astype(np.int64)
    return np.union1d(corners, even).astype(np.int64)
