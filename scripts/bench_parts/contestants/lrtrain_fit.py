"""`lrtrain fit` as the command runs it: loading, augmentation, logging, progress bar, run directory, checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench_parts.contestants.shared import MEAN, STD
from bench_parts.task import Clock, Task

NEEDS = ("lrtrain",)


def train(task: Task, clock: Clock) -> None:
    """`variant`: keys of the config that differ, such as precision and checkpoint."""
    from lrtrain import cli
    from lrtrain.commands import fit
    from lrtrain.engine.events import Event, Stepped
    from lrtrain.sinks.jsonl import Timing

    class Clocked(Timing):
        """The command's own sink for times, which tells the clock too."""

        def __call__(self, event: Event) -> None:
            if isinstance(event, Stepped):
                clock.step(event.images)
            super().__call__(event)

    def begun(*arguments: Any) -> Iterator[Event]:
        clock.begin()
        return engine(*arguments)

    engine, fit.train, fit.Timing = fit.train, begun, Clocked
    config, run_dir = Path("bench.yaml"), Path("run")
    # JSON is YAML.
    config.write_text(json.dumps(config_of(task)))
    sys.argv = ["lrtrain", "fit", str(config), "--out", str(run_dir)]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    clock.losses = [torch.tensor(row["loss"]) for row in rows if row["event"] == "train"]


def config_of(task: Task) -> dict[str, Any]:
    """The task as a config. No peer evaluates, so it does so after the last step only, which no clock sees."""
    crop = {"name": "RandomCrop", "padding": 4} if task.augment == "crop" else {"name": "RandomResizedCrop"}
    before = [{"name": "Resize", "size": [256, 256]}] if task.augment == "resized_crop_of_256" else []
    normalize = [
        {"name": "ToDtype", "dtype": "float32", "scale": True},
        {"name": "Normalize", "mean": list(MEAN), "std": list(STD)},
    ]
    resize = [{"name": "Resize", "size": [task.size, task.size]}] if task.augment != "crop" else []
    return {
        "seed": 1,
        "steps": task.steps,
        "batch_size": task.batch,
        "model": task.model,
        "dataset": {
            "name": "imagefolder",
            "root": task.root,
            "transforms": {
                "train": [*before, {**crop, "size": task.size}, "RandomHorizontalFlip", *normalize],
                "val": [*resize, *normalize],
            },
        },
        "optimizer": {
            "name": "SGD",
            "lr": task.lr,
            "momentum": task.momentum,
            "nesterov": True,
            "weight_decay": task.weight_decay,
        },
        "device": task.device,
        "workers": task.workers,
        "eval_every": f"{task.steps}step",
        **task.variant,
    }
