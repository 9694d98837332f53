"""Train copies with a rising LR and record the loss."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import random
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from lrtrain.build import Job
from lrtrain.engine.events import Logged
from lrtrain.engine.finite import Gate
from lrtrain.engine.state import LossSums, TrainState
from lrtrain.engine.train import train
from lrtrain.errors import ConfigError, Diverged
from lrtrain.random import put_back
from lrtrain.range_test.suggest import StopRule
from lrtrain.schedule.curve import NEVER, Curve, GroupLR
from lrtrain.schedule.plan import Plan


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a range test recorded.

    Attributes:
        lrs: what `optimizer.lr` was at each step made, shape (n,).
        losses: the training loss of each step's batch, before the update with that LR; NaN where it was not finite.
        planned: steps that the sweep would have had.
        stopped: why it ended early, or None.
        state_before: hash of model, optimizer and random state before the sweep; `state_after` is the same afterwards.
    """

    lrs: NDArray[np.float64]
    losses: NDArray[np.float64]
    planned: int
    stopped: str | None
    state_before: str
    state_after: str


def sweep_lrs(start: float, end: float, steps: int, mode: str) -> NDArray[np.float64]:
    """The LR of each step, from `start` to `end`, both reached.

    exp: start * (end / start) ** (t / (steps - 1)); linear: start + (end - start) * t / (steps - 1).
    """
    share = np.arange(steps) / (steps - 1)
    lrs: NDArray[np.float64] = start * (end / start) ** share if mode == "exp" else start + (end - start) * share
    return lrs


def sweep(job: Job, lrs: NDArray[np.float64], each: Callable[[int], object] = lambda step: None) -> Sweep:
    """Run a range test on copies of the job's model and optimizer (Smith, arXiv:1506.01186).

    `optimizer.lr` follows `lrs`, and each group keeps its ratio to it; a group that is frozen for a time trains, and
    one that is frozen for the whole run does not. Nothing of the job is changed, and the random state is put back: what
    is trained afterwards is what would have been without the test.

    Args:
        job: built, at step 0.
        lrs: the LR of each step, shape (steps,).
        each: is told after every step.

    Raises:
        ConfigError: a group's LR would be more than any weight can follow.
    """
    before = fingerprint(job.state)
    with put_back(), torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        recorded, stopped = _run(job, lrs, each)
    losses = np.array(recorded)
    return Sweep(lrs[: len(losses)], losses, len(lrs), stopped, before, fingerprint(job.state))


def _run(job: Job, lrs: NDArray[np.float64], each: Callable[[int], object]) -> tuple[list[float], str | None]:
    steps = len(lrs)
    groups = tuple(
        dataclasses.replace(group, frozen_steps=NEVER if _never_trains(group, job.plan) else 0)
        for group in job.plan.groups
    )
    curve = _swept(job, lrs)
    plan = dataclasses.replace(
        job.plan, curve=curve, groups=groups, total_steps=steps, live_from=None, phases=(), notes=()
    )
    recipe = dataclasses.replace(
        job.recipe,
        total_steps=steps,
        log_every=1,
        eval_every=None,
        checkpoint_every=None,
        early_stop=None,
        plateau=None,
    )
    rule, losses = StopRule(), list[float]()
    try:
        for event in train(_copy(job.state), plan, job.batches, recipe):
            if isinstance(event, Logged):
                losses.append(event.loss)
                each(event.step)
                if rule.stops(event.loss):
                    return losses, f"the loss exceeded {rule.factor:g} times its minimum"
    except Diverged:
        losses.append(float("nan"))
        return losses, "the loss was no longer a finite number"
    return losses, None


def _swept(job: Job, lrs: NDArray[np.float64]) -> Curve:
    """The LR of every group, each in its ratio to `optimizer.lr`."""
    with np.errstate(over="ignore"):
        ratios = np.array([group.lr for group in job.plan.groups]) / job.config.optimizer.lr
        table = lrs[:, None] * ratios[None, :]
    table[:, [_never_trains(group, job.plan) for group in job.plan.groups]] = 0.0
    try:
        return Curve(table, columns=tuple(range(len(ratios))))
    except ValueError as error:
        most = f"that of group {job.plan.groups[int(ratios.argmax())].name!r} is {ratios.max():g}"
        raise ConfigError(
            f"every group is swept in its ratio to optimizer.lr, and {most}: {error}",
            job.config.where("optimizer", "lr"),
            "give optimizer.lr and the groups LRs that lie closer together, or a lower --end",
        ) from None


def _never_trains(group: GroupLR, plan: Plan) -> bool:
    return group.frozen_steps >= plan.total_steps


def _copy(state: TrainState) -> TrainState:
    model, optimizer = copy.deepcopy((state.model, state.optimizer))
    sums = LossSums(torch.zeros_like(state.losses.sums))
    return TrainState(
        model=model,
        forward=model,
        optimizer=optimizer,
        parameter_names=state.parameter_names,
        losses=sums,
        gate=Gate(optimizer, sums.sums.device),
        scaler=copy.deepcopy(state.scaler),
    )


def fingerprint(state: TrainState) -> str:
    """SHA-256 over every tensor of model, EMA and optimizer, the optimizer's settings, and the random states."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key, item in value.items():
                digest.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(state.model.state_dict())
    add(None if state.ema is None else state.ema.state_dict())
    add(state.optimizer.state_dict())
    add([random.getstate(), torch.get_rng_state()])
    numpy_state = np.random.get_state(legacy=False)
    add(
        {key: repr(value) for key, value in numpy_state.items()} if isinstance(numpy_state, dict) else repr(numpy_state)
    )
    return digest.hexdigest()
