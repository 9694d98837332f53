"""`lrtrain range-test`: sweep the LR, show the loss, suggest."""

from __future__ import annotations

import dataclasses
import json as json_module
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from torch.optim import Rprop
from tqdm import tqdm

from lrtrain.build import build, refuse_single_images
from lrtrain.commands.start import Start
from lrtrain.config.schema import RunConfig
from lrtrain.errors import ConfigError, EnvironmentFault
from lrtrain.range_test.figure import draw_range_test, save_range_test
from lrtrain.range_test.suggest import Suggestions, smooth, suggest
from lrtrain.range_test.sweep import Sweep, sweep
from lrtrain.schedule.figure import import_matplotlib
from lrtrain.sinks.console import Screen, number
from lrtrain.sinks.run_dir import refuse_among_classes, refuse_unmakable, refuse_unwritable
from lrtrain.writing import write_atomically

# fastai's default. Where the curve gives no confident answer, none is chosen.
CHOSEN = "valley"
_LRS = ("base_lr", "eta_min", "max_lr", "min_lr")  # of torch's schedulers, the arguments that are LRs and no factors
WORDS = {
    "valley": "in the longest fall of the loss",
    "steepest": "where the loss falls fastest",
    "slide": "coming from the right, where the slope steadies",
    "minimum_tenth": "a tenth of where the loss is lowest",
}


def run(start: Start, lrs: NDArray[np.float64], mode: str, folder: Path, json: Path | None) -> None:
    """Run the test; write range-test.png and range-test.json into `folder`."""
    refuse_unwritable(json, "--json")
    config, steps, screen = start.config, len(lrs), Screen()
    refuse_unmakable(folder, "cannot make the folder")
    for name in ("range-test.json", "range-test.png") if folder.exists() else ():
        refuse_unwritable(folder / name, "--out")
    import_matplotlib()  # not only after the sweep
    job = build(config)
    refuse_among_classes(folder, job.source.class_roots)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"cannot make the folder: {error.strerror}", str(folder)) from error
    if isinstance(job.state.optimizer, Rprop):
        raise ConfigError(
            f"{config.optimizer.name} reads its LR at the first step alone, so that a range test shows nothing",
            config.where("optimizer", "name"),
            "take another optimizer",
        )
    # The sweep may come to the end of an epoch, where the run itself does not.
    longest = config.model_copy(update={"epochs": None, "steps": max(steps, job.plan.total_steps)})
    refuse_single_images(longest, job.built.module, len(job.source.train), job.plan.steps_per_epoch)
    with tqdm(total=steps, desc="range test", unit="step", leave=False, disable=None, dynamic_ncols=True) as bar:
        if bar.disable:  # where nobody sees it grow, it should not look as if it hung
            screen.print(f"sweeping {steps:,} steps from {number(lrs[0])} to {number(lrs[-1])}")
        result = sweep(job, lrs, lambda step: bar.update())
    job.batches.close()
    smoothed = smooth(result.losses)
    suggestions = suggest(result.lrs, result.losses, steps)
    screen.print(
        draw_range_test(result.lrs, smoothed, suggestions, width=min(screen.width, 100), unicode=screen.unicode)
    )
    screen.print()
    screen.print(_table(suggestions))
    _tell(screen, result, suggestions, start)
    write_atomically(folder / "range-test.json", _json(result, smoothed.tolist(), suggestions, mode), then="try again")
    if json is not None:
        write_atomically(json, _json(result, smoothed.tolist(), suggestions, mode), then="try again")
    save_range_test(
        folder / "range-test.png",
        result.lrs,
        result.losses,
        smoothed,
        suggestions,
        title=f"{config.model.name} on {config.dataset.name}, {config.optimizer.name}",
        chosen="" if suggestions.caution else CHOSEN,
    )
    screen.print(f"\nplot      {folder / 'range-test.png'}\nevidence  {json or folder / 'range-test.json'}")


def _tell(screen: Screen, result: Sweep, suggestions: Suggestions, start: Start) -> None:
    screen.print()
    if result.stopped:
        screen.print(f"stopped at step {len(result.losses)} of {result.planned}: {result.stopped}")
    same = result.state_before == result.state_after
    screen.print(
        "model, optimizer and random state are as before the test"
        if same
        else "warning: the test has changed model, optimizer or random state; this is a bug in lrtrain"
    )
    optimizer = start.config.optimizer
    if optimizer.groups or optimizer.layer_decay is not None:
        screen.print("the LR above is `optimizer.lr`; every group that trains was swept with it, in the config's ratio")
    chosen = getattr(suggestions, CHOSEN)
    command = shlex.join(["lrtrain", "fit", *([str(start.path)] if start.path else []), *_kept(start.overrides)]) + " "
    if suggestions.caution:
        screen.print(f"caution: {suggestions.caution}", "yellow")
        screen.print("next: no LR stands out; look at the plot, then", "bold")
        screen.print(f"      {command}{settings(start.config, None)}", "bold", whole=True)
    elif chosen is not None:
        screen.print(f"next: {command}{settings(start.config, float(f'{chosen:.2g}'))}", "bold", whole=True)


def _kept(overrides: Sequence[str]) -> list[str]:
    """The overrides of the test but for LRs, which it has found."""
    kept = [text for text in overrides if not re.match(r"optimizer\.(groups\.\d+\.)?lr=", text)]
    return [word for text in kept for word in ("--set", text)]


def settings(config: RunConfig, lr: float | None) -> str:
    """The overrides that train with `lr`: LRs of groups, and of the schedule, keep their ratio to it; None is open."""
    optimizer = config.optimizer
    own = {f"optimizer.groups.{i}.lr": group.lr for i, group in enumerate(optimizer.groups) if group.lr is not None}
    own |= dict(_lrs_in(config.written("schedule"), "schedule"))

    def scaled(value: Any) -> str:
        if lr is None:
            return "..."
        if isinstance(value, list):
            return shlex.quote(f"[{', '.join(map(scaled, value))}]")
        ratio = value / optimizer.lr
        return f"{lr * ratio:.3g}" if ratio != 1 else f"{lr:g}"

    return " ".join(f"--set {name}={scaled(value)}" for name, value in {"optimizer.lr": optimizer.lr, **own}.items())


def _lrs_in(schedule: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The LRs that a schedule says itself, wherever in it, by the key of `--set`."""
    items = (
        schedule.items() if isinstance(schedule, dict) else enumerate(schedule) if isinstance(schedule, list) else ()
    )
    for key, value in items:
        if key in _LRS and value:
            yield f"{name}.{key}", value
        elif key not in _LRS:
            yield from _lrs_in(value, f"{name}.{key}")


def _table(suggestions: Suggestions) -> Table:
    chosen = None if suggestions.caution else CHOSEN
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("suggestion")
    table.add_column("LR", justify="right")
    table.add_column("")
    for name, words in WORDS.items():
        value = getattr(suggestions, name)
        shown = "minimum/10" if name == "minimum_tenth" else name
        table.add_row(
            shown, "none" if value is None else number(value), words, style="bold" if name == chosen else None
        )
    return table


def _json(result: Sweep, smoothed: Sequence[float], suggestions: Suggestions, mode: str) -> str:
    def finite(values: Sequence[float]) -> list[float | None]:
        return [value if math.isfinite(value) else None for value in values]

    evidence: dict[str, Any] = {
        "mode": mode,
        "steps_planned": result.planned,
        "stopped": result.stopped,
        "lr": result.lrs.tolist(),
        "loss": finite(result.losses.tolist()),
        "smoothed": finite(smoothed),
        "suggestions": dataclasses.asdict(suggestions),
        "chosen": None if suggestions.caution else CHOSEN,
        "state_sha256": {"before": result.state_before, "after": result.state_after},
    }
    return json_module.dumps(evidence, indent=1, allow_nan=False) + "\n"
