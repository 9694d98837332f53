"""torch's traps T1 to T16: each cannot happen here, or is refused with an error that explains it."""

from __future__ import annotations

import json

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, OneCycleLR, SequentialLR

from lrtrain.errors import ConfigError
from tests.schedules import ADAM, live, momenta, plan_of, real_optimizer, rows


def refused(*words: str) -> pytest.RaisesExc:
    return pytest.raises(ConfigError, match="(?s)" + ".*".join(words))


def test_t1_building_a_schedule_does_not_overwrite_a_resumed_lr() -> None:
    """torch's constructor writes the LR of step 0; a plan never touches the optimizer, and writes by step."""
    optimizer = real_optimizer()
    resumed = optimizer.state_dict()
    resumed["param_groups"][0]["lr"] = 0.0123
    optimizer.load_state_dict(resumed)
    plan = plan_of("CosineAnnealingLR", lrs=(0.1, 0.01, 0.003))
    assert optimizer.param_groups[0]["lr"] == 0.0123
    plan.write(optimizer, 123, None)
    assert [group["lr"] for group in optimizer.param_groups] == rows(plan)[123]


def test_t2_warm_up_before_plateau_is_not_rejected_and_plateau_before_others_is() -> None:
    assert plan_of("{name: ReduceLROnPlateau, warmup: 2ep}").live_from == 100
    with refused("ReduceLROnPlateau must be the last phase", "before it"):
        plan_of("[{name: ReduceLROnPlateau, for: 5ep}, {name: StepLR, step_size: 1ep}]")
    with refused("ReduceLROnPlateau cannot stand in a ChainedScheduler", "metric"):
        plan_of("{name: ChainedScheduler, every: step, schedulers: [{name: ReduceLROnPlateau}]}")


def test_t3_a_composite_inside_a_composite_does_not_fail_at_its_milestone() -> None:
    with refused("SequentialLR is written as a list of phases", "LinearLR, for: 5ep", "CosineAnnealingLR, for: rest"):
        plan_of("{name: SequentialLR, milestones: [5ep], schedulers: [LinearLR, {name: CosineAnnealingLR}]}")
    with refused("ChainedScheduler cannot stand in a ChainedScheduler: chains do not nest"):
        plan_of("{name: ChainedScheduler, every: step, schedulers: [{name: ChainedScheduler, schedulers: [StepLR]}]}")
    chain = "{name: ChainedScheduler, for: rest, every: step, schedulers: [{name: ExponentialLR, gamma: 0.5}]}"
    assert rows(plan_of(f"[{{name: LinearLR, for: 1ep}}, {chain}]"), 50, 53) == [[0.1], [0.05], [0.025]]


def test_t4_a_phase_of_no_length_does_not_shift_the_others() -> None:
    with refused("a phase lasts longer than zero; got 0ep"):
        plan_of("[{name: LinearLR, for: 0ep}, {name: CosineAnnealingLR, for: rest}]")
    with refused("LinearLR lasts 0.001ep, which is no whole step"):
        plan_of("[{name: LinearLR, for: 0.001ep}, {name: CosineAnnealingLR, for: rest}]")


def test_t5_a_scalar_max_lr_does_not_flatten_group_ratios() -> None:
    for name in ("OneCycleLR", "CyclicLR"):
        floor = ", base_lr: 0.001, every: step" if name == "CyclicLR" else ""
        plan = plan_of(f"{{name: {name}{floor}}}", lrs=(0.1, 0.02))
        assert plan.curve.lr.max(axis=0).tolist() == pytest.approx(
            [0.1, 0.02] if name == "OneCycleLR" else [0.001 + 0.099 * 499 / 2000, 0.001 + 0.019 * 499 / 2000], rel=1e-4
        )
        with refused("max_lr: 0.1 would give every parameter group the same LR", "a 0.1, b 0.02", "leave max_lr out"):
            plan_of(f"{{name: {name}{floor}, max_lr: 0.1}}", lrs=(0.1, 0.02))


def test_t5_the_group_ratio_holds_at_every_step_of_one_cycle() -> None:
    table = plan_of("OneCycleLR", lrs=(0.1, 0.025)).curve.lr
    assert (table[:, 0] / table[:, 1]).tolist() == pytest.approx([4.0] * 500, rel=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "momentum", "why"),
    [
        ("{name: SGD, lr: 0.1}", 0.0, "SGD has momentum 0"),
        ("{name: RMSprop, lr: 0.1}", 0.0, "RMSprop has momentum 0"),
        ("{name: Adagrad, lr: 0.1}", None, "Adagrad has neither momentum nor betas"),
    ],
)
def test_t6_momentum_does_not_appear_where_the_optimizer_has_none(
    optimizer: str, momentum: float | None, why: str
) -> None:
    with refused(f"OneCycleLR cycles the momentum, but {why}", "cycle_momentum: false"):
        plan_of("OneCycleLR", optimizer=optimizer, momentum=momentum)
    assert (
        plan_of("{name: OneCycleLR, cycle_momentum: false}", optimizer=optimizer, momentum=momentum).curve.momentum
        is None
    )


def test_t6_momentum_of_a_group_is_seen_even_where_the_optimizers_signature_says_nothing() -> None:
    with refused("the optimizer's group a has momentum 0"):
        plan_of("OneCycleLR", optimizer=ADAM, momentum=0.0)


def test_t6_momentum_that_an_import_path_cycles_is_seen_in_what_it_sets() -> None:
    schedule = '{{name: "torch.optim.lr_scheduler:OneCycleLR", max_lr: 0.1, total_steps: 500, every: step{}}}'
    with refused("OneCycleLR cycles the momentum, but the optimizer's group a has momentum 0", "cycle_momentum: false"):
        plan_of(schedule.format(""), momentum=0.0)
    assert plan_of(schedule.format(""), momentum=0.9).curve.momentum is not None
    assert plan_of(schedule.format(", cycle_momentum: false"), momentum=0.0).curve.momentum is None


def test_t7_one_cycle_does_not_run_past_its_end() -> None:
    with refused("OneCycleLR's total_steps is 10 epochs", "its phase lasts 8 epochs", "must be equal"):
        plan_of("[{name: LinearLR, for: 2ep}, {name: OneCycleLR, total_steps: 10ep, for: rest}]")
    plan = plan_of("[{name: LinearLR, for: 2ep}, {name: OneCycleLR, for: rest}]")
    assert plan.curve.lr[-1, 0] == plan.curve.lr.min() == pytest.approx(0.1 / 25 / 1e4)


def test_t8_one_cycle_whose_rise_is_one_tick_does_not_divide_by_zero() -> None:
    for three_phase in ("false", "true"):
        with refused("pct_start: 0.1 of 10 ticks is a rise from tick 0 to tick 0", "pct_start: 0.2"):
            plan_of(f"{{name: OneCycleLR, every: epoch, pct_start: 0.1, three_phase: {three_phase}}}")
    with refused("pct_start must be greater than 0 and at most 1; got 0"):
        plan_of("{name: OneCycleLR, pct_start: 0}")
    assert len(plan_of("{name: OneCycleLR, pct_start: 1}").curve) == 500


def test_t9_a_cosine_that_climbs_again_is_not_a_surprise() -> None:
    assert plan_of("{name: CosineAnnealingLR, T_max: 8ep}").notes == (
        "CosineAnnealingLR: LR rises again after epoch 8, where T_max ends",
    )
    assert plan_of("CosineAnnealingLR").notes == ()
    with refused("T_max: 8 has no unit", "write 8ep or 8step"):
        plan_of("{name: CosineAnnealingLR, T_max: 8}")
    with refused("T_max must be longer than zero"):
        plan_of("{name: CosineAnnealingLR, T_max: 0ep}")


@pytest.mark.parametrize(
    "schedule",
    [
        "{name: CosineAnnealingLR, eta_min: 0.05}",
        "{name: CosineAnnealingWarmRestarts, T_0: 2ep, eta_min: 0.05}",
        "{name: CyclicLR, base_lr: 0.05, step_size_up: 1ep}",
    ],
)
def test_t10_a_shared_floor_does_not_raise_a_group_that_lies_below_it(schedule: str) -> None:
    with refused("0.05 is above the LR 0.01 of parameter group b"):
        plan_of(schedule, lrs=(0.1, 0.01))


def test_t11_a_ramp_that_is_stuck_or_divides_by_zero_is_refused() -> None:
    for schedule, why in [
        ("{name: ConstantLR, factor: 0}", "factor must be greater than 0 and at most 1; got 0"),
        ("{name: LinearLR, start_factor: 0}", "start_factor must be greater than 0 and at most 1; got 0"),
        ("{name: LinearLR, total_iters: 0step}", "total_iters must be longer than zero"),
        ("{name: LinearLR, every: epoch, total_iters: 0}", "total_iters must be at least 1 tick"),
    ]:
        with refused(why):
            plan_of(schedule)


def test_t11_an_edit_of_the_lr_from_outside_does_not_last() -> None:
    plan, optimizer = plan_of("{name: ExponentialLR, gamma: 0.99, every: step}"), real_optimizer((0.1,))
    plan.write(optimizer, 10, None)
    optimizer.param_groups[0]["lr"] = 5.0
    plan.write(optimizer, 11, None)
    assert optimizer.param_groups[0]["lr"] == plan.curve.lr[11, 0]


def test_t12_a_step_that_the_scaler_skips_does_not_move_the_schedule() -> None:
    """t counts attempted steps, so a skipped one has used its row and no scheduler has to be told.

    The engine's own test skips a real fp16 step; here: what is written depends on t alone.
    """
    plan, optimizer = plan_of("CosineAnnealingLR"), real_optimizer((0.1,))
    written = []
    for t in (0, 1, 1, 2):
        plan.write(optimizer, t, None)
        written.append(optimizer.param_groups[0]["lr"])
    assert written[1] == written[2]
    assert [written[0], *written[2:]] == [row[0] for row in rows(plan, 0, 3)]


def test_t13_a_changed_schedule_is_not_overridden_by_a_checkpoint() -> None:
    old = plan_of("{name: ReduceLROnPlateau, patience: 5, factor: 0.1}")
    new = plan_of("{name: ReduceLROnPlateau, patience: 1, factor: 0.5}")
    before = old.start_live()
    assert before is not None
    before.observe(1.0)
    after = new.start_live(json.loads(json.dumps(before.state())))
    assert after is not None
    assert [after.observe(2.0), after.observe(2.0), after.lrs] == [False, True, (0.05,)]
    formula = plan_of("{name: LambdaLR, every: step, lr_lambda: '1 / (t + 1)'}")
    assert rows(formula)[3] == [0.025]


def test_t14_warm_restarts_can_warm_up_and_need_no_memory_of_the_past() -> None:
    plan = plan_of("{name: CosineAnnealingWarmRestarts, warmup: 2ep, T_0: 2ep, T_mult: 2}", lrs=(0.1, 0.01, 0.003))
    cosine = live(lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 100, 2), 400)[0]
    assert rows(plan, 100) == cosine
    optimizer = real_optimizer()
    plan.write(optimizer, 437, None)
    assert [group["lr"] for group in optimizer.param_groups] == cosine[337]


def test_t15_plateau_does_not_reduce_because_accuracy_rises() -> None:
    with refused("mode: min contradicts val_acc1: more of it is better", "leave mode out"):
        plan_of("{name: ReduceLROnPlateau, monitor: val_acc1, mode: min}")
    live_tail = plan_of("{name: ReduceLROnPlateau, monitor: val_acc1, patience: 0}").start_live()
    assert live_tail is not None
    assert [live_tail.observe(accuracy) for accuracy in (0.1, 0.5, 0.9, 0.9)] == [False, False, False, True]


def test_t15_plateau_does_not_forget_its_best_on_resume() -> None:
    plan = plan_of("{name: ReduceLROnPlateau, patience: 0}")
    first = plan.start_live()
    assert first is not None
    first.observe(0.5)
    second = plan.start_live(first.state())
    assert second is not None
    assert second.observe(0.6)


def test_t16_a_group_that_thaws_late_does_not_break_the_schedule() -> None:
    """All groups exist from step 0, a frozen one with LR 0; that none is added is the engine's test."""
    plan = plan_of("CosineAnnealingLR", lrs=(0.1, 0.1, 0.01), frozen_steps=(0, 120))
    whole = plan_of("CosineAnnealingLR", lrs=(0.1, 0.1, 0.01))
    table, free = rows(plan), rows(whole)
    assert [row[1] for row in table] == [0.0] * 120 + [row[1] for row in free[120:]]
    assert [row[::2] for row in table] == [row[::2] for row in free]
    optimizer = real_optimizer((0.1, 0.1, 0.01))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.5})
    with pytest.raises(ValueError, match="zip"):
        plan.write(optimizer, 0, None)


def test_sequential_warm_up_before_one_cycle_is_wrong_in_torch_and_right_here() -> None:
    plan = plan_of(
        "[{name: LinearLR, for: 100step, start_factor: 0.1}, {name: OneCycleLR, for: rest}]",
        lrs=(0.1, 0.01, 0.003),
    )
    ramp = live(lambda optimizer: LinearLR(optimizer, 0.1, total_iters=100), 100)
    cycle = live(lambda optimizer: OneCycleLR(optimizer, [0.1, 0.01, 0.003], 400), 400)
    assert rows(plan) == ramp[0] + cycle[0]
    assert momenta(plan) == ramp[1] + cycle[1]

    def torchs_way(optimizer: SGD) -> SequentialLR:
        return SequentialLR(
            optimizer,
            [LinearLR(optimizer, 0.1, total_iters=100), OneCycleLR(optimizer, [0.1, 0.01, 0.003], 400)],
            [100],
        )

    assert live(torchs_way, 100)[0] != ramp[0]
