"""The three training scenarios, who takes part, and what follows from their clocks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench_parts.measure import Found, in_turns, run_task
from bench_parts.rows import Check, Row, fastest, good_of, ratio, row_of
from bench_parts.task import Task

FP32: dict[str, Any] = {"precision": "fp32"}
AUTO: dict[str, Any] = {"precision": "auto"}


@dataclass(frozen=True)
class Contestant:
    """Who trains: `role` is bare, lrtrain or peer; `package` must be there for it."""

    name: str
    part: str
    role: str
    package: str
    variant: dict[str, Any]


LRTRAIN, LRTRAIN_FP32 = "lrtrain fit, precision: auto", "lrtrain fit, precision: fp32"
LINEUP = (
    Contestant("bare loop, fp32 NCHW", "bare", "bare", "torch", {**FP32, "channels_last": False}),
    Contestant("bare loop, fp32 at its best", "bare", "bare", "torch", {**FP32, "channels_last": True}),
    Contestant("bare loop, best precision at its best", "bare", "bare", "torch", {**AUTO, "channels_last": True}),
    Contestant(LRTRAIN_FP32, "lrtrain_fit", "lrtrain", "lrtrain", FP32),
    Contestant(LRTRAIN, "lrtrain_fit", "lrtrain", "lrtrain", AUTO),
    Contestant("torchvision-style loop", "torchvision_loop", "peer", "torchvision", {}),
    Contestant("Lightning", "lightning_trainer", "peer", "lightning", {}),
    Contestant("fastai", "fastai_learner", "peer", "fastai", {}),
    Contestant("timm", "timm_loop", "peer", "timm", {}),
)
# On a GPU, where no peer is measured.
KERNELS = "lrtrain fit, cuda_graph: false"
GPU_LINEUP = (
    LINEUP[2],
    LINEUP[4],
    Contestant(KERNELS, "lrtrain_fit", "lrtrain", "lrtrain", {**AUTO, "cuda_graph": False}),
)


@dataclass(frozen=True)
class Window:
    """The steps `start` to `stop - 1`, from the end of the step before (or the first request) to the last's end."""

    title: str
    start: int
    stop: int


def train_all(
    key: str, base: Task, windows: Sequence[Window], repeats: int, tell: Callable[[str], object]
) -> list[Row]:
    """Measure every contestant that is installed; a row each for every window."""
    lineup = LINEUP if base.device == "cpu" else GPU_LINEUP
    present = {who.name: who for who in lineup if importlib.util.find_spec(who.package)}
    tasks = {name: replace(base, part=f"contestants.{who.part}", variant=who.variant) for name, who in present.items()}
    found = in_turns(tasks, repeats, run_task, lambda text: tell(f"({key}) {text}"))
    rows: list[Row] = []
    for window in windows:
        rows += _with_ratios([_row(window, who, found.get(who.name)) for who in lineup], lineup)
    return rows


def images_per_second(found: Found, start: int, stop: int) -> float:
    """Images of the steps `start` to `stop - 1` over the time between the ends of steps `start - 1` and `stop - 1`."""
    began = found["seconds"][start - 1] if start else 0.0
    rate: float = sum(found["images"][start:stop]) / (found["seconds"][stop - 1] - began)
    return rate


def _row(window: Window, who: Contestant, found: list[Found] | None) -> Row:
    if found is None:
        return Row(window.title, who.name, "images/s", note="not installed")
    rates = [images_per_second(one, window.start, window.stop) for one in good_of(found)]
    return row_of(window.title, who.name, "images/s", found, rates)


def _with_ratios(rows: list[Row], lineup: Sequence[Contestant] = LINEUP) -> list[Row]:
    """Each over the fastest bare loop in its own precision, and over the fastest peer."""
    pairs = list(zip(lineup, rows, strict=True))
    peer = fastest([row for who, row in pairs if who.role == "peer"])
    for who, row in pairs:
        precision = who.variant.get("precision", "fp32")
        bare = fastest([r for w, r in pairs if w.role == "bare" and w.variant["precision"] == precision])
        for name, other in (("bare", bare), ("fastest peer", peer)):
            value = ratio(row, other)
            if value is not None and row is not other:
                row.ratios[name] = value
    return rows


def checks(key: str, rows: Sequence[Row], windows: Sequence[Window]) -> list[Check]:
    """The thresholds of a scenario."""

    def found(window: int, name: str, other: str) -> float | None:
        title = windows[window].title
        row = next((row for row in rows if row.section == title and row.name == name), None)
        return row.ratios.get(other) if row else None

    if key in ("gpu-small", "gpu-large"):
        return [
            Check(f"({key}) lrtrain auto, of the fastest bare loop in that precision", found(0, LRTRAIN, "bare"), 0.95)
        ]
    if key == "a":
        return [
            Check("(a) lrtrain auto, of the fastest bare loop in that precision", found(0, LRTRAIN, "bare"), 0.95),
            Check("(a) lrtrain fp32, of the fastest bare loop in fp32", found(0, LRTRAIN_FP32, "bare"), 0.95),
            Check("(a) lrtrain auto, over the fastest peer", found(0, LRTRAIN, "fastest peer"), 1.8),
            Check("(a) lrtrain fp32, over the fastest peer", found(0, LRTRAIN_FP32, "fastest peer"), 1.15),
        ]
    if key == "b":
        return [
            Check("(b) lrtrain auto, of the fastest bare loop in that precision", found(0, LRTRAIN, "bare"), 0.9),
            Check("(b) lrtrain auto, over the fastest peer", found(0, LRTRAIN, "fastest peer"), 4.0),
        ]
    return [
        Check("(c) first epoch, lrtrain auto over the fastest peer", found(0, LRTRAIN, "fastest peer"), 1.0),
        Check("(c) later epochs, lrtrain auto over the fastest peer", found(1, LRTRAIN, "fastest peer"), 1.3),
    ]
