"""Phases in sequence: the expected curve is written as concatenated segments."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Adam, Optimizer
from torch.optim import lr_scheduler as torchs

from lrtrain.errors import ConfigError
from lrtrain.schedule.csv import kept_rows, write_csv
from lrtrain.schedule.curve import Curve
from lrtrain.schedule.layout import lasting
from tests.schedules import ADAM, THREE, live, momenta, plan_of, real_optimizer, rows

RAMP = "{name: LinearLR, for: 3ep, start_factor: 0.1}"


def ramp(optimizer: Optimizer) -> Any:
    return torchs.LinearLR(optimizer, 0.1, total_iters=150)


FOLLOWERS: dict[str, Callable[[Optimizer], Any]] = {
    "{name: CosineAnnealingLR, for: rest}": lambda o: torchs.CosineAnnealingLR(o, 350),
    "{name: PolynomialLR, for: rest, power: 2}": lambda o: torchs.PolynomialLR(o, 350, 2),
    "{name: StepLR, for: 7ep, step_size: 2ep}": lambda o: torchs.StepLR(o, 100),
    "{name: ExponentialLR, for: 70%, gamma: 0.99, every: step}": lambda o: torchs.ExponentialLR(o, 0.99),
    "{name: CosineAnnealingWarmRestarts, T_0: 100step}": lambda o: torchs.CosineAnnealingWarmRestarts(o, 100),
}


@pytest.mark.parametrize("follower", FOLLOWERS)
def test_a_warm_up_and_what_follows_are_two_segments_end_to_end(follower: str) -> None:
    plan = plan_of(f"[{RAMP}, {follower}]", lrs=THREE)
    after = FOLLOWERS[follower]
    assert rows(plan) == live(ramp, 150, lrs=THREE)[0] + live(after, 350)[0]
    assert [(span.start, span.stop) for span in plan.phases] == [(0, 150), (150, 500)]

    def sequential(optimizer: Optimizer) -> Any:
        return torchs.SequentialLR(optimizer, [ramp(optimizer), after(optimizer)], [150])

    assert rows(plan) == live(sequential, 500)[0]


def test_momentum_is_the_optimizers_own_in_phases_that_leave_it_alone() -> None:
    plan = plan_of(f"[{RAMP}, {{name: OneCycleLR, for: 4ep}}, {{name: fixed, for: rest}}]", lrs=THREE, optimizer=ADAM)
    cycle = live(lambda o: torchs.OneCycleLR(o, list(THREE), 200), 200, kind=Adam)
    own = [[0.9] * 3]
    assert momenta(plan) == own * 150 + cycle[1] + own * 150
    assert rows(plan) == live(ramp, 150)[0] + cycle[0] + [list(THREE)] * 150


def test_a_held_value_is_counted_from_the_phases_start() -> None:
    plan = plan_of("[{name: fixed, for: 70step}, {name: ExponentialLR, gamma: 0.5, every: epoch, for: rest}]")
    by_epoch = [0.1 * 0.5**tick for tick in range(9)]
    expected = [0.1] * 70 + list(itertools.chain.from_iterable([lr] * 50 for lr in by_epoch))
    assert [row[0] for row in rows(plan)] == expected[:500]


def test_warmup_is_short_for_a_linear_phase_with_torchs_defaults() -> None:
    short = plan_of("{name: CosineAnnealingLR, warmup: 3ep}", lrs=THREE)
    long = plan_of("[{name: LinearLR, for: 3ep}, {name: CosineAnnealingLR, for: rest}]", lrs=THREE)
    assert rows(short) == rows(long)
    assert rows(short)[0][0] == 0.1 * (1.0 / 3)


def test_no_schedule_is_the_fixed_schedule() -> None:
    assert rows(plan_of("", lrs=THREE)) == rows(plan_of("fixed", lrs=THREE)) == [list(THREE)] * 500


def test_ends_are_rounded_so_that_broken_epochs_still_fill_the_run() -> None:
    plan = plan_of("[{name: fixed, for: 3.5ep}, {name: fixed, for: 3.5ep}]", steps_per_epoch=25, length="epochs: 7")
    assert [(span.start, span.stop) for span in plan.phases] == [(0, 88), (88, 175)]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 40))
def test_phases_fill_the_run_without_gap_or_overlap(lengths: list[int], steps_per_epoch: int) -> None:
    phases = ", ".join(f"{{name: fixed, for: {length / 10}ep}}" for length in lengths)
    epochs = sum(lengths) // 10 + 1
    try:
        plan = plan_of(f"[{phases}, fixed]", steps_per_epoch=steps_per_epoch, length=f"epochs: {epochs}")
    except ConfigError as error:
        assert "no whole step" in str(error) or "nothing for the rest" in str(error)  # noqa: PT017
        return
    assert plan.phases[0].start == 0
    assert plan.phases[-1].stop == plan.total_steps == epochs * steps_per_epoch == len(plan.curve)
    assert all(before.stop == after.start for before, after in itertools.pairwise(plan.phases))


def test_lengths_that_do_not_fill_the_run_are_told_in_both_units() -> None:
    with pytest.raises(
        ConfigError,
        match=r"2 epochs \(100 steps\) \+ 7.4 epochs \(370 steps\) = 9.4 epochs \(470 steps\), "
        r"but the run has 10 epochs \(500 steps\)",
    ):
        plan_of("[{name: fixed, for: 2ep}, {name: fixed, for: 370step}]")


def test_groups_that_share_everything_share_a_column() -> None:
    plan = plan_of("OneCycleLR", lrs=(0.1, 0.01, 0.1, 0.1), frozen_steps=(0, 0, 0, 50))
    assert plan.curve.columns == (0, 1, 0, 2)
    assert plan.curve.lr.shape == (500, 3)
    assert plan.curve.of_group(2).tolist() == plan.curve.of_group(0).tolist()


def test_the_curve_cannot_be_changed() -> None:
    curve = plan_of("OneCycleLR").curve
    with pytest.raises(ValueError, match="read-only"):
        curve.lr[0, 0] = 1.0
    assert curve.momentum is not None
    with pytest.raises(ValueError, match="read-only"):
        curve.momentum[0, 0] = 1.0


def test_curves_add_end_to_end_and_refuse_what_is_no_lr() -> None:
    one, two = Curve(np.full((2, 1), 0.1), (0, 0)), Curve(np.full((3, 1), 0.2), (0, 0))
    assert (one + two).lr[:, 0].tolist() == [0.1, 0.1, 0.2, 0.2, 0.2]
    with pytest.raises(ValueError, match="same groups"):
        one + Curve(np.full((3, 1), 0.2), (0,))
    with pytest.raises(ValueError, match="the LR would be -1 at step 1"):
        Curve(np.array([[0.1], [-1.0]]), (0,))
    with pytest.raises(ValueError, match=r"the LR would be 1e\+39 at step 0; it must be 0 to 3\.4e\+38"):
        Curve(np.array([[1e39]]), (0,))
    with pytest.raises(ValueError, match="the momentum would be nan at step 0"):
        Curve(np.array([[0.1]]), (0,), np.array([[np.nan]]))


def test_write_puts_the_row_into_floats_tensors_and_betas() -> None:
    plan = plan_of("OneCycleLR", lrs=(0.1, 0.01), optimizer=ADAM)
    optimizer = real_optimizer((0.1, 0.01), Adam)
    tensor = optimizer.param_groups[1]["lr"] = torch.tensor(1.0, dtype=torch.float64)
    plan.write(optimizer, 77, None)
    assert optimizer.param_groups[0]["lr"] == rows(plan)[77][0]
    assert tensor is optimizer.param_groups[1]["lr"]
    assert float(tensor) == rows(plan)[77][1]
    assert [group["betas"] for group in optimizer.param_groups] == [(momenta(plan)[77][0], 0.999)] * 2
    assert plan.lrs(77, None) == tuple(rows(plan)[77])


def test_the_csv_reads_back_exactly_and_row_k_is_the_kth_step() -> None:
    plan = plan_of("OneCycleLR", lrs=THREE)
    file = io.StringIO()
    write_csv(plan, file)
    header, *lines = list(csv.reader(io.StringIO(file.getvalue())))
    assert header == ["step", "epoch", "lr.a", "lr.b", "lr.c", "momentum.a", "momentum.b", "momentum.c"]
    assert [int(line[0]) for line in lines] == list(range(1, 501))
    assert [float(line[1]) for line in lines] == [k / 50 for k in range(1, 501)]
    assert [[float(x) for x in line[2:5]] for line in lines] == rows(plan)
    assert [[float(x) for x in line[5:]] for line in lines] == momenta(plan)


def test_a_groups_name_drives_no_terminal_that_the_csv_is_shown_in() -> None:
    plan = plan_of("fixed", lrs=(0.1,))
    plan = replace(plan, groups=(replace(plan.groups[0], name="a\x1b]0;b\a\u202ec"),))
    write_csv(plan, file := io.StringIO())
    assert file.getvalue().splitlines()[0] == r"step,epoch,lr.a\x1b]0;b\x07\u202ec"


def test_a_thinned_csv_keeps_ends_and_corners() -> None:
    plan = plan_of(f"[{RAMP}, {{name: MultiStepLR, milestones: [101step, 253step], for: rest}}]")
    file = io.StringIO()
    write_csv(plan, file, max_rows=40)
    steps = [int(line.split(",")[0]) for line in file.getvalue().splitlines()[1:]]
    assert len(steps) <= 40
    assert {1, 151, 251, 252, 403, 404, 500} <= set(steps)
    smooth = kept_rows(np.cos(np.linspace(0, 3, 1000))[:, None], 50)
    assert (len(smooth), int(np.diff(smooth).max())) == (50, 21)


@pytest.mark.parametrize(
    ("schedule", "note"),
    [
        ("{name: CosineAnnealingLR, T_max: 12ep}", "floor never reached: T_max is 12 epochs (600 steps)"),
        ("{name: CosineAnnealingLR, T_max: 4ep}", "LR rises again after epoch 4"),
        ("{name: LinearLR, total_iters: 600step}", "ramp cut off at epoch 10"),
        ("[{name: LinearLR, for: 55step, total_iters: 3ep}, fixed]", "ramp cut off at step 55"),
        ("{name: PolynomialLR, total_iters: 11ep}", "floor never reached: cut off at epoch 10"),
        ("{name: StepLR, step_size: 10ep}", "the LR never changes"),
        (
            "{name: CosineAnnealingWarmRestarts, T_0: 4ep}",
            "the last cycle is cut off at epoch 10, after 2 epochs (100 steps)",
        ),
        ("{name: CyclicLR, base_lr: 0.01, step_size_up: 2ep}", "the last cycle is cut off at epoch 10"),
        ("{name: OneCycleLR, max_lr: 0.5}", "max_lr 0.5 takes the place of the LR 0.1 of group a"),
        ("OneCycleLR", "momentum (or beta1) cycles between 0.85 and 0.95 in place of the optimizer's 0.9"),
        ("{name: OneCycleLR, every: epoch, pct_start: 0.05}", "the rise is shorter than one tick"),
        ("{name: OneCycleLR, three_phase: true, pct_start: 0.6}", "floor never reached"),
        ("{name: ReduceLROnPlateau, min_lr: 0.2}", "the LR 0.1 of group a is never reduced"),
        (
            "{name: ChainedScheduler, every: step, schedulers: [ConstantLR, "
            "{name: CyclicLR, base_lr: 0.1, step_size_up: 250}]}",
            "it sets the LR outright",
        ),
    ],
)
def test_the_plan_says_what_is_easily_overlooked(schedule: str, note: str) -> None:
    assert any(note in said for said in plan_of(schedule).notes), plan_of(schedule).notes


def test_a_shared_floor_and_a_frozen_group_are_said() -> None:
    plan = plan_of("{name: CosineAnnealingLR, eta_min: 0.001}", lrs=(0.1, 0.01), frozen_steps=(0, 75))
    assert plan.notes == (
        "CosineAnnealingLR: eta_min 0.001 is a shared floor: groups of different LR all end there",
        "group b is frozen (LR 0) until step 75 (epoch 1.5)",
    )


def test_phases_are_told_in_words() -> None:
    plan = plan_of(
        "[{name: LinearLR, for: 5ep, start_factor: 0.01}, {name: OneCycleLR, for: rest}]",
        steps_per_epoch=391,
        length="epochs: 30",
    )
    assert [span.words for span in plan.phases] == [
        "LinearLR  0.001 -> 0.0999 over 5 epochs (1,955 steps)",
        "OneCycleLR  0.004 -> 0.1 -> 4e-07 over 25 epochs (9,775 steps)",
    ]
    assert (lasting(1, 50), lasting(50, 50)) == ("0.02 epochs (1 step)", "1 epoch (50 steps)")
