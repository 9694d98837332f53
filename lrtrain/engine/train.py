"""The training loop: a generator of events.

It is suspended while those who listen work, so whatever they save is consistent, and an interrupt has one place to
land. Read `train` from top to bottom; everything it does at a step is decided by (config, step).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.config.schema import EarlyStop, monitor_mode
from lrtrain.data.batches import Batch
from lrtrain.engine import average
from lrtrain.engine.distributed import agreed, gathered, share_buffers, summed, unsynchronised
from lrtrain.engine.evaluate import autocast, evaluate
from lrtrain.engine.events import (
    EpochEnded,
    Evaluated,
    Event,
    Finished,
    Logged,
    Metrics,
    Reduced,
    SaveDue,
    Stepped,
    Stopped,
)
from lrtrain.engine.finite import (
    LEAST_SCALE,
    NotFinite,
    Trouble,
    culprit,
    gradient_norms,
    group_norms,
    norms_of,
    unsoundness,
)
from lrtrain.engine.mix import Mix
from lrtrain.engine.precision import Precision
from lrtrain.engine.state import Best, TrainState, refuse_lost
from lrtrain.errors import ConfigError
from lrtrain.models.infinite import first_bad_tensor
from lrtrain.random import key, seed_model
from lrtrain.schedule.plan import Plan
from lrtrain.world import World

# Why training may be asked to stop; several processes must agree on one.
REASONS = ("SIGUSR2", "SIGUSR1", "SIGHUP", "SIGINT", "SIGTERM")
SAVE_ONLY = "SIGUSR2"  # the one that asks for the state to be saved, and for nothing to end


class Images(Protocol):
    """Where batches come from; `lrtrain.data.batches.Batches` is one."""

    def train(self, start: int, stop: int, *, asked: Callable[[], object]) -> Iterator[Batch]:
        """The batches of steps `start` to `stop - 1`; no more where `asked` answers while one is awaited."""
        ...

    def evaluate(self, split: str, *, asked: Callable[[], object]) -> Iterator[Batch]:
        """A split's images in order; likewise."""
        ...


@dataclass(frozen=True)
class Recipe:
    """The numbers that training goes by; lengths in optimizer steps, None where something never happens."""

    seed: int
    total_steps: int
    log_every: int
    eval_every: int | None
    checkpoint_every: int | None
    precision: Precision
    val_images: int
    accumulate: int = 1
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    mix: Mix | None = None
    best: str = "val_acc1"
    early_stop: EarlyStop | None = None
    plateau: str | None = None
    live_from: int = 0
    flip: bool = False
    thawed_from: int = 0
    """From this step on no group of parameters is frozen."""
    former_ends: tuple[int, ...] = ()
    """Where the run had ended before it was extended: what is due at the end was done there too."""


def train(
    state: TrainState, plan: Plan, batches: Images, recipe: Recipe, stop: Callable[[], str | None] = lambda: None
) -> Iterator[Event]:
    """Train from `state.step` to `recipe.total_steps`.

    Args:
        state: is changed in place.
        plan: the LR of every step.
        batches: the images of every step.
        recipe: everything else.
        stop: asked after every step and evaluation batch, and by one process while it waits for images; a reason ends
            training with the state due to be saved.

    Raises:
        NotFinite: a loss, gradient or weight is not finite. The weights are those from before that step.
    """
    state.forward.train()
    stop = agreed(stop, state.world, REASONS)
    if state.pending:
        stopped = yield from _evaluate_and_save(state, plan, batches, recipe, stop)
        if stopped is not None:
            yield stopped
            return
    _freeze(state, plan)
    thaws = {group.frozen_steps for group in plan.groups}
    for batch in batches.train(state.step, recipe.total_steps, asked=_alone(stop, state.world)):
        state.whole = False
        if state.step in thaws:
            _freeze(state, plan)
        plan.write(state.optimizer, state.step, state.live)
        bad_loss = optimizer_step(state, batch, recipe)
        if bad_loss is not None:
            raise NotFinite(_trouble(state, plan, recipe, batch, bad_loss))
        state.step += 1
        yield Stepped(state.step, batch.total)

        if due(state.step, recipe.log_every, recipe):
            yield _logged(state, plan)
        state.pending = due(state.step, recipe.eval_every, recipe)
        stopped = yield from _evaluate_and_save(state, plan, batches, recipe, stop)
        if stopped is not None:
            yield stopped
            return
        state.whole = True
    if state.step < recipe.total_steps:  # asked to stop while no images came
        saved = yield from save_after_fault(state, plan)
        yield Stopped(state.step, stop() or "", saved)
        return
    yield Finished(state.step)


def _alone(stop: Callable[[], str | None], world: World) -> Callable[[], bool]:
    """Whether to stop, as one process may ask at any time: several ask together, and none of them can wait for it."""
    return lambda: world.size == 1 and stop() not in (None, SAVE_ONLY)


def save_after_fault(state: TrainState, plan: Plan) -> Generator[Event, None, bool]:
    """What saves the last completed step, where the next batch was not to be had; nothing in the midst of a step.

    Several processes must save together, and one that failed cannot.
    """
    saved = bool(state.whole and state.step and state.world.size == 1) and _unsound(state, plan) is None
    if saved:
        yield SaveDue(state.step, best=False, planned=False)
    return saved or not state.step


def optimizer_step(state: TrainState, batch: Batch, recipe: Recipe) -> float | None:
    """One update from one batch, in `accumulate` equal parts (the last may be smaller).

    Where loss or gradients are not finite, nothing is updated, the gradients are left to be looked at, and the loss is
    returned.
    """
    if state.graphs is None or state.step < recipe.thawed_from:  # what a graph does never changes
        loss_sum, unsound = _gradients(state, batch, recipe, _parts(state, batch, recipe))
    else:
        ((x, y),) = _parts(state, batch, recipe)
        loss_sum, unsound = state.graphs(lambda x, y: _gradients(state, batch, recipe, [(x, y)]), x, y)
    if not state.gate.opens(state.optimizer, unsound, state.world):
        return float(loss_sum) / len(batch.labels)
    if state.world.size > 1:  # an optimizer that draws must do so alike in all processes
        seed_model(key(recipe.seed, "optimizer", state.step), batch.images.device)
    if state.scaler is None:
        _step(state.optimizer)
    else:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    if state.ema is not None:
        average.update(state.ema, state.model, state.infinite, lambda: refuse_lost(state.model, state.built))
    state.losses.add(loss_sum, batch.total)
    return None


def _step(optimizer: Optimizer) -> None:
    """`optimizer.step()`, but fused SGD cannot take parameters with and without momentum in one group.

    So those that get their first gradient later than others, as in a branch that is skipped at random, take the step
    by themselves. It is the same step: SGD has nothing that belongs to several parameters.
    """
    groups = optimizer.param_groups
    late: list[tuple[Tensor, Tensor]] = []
    if type(optimizer) is torch.optim.SGD and 0 < len(optimizer.state) < sum(len(group["params"]) for group in groups):
        fused = [p for group in groups if group["fused"] and group["momentum"] for p in group["params"]]
        late = [(p, p.grad) for p in fused if p.grad is not None and p not in optimizer.state]
    for p, _ in late:
        p.grad = None
    optimizer.step()
    if late:
        others = [(p, p.grad) for group in groups for p in group["params"] if p.grad is not None]
        for p, _ in others:
            p.grad = None
        for p, gradient in late:
            p.grad = gradient
        optimizer.step()
        for p, gradient in others:
            p.grad = gradient


def _parts(state: TrainState, batch: Batch, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of each micro-batch, mixed; each starts its own random numbers of the model."""
    images = len(batch.labels)
    size = math.ceil(images / recipe.accumulate)
    rank = (state.world.rank,) if state.world.rank else ()
    for micro, start in enumerate(range(0, images, size)):
        x, y = batch.images[start : start + size], batch.labels[start : start + size]
        if recipe.mix is not None:
            x, y = recipe.mix(x, y, key(recipe.seed, "mix", state.step, micro))
        seed_model(key(recipe.seed, "model", state.step, micro, *rank), x.device)
        yield x, y


def _gradients(
    state: TrainState, batch: Batch, recipe: Recipe, parts: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The batch's gradients, clipped; the loss summed over its images, and `unsoundness` of both."""
    state.optimizer.zero_grad(set_to_none=True)
    loss_sum: Tensor | None = None
    left = len(batch.labels)
    for x, y in parts:
        part = len(y)
        left -= part
        with unsynchronised(state.forward) if left else nullcontext():
            with autocast(x.device, recipe.precision):
                logits = state.forward(x)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
            # Processes average their gradients, so that all together this is the mean over the batch's images.
            share = part * state.world.size / batch.total
            scaled = loss * share if share != 1 else loss
            _backward(scaled if state.scaler is None else state.scaler.scale(scaled))
        weighted = loss.detach() * part
        loss_sum = weighted if loss_sum is None else loss_sum + weighted
    assert loss_sum is not None
    return loss_sum, unsoundness([loss_sum, *_norms(state, recipe)])


def _backward(loss: Tensor) -> None:
    """`loss.backward()`, where what cannot be differentiated is the network's fault: no code of its own is running."""
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if "backward through the graph a second time" in str(error):
            what = "the network keeps what it made at an earlier step, and that step's gradients are gone"
            raise ConfigError(what, hint="`detach()` what it keeps, or keep nothing") from error
        if "modified by an inplace operation" in str(error):
            what = f"the network changes in place what its gradients need: {error}".partition(". Hint")[0]
            raise ConfigError(what, hint="let it make a new tensor: `x = x + y` for `x += y`") from error
        raise


def _norms(state: TrainState, recipe: Recipe) -> list[Tensor]:
    """Clip the gradients; their norms, without those of fp16, whose scaler skips a step that is out of range."""
    total: list[Tensor] = []
    if recipe.clip_norm is not None:
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        total = [torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm)]
    if state.scaler is not None:
        return []
    return total or gradient_norms(state.optimizer)


def _freeze(state: TrainState, plan: Plan) -> None:
    """A frozen group gets no gradients, so that momentum and weight decay leave it alone too."""
    changed = False
    for group, spec in zip(state.optimizer.param_groups, plan.groups, strict=True):
        trains = state.step >= spec.frozen_steps
        for parameter in group["params"]:
            changed |= parameter.requires_grad != trains
            parameter.requires_grad_(trains)
    if changed and hasattr(state.forward, "_orig_mod"):
        # What is compiled gives gradients to what had them then, which not every torch looks at again, and of what is
        # compiled often the rest runs as it is: in other bits than in a process that goes on from here.
        torch.compiler.reset()


def due(step: int, every: int | None, recipe: Recipe) -> bool:
    """Whether what happens `every` so many steps does after this one; all of it does at the run's end."""
    return every is not None and (step % every == 0 or step in (recipe.total_steps, *recipe.former_ends))


def _logged(state: TrainState, plan: Plan) -> Logged:
    lrs = _named_lrs(plan, state.step - 1, state)
    loss = state.losses.take("log")
    if (good := state.gate.passed()) is not None:
        what = "the training loss or a gradient is not finite"
        raise NotFinite(Trouble(good + 1, lrs, loss, {}, "this step and those after it changed no weight", ()), what)
    if state.scaler is not None and state.scaler.get_scale() < LEAST_SCALE:
        what = "fp16 gradients are out of range at every scale"
        raise NotFinite(Trouble(state.step, lrs, loss, {}, "try precision bf16 or fp32", ()), what)
    return Logged(state.step, state.step / plan.steps_per_epoch, lrs, loss)


def _trouble(state: TrainState, plan: Plan, recipe: Recipe, batch: Batch, loss: float) -> Trouble:
    """Everything about a step that could not be taken, from its gradients and the same pass once more."""
    norms = group_norms(state.optimizer, [group.name for group in plan.groups])
    images = batch.images
    if recipe.mix is not None:
        images, _ = recipe.mix(images, batch.labels, key(recipe.seed, "mix", state.step, 0))
    seed_model(key(recipe.seed, "model", state.step, 0), images.device)
    why = culprit(state.model, images, autocast(images.device, recipe.precision))
    lrs = _named_lrs(plan, state.step, state)
    # Each process has seen its own images: one whose loss is not finite knows why.
    seen = [json.loads(said) for said in gathered(json.dumps([loss, why, batch.index.tolist()]), state.world)]
    loss = sum(part * len(index) for part, _, index in seen) / sum(len(index) for _, _, index in seen)
    why = next((words for part, words, _ in seen if not math.isfinite(part)), seen[0][1])
    return Trouble(state.step + 1, lrs, loss, norms, why, tuple(i for _, _, index in seen for i in index))


def _unsound(state: TrainState, plan: Plan) -> NotFinite | None:
    """What is wrong with weights that the last step made infinite: these are not to be saved.

    Raises:
        NotFinite: of a step on a GPU that was not fetched yet; it names that step, whenever it is asked for.
    """
    if state.gate.passed() is not None:
        _logged(state, plan)
    saved = state.model.state_dict().items()
    tensors = [(name, t) for name, t in saved if t.is_floating_point() and name not in state.infinite]
    own = torch.stack(norms_of([t for _, t in tensors])).sum() * 0
    sound = summed(own, state.world)
    if math.isfinite(float(sound)):
        return None
    lrs = _named_lrs(plan, max(state.step - 1, 0), state)
    name = first_bad_tensor(tensors)
    elsewhere = math.isfinite(float(own))
    where = "they are another process's" if elsewhere else "their norm is out of float32's range"
    trouble = Trouble(state.step, lrs, math.nan, {}, f"{name!r} is the first of them" if name else where, ())
    return NotFinite(trouble, "weights are not finite after the update")


def _named_lrs(plan: Plan, t: int, state: TrainState) -> dict[str, float]:
    """What each group trains with in step t, counted from 0."""
    lrs = plan.lrs(t, state.live)
    return {group.name: lr for group, lr in zip(plan.groups, lrs, strict=True)}


def _evaluate_and_save(
    state: TrainState, plan: Plan, batches: Images, recipe: Recipe, stop: Callable[[], str | None]
) -> Generator[Event, None, Stopped | None]:
    """What follows a step: evaluation and epoch line where due, then the checkpoint. Returns why to stop.

    Weights that are not finite are refused where an uninterrupted run evaluates or saves, and nowhere else: a signal
    must not change which step is named, and when training goes back.
    """
    lrs = _named_lrs(plan, state.step - 1, state)
    reason, improved, evaluated = None, False, state.pending
    if state.pending:
        _refuse(_unsound(state, plan))
        share_buffers(state.evaluated, state.world)
        state.whole = True  # evaluation changes nothing, and can be made when the run goes on
        metrics = yield from evaluate(
            state.evaluated,
            batches.evaluate("val", asked=_alone(stop, state.world)),
            recipe.val_images,
            recipe.precision,
            stopping=lambda: stop() not in (None, SAVE_ONLY),
            world=state.world,
            flip=recipe.flip,
            seed=recipe.seed,
        )
        state.whole = False
        if metrics is not None:
            state.pending = False
            train_loss = state.losses.take("evaluation")
            improved = yield from _conclude(state, plan, recipe, metrics, train_loss)
            if recipe.early_stop is not None and state.early.stale >= recipe.early_stop.patience:
                reason = "early_stop"
    if state.step % plan.steps_per_epoch == 0 and not state.pending:
        yield EpochEnded(state.step, state.step // plan.steps_per_epoch, lrs, state.losses.take("epoch"))
    ended = state.step == recipe.total_steps
    asked = stop() if not ended or state.pending else None
    planned = reason is not None or improved or due(state.step, recipe.checkpoint_every, recipe)
    saved = False
    if asked or planned:
        wrong = None if evaluated else _unsound(state, plan)
        if planned:
            _refuse(wrong)
        saved = wrong is None
        if saved:
            state.losses.gather()
            yield SaveDue(state.step, improved and evaluated, planned)
    reason = reason if asked in (None, SAVE_ONLY) else asked
    return None if reason is None else Stopped(state.step, reason, saved)


def _refuse(wrong: NotFinite | None) -> None:
    if wrong is not None:
        raise wrong


def _conclude(
    state: TrainState, plan: Plan, recipe: Recipe, metrics: Metrics, train_loss: float
) -> Generator[Event, None, bool]:
    """What an evaluation decides: the best so far, patience, and ReduceLROnPlateau's LR."""
    values = {"val_loss": metrics.loss, "val_acc1": metrics.acc1, "val_acc5": metrics.acc5, "train_loss": train_loss}
    epoch = state.step / plan.steps_per_epoch
    improved = _is_better(state.best, recipe.best, values[recipe.best], 0.0, state.step)
    yield Evaluated(state.step, epoch, "val", metrics, train_loss, improved)
    if recipe.early_stop is not None:
        rule = recipe.early_stop
        _is_better(state.early, rule.monitor, values[rule.monitor], rule.min_delta, state.step)
    if (
        state.live is not None
        and recipe.plateau is not None
        and state.step > recipe.live_from
        and state.live.observe(values[recipe.plateau])
        and state.step < recipe.total_steps
    ):
        lowered = plan.lrs(state.step, state.live)
        yield Reduced(
            state.step, epoch, recipe.plateau, {group.name: lr for group, lr in zip(plan.groups, lowered, strict=True)}
        )
    return improved


def _is_better(best: Best, monitor: str, value: float, min_delta: float, step: int) -> bool:
    """Keep `value` if it is the best. A NaN never is, and counts as an evaluation without improvement."""
    sign = 1 if monitor_mode(monitor) == "max" else -1
    better = math.isfinite(value) and (best.value is None or sign * (value - best.value) > min_delta)
    if better:
        best.value, best.step, best.stale = value, step, 0
    else:
        best.stale += 1
    return better
