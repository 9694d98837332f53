"""The training loop: what a step does follows from (config, step) and from nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from lrtrain.build import Job, build
from lrtrain.commands import smoke
from lrtrain.commands.evaluate import _exhaust
from lrtrain.config import yaml
from lrtrain.config.load import resolve
from lrtrain.data.batches import Batch
from lrtrain.engine import average, graph
from lrtrain.engine.evaluate import evaluate
from lrtrain.engine.events import EpochEnded, Evaluated, Event, Logged, SaveDue, Stepped, Stopped
from lrtrain.engine.mix import make_mix
from lrtrain.engine.state import Best
from lrtrain.engine.train import _is_better, optimizer_step, train
from lrtrain.errors import ConfigError, Diverged
from lrtrain.range_test.sweep import sweep, sweep_lrs

BASE: dict[str, Any] = {
    "seed": 2,
    "steps": 12,
    "batch_size": 96,
    "model": {"name": "small_cnn", "width": 4},
    "dataset": "digits",
    "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
    "precision": "fp32",
    "log_every": "1step",
    "eval_every": "100%",
    "checkpoint": {"every": "100%"},
}


def job(**changes: Any) -> Job:
    text = yaml.dump({**BASE, **changes})
    return build(resolve(yaml.parse(text, "test.yaml")))


def run(made: Job, stop: Callable[[], str | None] = lambda: None, **recipe: Any) -> list[Event]:
    return list(train(made.state, made.plan, made.batches, dataclasses.replace(made.recipe, **recipe), stop))


def weights(made: Job) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.state.model.state_dict().items()}


def test_events_come_in_order() -> None:
    events = run(job(steps=16, eval_every="8step"))
    names = [
        type(event).__name__
        for event in events
        if isinstance(event, Stepped | Logged | Evaluated | EpochEnded | SaveDue)
    ]
    step = ["Stepped", "Logged"]
    evaluated = ["Evaluated", "SaveDue"]
    assert names == step * 8 + evaluated + step * 7 + ["EpochEnded"] + step + evaluated
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, 17))


@pytest.mark.parametrize("net", ["with_dropout", "drawing"])
def test_a_step_does_not_depend_on_what_was_drawn_before(net: str) -> None:
    changes = {"model": {"name": f"tests.nets:{net}"}, "mixup": 0.4, "ema": 0.9}
    one, other = job(**changes), job(**changes)
    run(one)
    for _ in train(other.state, other.plan, other.batches, other.recipe):
        torch.rand(17)
        np.random.rand(3)
        random.random()
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_no_image_but_those_of_training_changes_a_network() -> None:
    made = job(model="tests.nets:act_norm")
    assert not made.state.model.started
    assert bool((made.state.model.scale == 1).all())  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigError, match=r"must answer with logits.*it gave tuple for two while it trains"):
        job(model={"name": "tests.nets:act_norm", "lock": True})


def test_a_network_that_cannot_be_copied_has_no_average() -> None:
    assert job(model="tests.nets:uncopied").state.ema is None
    with pytest.raises(ConfigError, match="ema needs a copy of the model, and none can be made: cannot pickle"):
        job(model="tests.nets:uncopied", ema=0.9)


def test_of_equal_logits_the_first_is_the_answer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    nn.init.zeros_(model[1].bias)  # type: ignore[arg-type]
    batch = Batch(torch.zeros(40, 1, 2, 2), torch.zeros(40, dtype=torch.int64), np.arange(40), 40)
    with tqdm() as bar:
        found = _exhaust(evaluate(model, [batch], 40, "fp32"), bar)
    assert (found.acc1, found.acc5) == (1, 1)


@pytest.mark.parametrize("ends", ["given up", "fault", "whole"])
def test_an_evaluation_that_is_given_up_leaves_the_buffers_as_they_were(ends: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].train = Mock()  # own code may count in evaluation, too
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = Batch(torch.randn(8, 1, 2, 2), torch.zeros(8, dtype=torch.long), np.arange(8), 8)

    def batches() -> Iterator[Batch]:
        yield batch
        if ends == "fault":
            raise OSError("cut")
        yield batch

    asked = iter([None, "SIGTERM" if ends == "given up" else None, None])
    with pytest.raises(OSError, match="cut") if ends == "fault" else nullcontext():
        list(evaluate(model, batches(), 16, "fp32", stopping=lambda: next(asked)))
    same = [torch.equal(buffer, before[name]) for name, buffer in model.named_buffers()]
    assert all(same) == (ends != "whole")


def test_an_answer_that_is_nan_is_wrong() -> None:
    images = torch.zeros(40, 1, 2, 2)
    images[:10] = torch.nan
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    nn.init.zeros_(model[1].bias)  # type: ignore[arg-type]
    batch = Batch(images, torch.zeros(40, dtype=torch.int64), np.arange(40), 40)
    with tqdm() as bar:
        found = _exhaust(evaluate(model, [batch], 40, "fp32"), bar)
    assert (found.acc1, found.acc5) == (0.75, 0.75)
    assert math.isnan(found.loss)


def test_the_lr_of_every_step_is_the_planned_one() -> None:
    made = job(schedule={"name": "OneCycleLR"})
    lrs = [event.lr["default"] for event in run(made) if isinstance(event, Logged)]
    assert lrs == made.plan.curve.lr[:, 0].tolist()
    assert made.state.optimizer.param_groups[0]["momentum"] == made.plan.curve.momentum[-1, 0]  # type: ignore[index]


def test_asgd_trains_with_the_lr_of_the_step_itself() -> None:
    schedule = {"name": "LambdaLR", "lr_lambda": "1 if t < 6 else 0", "every": "step"}
    made = job(optimizer={"name": "ASGD", "lr": 0.05}, schedule=schedule)
    seen = []
    for event in train(made.state, made.plan, made.batches, made.recipe):
        if isinstance(event, Stepped):
            seen.append(made.state.model.get_parameter("fc.weight").detach().clone())
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise(seen)]
    assert moved == [True] * 5 + [False] * 6


class _Kept:
    """Stands for a captured graph where there is no GPU: the same pass on tensors and gradients of its own."""

    def __init__(self, one_pass: Any, parameters: Any, images: torch.Tensor, labels: torch.Tensor):
        self.one_pass, self.inputs = one_pass, (images.clone(), labels.clone())

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> Any:
        for own, given in zip(self.inputs, (images, labels), strict=True):
            own.copy_(given)
        return self.one_pass(*self.inputs)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_norm": 0.5, "label_smoothing": 0.1, "ema": 0.9},
        {"mixup": 0.4, "model": {"name": "tests.nets:with_dropout"}},
        {"optimizer": {"name": "SGD", "lr": 0.05, "groups": [{"params": "^fc", "frozen_until": "6step"}]}},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_a_captured_pass_makes_the_steps_that_others_make(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[_Kept] = []

    def captured(*given: Any) -> _Kept:
        assert one.state.step >= one.recipe.thawed_from + graph.EAGER
        made.append(_Kept(*given))
        return made[-1]

    monkeypatch.setattr(graph, "Captured", captured)
    changes = {"steps": 40, "batch_size": 200, "log_every": "1step", **changes}
    one, other = job(**changes), job(**changes)
    one.state.graphs = graph.Graphs(list(one.state.model.parameters()), spare=False)
    losses = [[event.loss for event in run(it) if isinstance(event, Logged)] for it in (one, other)]
    assert losses[0] == losses[1]
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())
    # Not for the smaller batch at an epoch's end.
    assert [len(captured.inputs[0]) for captured in made] == [200]


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"precision": "fp16"}])
def test_a_graph_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cuda_graph: true cannot be with device cpu"):
        job(cuda_graph=True, **changes)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch() -> None:
    net = {"name": "tests.nets:linear"}
    whole, parts = job(model=net), job(model=net, accumulate=3)
    losses = [[event.loss for event in run(made) if isinstance(event, Logged)] for made in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[1]) == 12


def test_a_skipped_fp16_step_uses_up_its_row_of_the_curve() -> None:
    """Trap T12: where a scaler skips a step, the LR of the next is still that of its number."""
    made = job(precision="fp16", schedule={"name": "ExponentialLR", "gamma": 0.9, "every": "step"})
    assert made.state.scaler is not None
    scale = made.state.scaler.get_scale()
    batches = list(made.batches.train(0, 3))
    before = weights(made)
    hook = made.state.model.fc.weight.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[union-attr, operator]
    made.plan.write(made.state.optimizer, 0, None)
    optimizer_step(made.state, batches[0], made.recipe)
    hook.remove()
    made.state.step += 1
    trained = [name for name, _ in made.state.model.named_parameters()]
    assert all(torch.equal(weights(made)[name], before[name]) for name in trained)
    assert made.state.scaler.get_scale() < scale
    lrs = [event.lr["default"] for event in run(made) if isinstance(event, Logged)]
    assert lrs == made.plan.curve.lr[1:, 0].tolist()


def test_a_frozen_group_is_untouched_until_its_step_and_trains_after_it() -> None:
    made = job(
        optimizer={
            "name": "SGD",
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.1,
            "groups": [{"params": "^conv1", "frozen_until": "6step"}],
        }
    )
    seen = []
    start = made.state.model.state_dict()["conv1.weight"].clone()
    for event in train(made.state, made.plan, made.batches, made.recipe):
        if isinstance(event, Logged):
            seen.append((event.lr["^conv1"], torch.equal(made.state.model.state_dict()["conv1.weight"], start)))
    assert [lr for lr, _ in seen] == [0.0] * 6 + [0.1] * 6
    assert [same for _, same in seen] == [True] * 6 + [False] * 6


def test_no_parameter_group_is_ever_added() -> None:
    """Trap T16: unfreezing must not add groups, which schedulers cannot follow."""
    made = job(optimizer={"name": "SGD", "lr": 0.1, "groups": [{"params": "^conv1", "frozen_until": "6step"}]})
    counts = {len(made.state.optimizer.param_groups) for _ in train(made.state, made.plan, made.batches, made.recipe)}
    assert counts == {2}


def test_gradients_are_clipped_to_the_norm() -> None:
    made = job(clip_norm=0.01, optimizer={"name": "SGD", "lr": 1.0}, steps=1)
    before = weights(made)
    run(made)
    moved = (
        sum(float((weights(made)[name] - before[name]).pow(2).sum()) for name, _ in made.state.model.named_parameters())
        ** 0.5
    )
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_the_averaged_weights_are_evaluated_where_ema_is_on() -> None:
    made = job(ema=0.999, optimizer={"name": "SGD", "lr": 0.2})
    run(made)
    assert made.state.evaluated is not made.state.model
    assert not torch.equal(made.state.evaluated.fc.weight, made.state.model.fc.weight)  # type: ignore[union-attr, arg-type]


def test_the_average_of_whole_numbers_that_stay_is_those_numbers() -> None:
    module = nn.BatchNorm1d(4)
    module.register_buffer("order", torch.arange(300))
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9999), use_buffers=True)  # type: ignore[no-untyped-call]
    for _ in range(3):
        module(torch.randn(8, 4))
        average.update(averaged, module)
    assert averaged.module.order.equal(torch.arange(300))  # type: ignore[operator, union-attr]
    assert int(averaged.module.num_batches_tracked) == 3  # type: ignore[arg-type]
    assert not averaged.module.running_mean.equal(module.running_mean)  # type: ignore[operator, union-attr]


def test_a_parameter_may_get_its_first_gradient_later_than_others() -> None:
    """Fused SGD cannot take it together with those that have momentum already."""
    found = []
    for fused in (True, False):
        groups = [{"params": "head", "momentum": 0}]
        optimizer = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "dampening": 0.5, "fused": fused, "groups": groups}
        made = job(model="tests.nets:late_branch", optimizer=optimizer)
        run(made)
        found.append(weights(made))
    assert len(made.state.optimizer.state) == 4
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], rtol=1e-4, atol=1e-6), name


def test_early_stopping_counts_evaluations_without_improvement() -> None:
    made = job(
        steps=40,
        eval_every="2step",
        optimizer={"name": "SGD", "lr": 1e-9},
        model={"name": "tests.nets:linear"},
        early_stop={"monitor": "val_acc1", "patience": 3},
    )
    events = run(made)
    assert events[-1] == Stopped(8, "early_stop")
    assert isinstance(events[-2], SaveDue)


@pytest.mark.parametrize("monitor", ["val_loss", "val_acc1"])
def test_nan_is_never_the_best(monitor: str) -> None:
    best = Best()
    assert not _is_better(best, monitor, float("nan"), 0.0, 1)
    assert _is_better(best, monitor, 0.5, 0.0, 2)
    assert not _is_better(best, monitor, float("nan"), 0.0, 3)
    assert best == Best(0.5, 2, 1)


def test_the_best_of_a_loss_is_the_least_and_of_an_accuracy_the_most() -> None:
    loss, accuracy = Best(), Best()
    for step, value in enumerate((0.5, 0.3, 0.4)):
        _is_better(loss, "val_loss", value, 0.0, step)
        _is_better(accuracy, "val_acc1", value, 0.0, step)
    assert (loss.value, accuracy.value) == (0.3, 0.5)


def test_a_stop_during_evaluation_leaves_it_to_be_made() -> None:
    whole, cut = job(eval_every="6step"), job(eval_every="6step")
    expected = run(whole)
    asked = iter([None] * 7 + ["SIGTERM"] * 100)
    first = run(cut, lambda: next(asked))
    assert isinstance(first[-1], Stopped)
    assert cut.state.pending
    rest = run(cut)
    wanted = [event for event in expected if isinstance(event, Evaluated | Logged)]
    assert [event for event in (*first, *rest) if isinstance(event, Evaluated | Logged)] == wanted


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(Diverged, match=r"lower optimizer\.lr"):
        run(job(model={"name": "tests.nets:linear"}, optimizer={"name": "SGD", "lr": 900.0}, steps=60))


def test_mixing_follows_from_its_key_and_leaves_the_random_state_alone() -> None:
    mix = make_mix(0.4, 1.0, 5)
    assert mix is not None
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 5
    before = torch.get_rng_state()
    draws = [mix(x, y, key) for key in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][0], draws[2][0])
    assert torch.allclose(draws[0][1].sum(1), torch.ones(16))


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "SGD", "lr": 0.1, "momentum": 0.9},
        {"name": "AdamW", "lr": 0.001},
        {"name": "SGD", "lr": 0.1, "groups": [{"params": "^fc", "lr": 0.02}, {"params": "conv1", "lr_scale": 3.0}]},
    ],
)
def test_a_range_test_leaves_model_optimizer_and_random_state_untouched(optimizer: dict[str, Any]) -> None:
    tested, alone = job(optimizer=optimizer, ema=0.9), job(optimizer=optimizer, ema=0.9)
    run(tested, total_steps=4)
    run(alone, total_steps=4)
    result = sweep(tested, sweep_lrs(1e-4, 1.0, 30, "exp"))
    assert result.state_before == result.state_after
    run(tested)
    run(alone)
    assert all(torch.equal(tensor, weights(alone)[name]) for name, tensor in weights(tested).items())
    assert result.lrs[0] == 1e-4
    assert len(result.losses) == len(result.lrs)


def test_a_range_test_stops_when_the_loss_is_no_number() -> None:
    made = job(model={"name": "tests.nets:linear"})
    result = sweep(made, sweep_lrs(1.0, 1000.0, 200, "exp"))
    assert result.stopped is not None
    assert len(result.losses) < 200
    assert result.state_before == result.state_after


def test_a_smoke_test_leaves_each_part_of_a_batch_two_images() -> None:
    sizes = [len(batch.labels) for batch in smoke._Few(job(accumulate=8)).train(0, 2)]
    assert sizes == [16, 16]


def test_a_sweep_reaches_both_ends() -> None:
    assert sweep_lrs(1e-7, 10, 100, "exp")[[0, -1]] == pytest.approx([1e-7, 10], rel=1e-12)
    assert sweep_lrs(1, 3, 5, "linear").tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_range_test_keeps_the_ratio_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(
        optimizer={
            "name": "SGD",
            "lr": 0.1,
            "groups": [{"params": "^fc", "lr": 0.02}, {"params": "conv1", "lr_scale": 3.0}],
        }
    )
    seen: list[dict[str, float]] = []
    real = train

    def spied(*args: Any) -> Any:
        for event in real(*args):
            if isinstance(event, Logged):
                seen.append(event.lr)
            yield event

    monkeypatch.setattr("lrtrain.range_test.sweep.train", spied)
    sweep(made, sweep_lrs(1e-3, 1e-1, 20, "exp"))
    for lr in seen:
        assert lr["^fc"] / lr["default"] == pytest.approx(0.2)
        assert lr["conv1"] / lr["default"] == pytest.approx(3.0)


def test_a_range_test_trains_what_is_frozen_for_a_time_and_not_what_never_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lrtrain.range_test.sweep._copy", lambda state: state)  # to see what it trains
    for until, trains in (("6step", True), ("100%", False), ("99ep", False)):
        groups = [{"params": "^conv1", "frozen_until": until}]
        made = job(optimizer={"name": "SGD", "lr": 0.1, "groups": groups})
        sweep(made, sweep_lrs(1e-3, 1e-1, 20, "exp"))
        assert made.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 if trains else 0.0)
        moved = weights(made)["conv1.weight"]
        assert torch.equal(moved, weights(job())["conv1.weight"]) == (not trains)


GOLDEN = Path(__file__).with_name("golden_curves.json")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_has_its_golden_curve(path: Path) -> None:
    """LR of the first group at eleven points of the run, to the last bit: a change of torch's formulas would show."""
    from tests.golden import golden

    assert golden(path) == json.loads(GOLDEN.read_text())[path.stem]
