"""What the schedule tests share: a config, a plan, and torch's own scheduler stepped live."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import SGD, Adam, Optimizer

from lrtrain.config import yaml
from lrtrain.config.load import resolve
from lrtrain.config.schema import RunConfig
from lrtrain.schedule.plan import GroupLR, Plan, make_plan

SGD_ = "{name: SGD, lr: 0.1, momentum: 0.9}"
ADAM = "{name: Adam, lr: 0.1}"
THREE = (0.1, 0.01, 0.003)
RUN = "batch_size: 8\nmodel: resnet18\ndataset: digits\n"


def config_of(schedule: str, *, optimizer: str = SGD_, length: str = "steps: 500") -> RunConfig:
    """A config with this schedule, as if read from c.yaml."""
    text = f"{length}\n{RUN}optimizer: {optimizer}\n" + (f"schedule: {schedule}\n" if schedule else "")
    return resolve(yaml.parse(text, "c.yaml"))


def plan_of(
    schedule: str,
    *,
    lrs: Sequence[float] = (0.1,),
    momentum: float | None = 0.9,
    steps_per_epoch: int = 50,
    frozen_steps: Sequence[int] = (),
    optimizer: str = SGD_,
    length: str = "steps: 500",
) -> Plan:
    """The plan for parameter groups a, b, c ... with these LRs."""
    frozen = [*frozen_steps, *[0] * (len(lrs) - len(frozen_steps))]
    groups = [GroupLR("abcdefgh"[i], lr, momentum, frozen[i]) for i, lr in enumerate(lrs)]
    return make_plan(config_of(schedule, optimizer=optimizer, length=length), groups, steps_per_epoch)


def rows(plan: Plan, start: int = 0, stop: int | None = None) -> list[list[float]]:
    """The LR of every group at every step, as plain lists."""
    return plan.curve.lr[start:stop, list(plan.curve.columns)].tolist()


def momenta(plan: Plan, start: int = 0, stop: int | None = None) -> list[list[float]]:
    """The momentum of every group at every step."""
    assert plan.curve.momentum is not None
    return plan.curve.momentum[start:stop, list(plan.curve.columns)].tolist()


def real_optimizer(lrs: Sequence[float] = THREE, kind: type[Optimizer] = SGD) -> Optimizer:
    """An optimizer with one real parameter a group."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    return SGD(groups, lr=0.1, momentum=0.9) if kind is SGD else Adam(groups, lr=0.1)


def live(
    make: Callable[[Optimizer], Any],
    steps: int,
    *,
    hold: int = 1,
    kind: type[Optimizer] = SGD,
    lrs: Sequence[float] = THREE,
) -> tuple[list[list[float]], list[list[float]]]:
    """LR and momentum (or beta1) of each step, torch's scheduler stepped every `hold` steps."""
    optimizer = real_optimizer(lrs, kind)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    lr, momentum = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = make(optimizer)
        for step in range(steps):
            if step and step % hold == 0:
                scheduler.step()
            lr.append([float(group["lr"]) for group in optimizer.param_groups])
            momentum.append(
                [group["momentum"] if "momentum" in group else group["betas"][0] for group in optimizer.param_groups]
            )
            for p in parameters:
                p.grad = torch.ones_like(p)
            optimizer.step()
    peak = max(map(max, lr))
    return [[0.0 if -1e-12 * peak < x < 0 else x for x in row] for row in lr], momentum
