"""Whether what a checkpoint says of a run can be true of this one: numbers that no training arrives at are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from lrtrain.checkpoint.format import Checkpoint
from lrtrain.checkpoint.manifest import COPY, MAX_ROLLBACKS
from lrtrain.engine.state import Best, TrainState
from lrtrain.engine.train import Recipe, due
from lrtrain.errors import CheckpointError

_ROUNDING = 1e-3  # that a mean loss may lie below 0
_GREATEST = 3.5e38  # of a loss: float32's end


def refuse_contradictions(
    state: TrainState, recipe: Recipe, batch_size: int, rollback_factor: float | None, checkpoint: Checkpoint
) -> None:
    """Hold a state that was restored against the run that it is to go on with.

    Args:
        state: restored.
        recipe: the run's.
        batch_size: images of a step.
        rollback_factor: what the LR is lowered by where the run goes back; None where it never does.
        checkpoint: where the state comes from, for errors.

    Raises:
        CheckpointError: names the field of the manifest.
    """
    step, losses = state.step, state.losses
    most = step * batch_size
    sums = losses.sums.tolist() if state.world.leads else [0.0] * len(losses.images)
    watched = "" if recipe.early_stop is None else recipe.early_stop.monitor
    wrong = {
        "rollbacks: this run never goes back": bool(state.rollbacks) and rollback_factor is None,
        f"rollbacks: the LR is lowered by {rollback_factor} at each": any(
            back.factor != rollback_factor for back in state.rollbacks
        ),
        f"ema_updates: the average is updated at each of the {step} steps": state.ema is not None
        and int(state.ema.n_averaged) != step,
        f"loss_images: in {step} steps there are at most {most:,}": any(n > most for n in losses.images),
        "loss_sums: no sum of that many losses": any(
            not -_ROUNDING * n <= total <= _GREATEST * n for total, n in zip(sums, losses.images, strict=True)
        ),
        f"best.value: no {recipe.best}": not _possible(state.best, recipe.best),
        "early: the run does not stop early": not watched and state.early != Best(),
        f"early.value: no {watched}": bool(watched) and not _possible(state.early, watched),
        f"pending: no evaluation is due at step {step}": state.pending and not due(step, recipe.eval_every, recipe),
    }
    for why, so in wrong.items():
        if so:
            raise CheckpointError(f"manifest.json contradicts itself or the config: {why}", str(checkpoint.path), COPY)


# How a row of metrics.jsonl calls what is watched; the mean training loss is in none.
_LOGGED = {"val_loss": "loss", "val_acc1": "acc1", "val_acc5": "acc5"}


def refuse_other_story(
    state: TrainState,
    recipe: Recipe,
    rows: Callable[[str, int | None], Iterator[Mapping[str, Any]]],
    checkpoint: Checkpoint,
) -> None:
    """Hold what a state says of the run's evaluations, and of where it went back, against the log.

    Args:
        state: restored.
        recipe: the run's.
        rows: of the log, of an event and of a step or of all, newest first.
        checkpoint: where the state comes from, for errors.

    Raises:
        CheckpointError: names what the log says otherwise.
    """

    def evaluations() -> Iterator[Mapping[str, Any]]:
        return islice(rows("eval", None), state.step + 1)  # there are no more; a log may have been written by anybody

    def row(step: int) -> Mapping[str, Any] | None:
        return next(rows("eval", step), None)

    watched = {"best": (state.best, recipe.best)}
    if recipe.early_stop is not None:
        watched["early"] = (state.early, recipe.early_stop.monitor)
    what = ""
    for name, (best, monitor) in watched.items():
        if best.value is None:
            if any(said.get(_LOGGED.get(monitor, "")) is not None for said in evaluations()):
                what = f"{name}: there is none in the manifest, and metrics.jsonl has evaluations"
            continue
        found = row(best.step)
        if found is None or (monitor in _LOGGED and found.get(_LOGGED[monitor]) != best.value):
            said = "has no evaluation then" if found is None else f"says {found.get(_LOGGED[monitor])}"
            what = f"{name}: {monitor} is {best.value} at step {best.step} in the manifest, and metrics.jsonl {said}"
    key = _LOGGED.get(recipe.plateau or "")
    low = math.inf if state.live is None else float(state.live.state()["best"])
    if key and math.isfinite(low) and not any(said.get(key) == low for said in evaluations()):
        what = f"plateau: its best {recipe.plateau} is {low}, and metrics.jsonl has no such evaluation"
    was_due = state.step and due(state.step, recipe.eval_every, recipe)
    if (state.pending or was_due) and (row(state.step) is None) != state.pending:
        what = (
            f"pending: {state.pending}, and metrics.jsonl has {'an' if state.pending else 'no'} evaluation of its step"
        )
    back = islice(rows("rollback", None), MAX_ROLLBACKS + 1)
    logged = sorted(str((one.get("failed"), one.get("step"), one.get("factor"))) for one in back)
    if logged != sorted(str((one.failed, one.to, one.factor)) for one in state.rollbacks):
        what = f"rollbacks: {len(state.rollbacks)} in the manifest, and metrics.jsonl has more, fewer or other ones"
    if what:
        raise CheckpointError(f"the checkpoint contradicts the log: {what}", str(checkpoint.path), COPY)


def _possible(best: Best, monitor: str) -> bool:
    if best.value is None:
        return True
    return best.value >= -_ROUNDING if monitor.endswith("loss") else 0 <= best.value <= 1
