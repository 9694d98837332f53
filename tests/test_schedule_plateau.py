"""The live tail against torch's own ReduceLROnPlateau."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torchs

from lrtrain.errors import CheckpointError
from tests.schedules import THREE, live, plan_of, real_optimizer, rows

WARM = (
    "{{name: ReduceLROnPlateau, warmup: 2ep, factor: {factor}, patience: {patience}, cooldown: {cooldown}, "
    "min_lr: {min_lr}}}"
)
METRICS = st.lists(st.floats(0, 10) | st.just(float("nan")), min_size=1, max_size=25)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    metrics=METRICS,
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    cut=st.integers(0, 25),
    min_lr=st.sampled_from(["0.001", "[0.01, 0.0, 0.001]"]),
)
def test_warm_up_then_plateau_is_torchs_plateau_across_a_checkpoint(
    metrics: list[float], patience: int, cooldown: int, cut: int, min_lr: str
) -> None:
    plan = plan_of(WARM.format(factor=0.3, patience=patience, cooldown=cooldown, min_lr=min_lr), lrs=THREE)
    optimizer = real_optimizer(THREE)
    own = torchs.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=patience, cooldown=cooldown, min_lr=json.loads(min_lr)
    )
    tail = plan.start_live()
    for i, metric in enumerate(metrics):
        if i == cut:
            assert tail is not None
            tail = plan.start_live(json.loads(json.dumps(tail.state(), allow_nan=False)))
        assert tail is not None
        before = [group["lr"] for group in optimizer.param_groups]
        own.step(metric)
        after = [group["lr"] for group in optimizer.param_groups]
        assert tail.observe(metric) == (after != before)
        assert list(tail.lrs) == after
        assert list(plan.lrs(300, tail)) == after


def test_the_warm_up_before_it_is_in_the_curve_and_the_tail_holds_the_lr_without_reductions() -> None:
    plan = plan_of("{name: ReduceLROnPlateau, warmup: 2ep}", lrs=THREE)
    assert rows(plan) == live(lambda o: torchs.LinearLR(o, total_iters=100), 100)[0] + [list(THREE)] * 400
    assert plan.live_from == 100
    assert [span.name for span in plan.phases] == ["LinearLR", "ReduceLROnPlateau"]
    assert plan.phases[1].words == (
        "ReduceLROnPlateau  0.1, times 0.1 when val_loss has not improved in more than "
        "10 evaluations, for 8 epochs (400 steps)"
    )


def test_a_reduction_applies_from_the_tail_on_and_never_to_a_frozen_group() -> None:
    plan = plan_of("{name: ReduceLROnPlateau, warmup: 2ep, patience: 0}", lrs=(0.1, 0.01), frozen_steps=(0, 200))
    tail = plan.start_live()
    assert tail is not None
    assert [tail.observe(1.0), tail.observe(1.0)] == [False, True]
    assert plan.lrs(99, tail) == (*rows(plan)[99],)
    assert plan.lrs(100, tail) == pytest.approx((0.01, 0.0))
    assert plan.lrs(200, tail) == pytest.approx((0.01, 0.001))
    optimizer = real_optimizer((0.1, 0.01))
    plan.write(optimizer, 200, tail)
    assert tuple(group["lr"] for group in optimizer.param_groups) == plan.lrs(200, tail)


def test_each_time_training_goes_back_the_tail_is_lowered_from_there_as_the_curve_is() -> None:
    plan = plan_of("{name: ReduceLROnPlateau, warmup: 2ep, patience: 0}").lowered(300, 0.5).lowered(200, 0.5)
    tail = plan.start_live()
    at = (100, 199, 200, 299, 300, 499)
    assert [plan.lrs(t, tail) for t in at] == [(0.1,), (0.1,), (0.05,), (0.05,), (0.025,), (0.025,)]
    assert [plan.lrs(t, tail) for t in at] == [plan.lrs(t, None) for t in at]


def test_other_schedules_have_no_live_tail_and_need_no_state() -> None:
    plan = plan_of("OneCycleLR")
    assert plan.live_from is None
    assert plan.start_live() is None
    assert plan.start_live({}) is None


def test_a_state_that_does_not_fit_is_refused() -> None:
    plan = plan_of("ReduceLROnPlateau", lrs=(0.1, 0.01))
    state = plan_of("ReduceLROnPlateau").start_live()
    assert state is not None
    with pytest.raises(CheckpointError, match=r"2 parameter groups needs best.*lr.1"):
        plan.start_live(state.state())
    with pytest.raises(CheckpointError, match="no such phase"):
        plan_of("OneCycleLR").start_live(state.state())
