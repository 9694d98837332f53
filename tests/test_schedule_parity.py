"""Curve against torch's own scheduler, stepped live on a real optimizer: equal exactly, LR and momentum."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as torchs

from lrtrain import lookup
from tests.schedules import ADAM, SGD_, THREE, live, momenta, plan_of, rows

STEPS = 500
FEW = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False).map(lambda x: float(f"{x:.6g}"))


TICKS = st.integers(1, 60)
FLOOR = st.sampled_from([0.0, 1e-5, 0.0029])
CYCLING = {
    "cycle_momentum": st.booleans(),
    "base_momentum": numbers(0.5, 0.8),
    "max_momentum": numbers(0.85, 0.99),
}
ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "LambdaLR": st.fixed_dictionaries(
        {
            "lr_lambda": st.sampled_from(
                ["0.95 ** t", "1 / (1 + t / 10)", "0.1 if t > 7 else 1", "(1 + cos(pi * t / 500)) / 2"]
            )
        }
    ),
    "MultiplicativeLR": st.fixed_dictionaries({"lr_lambda": st.sampled_from(["0.99", "1 - 1 / (t + 10)"])}),
    "StepLR": st.fixed_dictionaries({"step_size": TICKS}, optional={"gamma": numbers(0.1, 1.1)}),
    "MultiStepLR": st.fixed_dictionaries(
        {"milestones": st.sets(st.integers(1, 9), min_size=1).map(sorted)},
        optional={"gamma": numbers(0.1, 1.1)},
    ),
    "ConstantLR": st.fixed_dictionaries({"total_iters": TICKS}, optional={"factor": numbers(0.01, 1)}),
    "LinearLR": st.fixed_dictionaries(
        {"total_iters": TICKS}, optional={"start_factor": numbers(0.001, 1), "end_factor": numbers(0, 1)}
    ),
    "ExponentialLR": st.fixed_dictionaries({"gamma": numbers(0.9, 1.01)}),
    "PolynomialLR": st.fixed_dictionaries({"total_iters": TICKS}, optional={"power": numbers(0.5, 3)}),
    "CosineAnnealingLR": st.fixed_dictionaries({"T_max": TICKS}, optional={"eta_min": FLOOR}),
    "CosineAnnealingWarmRestarts": st.fixed_dictionaries(
        {"T_0": TICKS}, optional={"T_mult": st.integers(1, 3), "eta_min": FLOOR}
    ),
    "CyclicLR": st.fixed_dictionaries(
        {"base_lr": FLOOR, "step_size_up": TICKS},
        optional={
            "step_size_down": TICKS,
            "mode": st.sampled_from(["triangular", "triangular2", "exp_range"]),
            "gamma": numbers(0.9, 1),
            **CYCLING,
        },
    ),
    "OneCycleLR": st.fixed_dictionaries(
        {},
        optional={
            "pct_start": numbers(0.25, 0.45),
            "anneal_strategy": st.sampled_from(["cos", "linear"]),
            "div_factor": numbers(2, 50),
            "final_div_factor": numbers(2, 1e5),
            "three_phase": st.booleans(),
            **CYCLING,
        },
    ),
}
FORMULAS: dict[str, Any] = {
    "0.95 ** t": lambda t: 0.95**t,
    "1 / (1 + t / 10)": lambda t: 1 / (1 + t / 10),
    "0.99": lambda t: 0.99,
    "0.1 if t > 7 else 1": lambda t: 0.1 if t > 7 else 1,
    "1 - 1 / (t + 10)": lambda t: 1 - 1 / (t + 10),
    "(1 + cos(pi * t / 500)) / 2": lambda t: (1 + torchs.math.cos(torchs.math.pi * t / 500)) / 2,
}


def torchs_own(name: str, args: dict[str, Any], ticks: int, lrs: tuple[float, ...] = THREE) -> Any:
    """torch's class as somebody who knows it would build it for this run."""
    own = dict(args)
    if "lr_lambda" in own:
        own["lr_lambda"] = FORMULAS[own["lr_lambda"]]
    if name in ("OneCycleLR", "CyclicLR"):
        own["max_lr"] = list(lrs)
    if name == "OneCycleLR":
        own["total_steps"] = ticks
    return lambda optimizer: getattr(torchs, name)(optimizer, **own)


def written(name: str, args: dict[str, Any], every: str) -> str:
    pairs = {"name": name, "every": every, **args}
    texts = {
        key: f"'{value}'" if key == "lr_lambda" else str(value).lower() if isinstance(value, bool) else f"{value}"
        for key, value in pairs.items()
    }
    return "{" + ", ".join(f"{key}: {text}" for key, text in texts.items()) + "}"


def test_every_scheduler_of_torch_is_held_against_torch() -> None:
    elsewhere = {"ReduceLROnPlateau", "SequentialLR", "ChainedScheduler"}
    torchs_names = set(lookup.names("scheduler")) - set(lookup.ours("scheduler"))
    assert torchs_names == set(ARGUMENTS) | elsewhere


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, SGD) for name in sorted(ARGUMENTS)]
    + [("CosineAnnealingLR", Adam), ("CyclicLR", Adam), ("OneCycleLR", Adam)],
)
@pytest.mark.parametrize("every", ["step", "epoch"])
def test_the_curve_equals_torch_stepped_live(name: str, kind: type[Optimizer], every: str) -> None:
    @FEW
    @given(ARGUMENTS[name])
    def check(args: dict[str, Any]) -> None:
        hold = 50 if every == "epoch" else 1
        plan = plan_of(written(name, args, every), lrs=THREE, optimizer=SGD_ if kind is SGD else ADAM)
        lr, momentum = live(torchs_own(name, args, STEPS // hold), STEPS, hold=hold, kind=kind)
        assert rows(plan) == lr
        if plan.curve.momentum is None:
            assert momentum == [[0.9] * 3] * STEPS
        else:
            assert momenta(plan) == momentum
            assert plan.curve.momentum.shape == (STEPS, 3)

    check()


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_a_chain_equals_torchs_chain_stepped_live(every: str) -> None:
    hold = 50 if every == "epoch" else 1
    plan = plan_of(
        f"{{name: ChainedScheduler, every: {every}, schedulers: ["
        "{name: ConstantLR, factor: 0.1, total_iters: 4},"
        "{name: CosineAnnealingLR, T_max: 9}, {name: ExponentialLR, gamma: 0.97}]}",
        lrs=THREE,
    )

    def chain(optimizer: Optimizer) -> Any:
        return torchs.ChainedScheduler(
            [
                torchs.ConstantLR(optimizer, 0.1, 4),
                torchs.CosineAnnealingLR(optimizer, 9),
                torchs.ExponentialLR(optimizer, 0.97),
            ]
        )

    assert rows(plan) == live(chain, STEPS, hold=hold)[0]


@pytest.mark.parametrize(
    ("name", "horizon"),
    [
        ("CosineAnnealingLR", "T_max"),
        ("LinearLR", "total_iters"),
        ("PolynomialLR", "total_iters"),
        ("ConstantLR", "total_iters"),
        ("OneCycleLR", "total_steps"),
    ],
)
@pytest.mark.parametrize("hold", [1, 50])
def test_a_length_that_is_absent_is_the_phases_own(name: str, horizon: str, hold: int) -> None:
    every = "step" if hold == 1 else "epoch"
    args = {horizon: STEPS // hold} | ({"max_lr": list(THREE)} if name == "OneCycleLR" else {})
    plan = plan_of(f"{{name: {name}, every: {every}}}", lrs=THREE)
    assert rows(plan) == live(lambda optimizer: getattr(torchs, name)(optimizer, **args), STEPS, hold=hold)[0]


def test_durations_count_steps_unless_the_scheduler_ticks_once_an_epoch() -> None:
    by_step = live(lambda optimizer: torchs.CosineAnnealingLR(optimizer, 200), STEPS)[0]
    by_epoch = live(lambda optimizer: torchs.CosineAnnealingLR(optimizer, 4), STEPS, hold=50)[0]
    for length in ("4ep", "200step", "40%"):
        assert rows(plan_of(f"{{name: CosineAnnealingLR, T_max: {length}}}", lrs=THREE)) == by_step
        assert rows(plan_of(f"{{name: CosineAnnealingLR, every: epoch, T_max: {length}}}", lrs=THREE)) == by_epoch


def test_a_formula_can_scale_the_cycles() -> None:
    plan = plan_of(
        "{name: CyclicLR, every: step, base_lr: 0.001, step_size_up: 20, scale_fn: '1 / x'}",
        lrs=THREE,
    )
    lr, momentum = live(
        lambda optimizer: torchs.CyclicLR(optimizer, 0.001, list(THREE), 20, scale_fn=lambda x: 1 / x), STEPS
    )
    assert (rows(plan), momenta(plan)) == (lr, momentum)


def test_lists_give_each_group_its_own_value() -> None:
    plan = plan_of("{name: OneCycleLR, max_lr: [0.2, 0.1, 0.2], base_momentum: [0.8, 0.8, 0.7]}", lrs=(0.1, 0.1, 0.1))
    lr, momentum = live(
        lambda optimizer: torchs.OneCycleLR(
            optimizer, [0.2, 0.1, 0.2], total_steps=STEPS, base_momentum=[0.8, 0.8, 0.7]
        ),
        STEPS,
    )
    assert (rows(plan), momenta(plan)) == (lr, momentum)
