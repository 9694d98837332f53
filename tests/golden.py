"""Golden curves of the shipped configs. `python -m tests.golden` writes them anew: look at the difference first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lrtrain.config.load import load
from lrtrain.schedule.plan import GroupLR, make_plan

# Steps per epoch where the images are not at hand.
STEPS_PER_EPOCH = {"cifar10_fast": 48, "cifar10_resnet18": 98, "transfer": 8}


def golden(path: Path) -> dict[str, str]:
    """Step and LR, as hexadecimal floats, at eleven points of a config's run."""
    config = load(path)
    momentum = config.optimizer.args.get("momentum", 0.9)
    plan = make_plan(config, [GroupLR("default", config.optimizer.lr, momentum)], STEPS_PER_EPOCH.get(path.stem, 23))
    points = np.linspace(0, plan.total_steps - 1, 11).astype(int).tolist()
    return {str(t): float(plan.curve.lr[t, 0]).hex() for t in points}


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    curves = {path.stem: golden(path) for path in sorted((root / "configs").glob("*.yaml"))}
    (root / "tests" / "golden_curves.json").write_text(json.dumps(curves, indent=1) + "\n")
