"""Our own shapes: values by hand calculation, and properties that hold for every file in the folder."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrtrain import lookup
from lrtrain.config.scheduler_arguments import counts_of
from lrtrain.errors import ConfigError
from tests.schedules import THREE, plan_of, rows

# Each shape with arguments, over 10 ticks of one epoch each, and its factors by hand.
GOLDEN = {
    "fixed": [1.0] * 10,
    # Stable for 6 epochs, then 1 - p for p = 0, 1/4, 2/4, 3/4.
    "{name: wsd, cooldown: 40%, shape: linear}": [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25],
    # 0.2 + 0.8 (1 - sqrt(p)); sqrt of 1/4 is 1/2, of 1/2 is 0.70711, of 3/4 is 0.86603.
    "{name: wsd, cooldown: 4ep, floor: 0.2}": [1, 1, 1, 1, 1, 1, 1, 0.6, 0.434315, 0.307180],
    # (1 + cos(pi p)) / 2; cos of 45 degrees is 0.70711.
    "{name: wsd, cooldown: 4ep, shape: cosine}": [1, 1, 1, 1, 1, 1, 1, 0.853553, 0.5, 0.146447],
    # 1 / sqrt(1 + t / 3): t = 9 gives 1 / sqrt(4).
    "{name: inverse_sqrt, timescale: 3ep}": [
        1,
        0.866025,
        0.774597,
        0.707107,
        0.654654,
        0.612372,
        0.577350,
        0.547723,
        0.522233,
        0.5,
    ],
    # (1 - p) / (1 - p / 2): p = 0.5 gives 0.5 / 0.75; p = 0.8 gives 0.2 / 0.6.
    "rex": [1, 0.947368, 0.888889, 0.823529, 0.75, 0.666667, 0.571429, 0.461538, 0.333333, 0.181818],
    # 0.1 + 0.9 (1 - p)^2.
    "{name: polynomial_floor, power: 2, floor: 0.1}": [
        1,
        0.829,
        0.676,
        0.541,
        0.424,
        0.325,
        0.244,
        0.181,
        0.136,
        0.109,
    ],
}


@pytest.mark.parametrize("schedule", GOLDEN)
def test_a_shape_has_the_values_of_its_paper(schedule: str) -> None:
    written = schedule if schedule.startswith("{") else f"{{name: {schedule}}}"
    plan = plan_of(written.replace("}", ", every: epoch}"), lrs=THREE)
    for group, lr in enumerate(THREE):
        per_epoch = [row[group] / lr for row in rows(plan)[::50]]
        assert per_epoch == pytest.approx(GOLDEN[schedule], abs=1e-6)
        assert [row[group] for row in rows(plan)] == [row[group] for row in rows(plan)[::50] for _ in range(50)]


def test_every_shape_of_the_folder_has_golden_values() -> None:
    names = {schedule.strip("{}").split(",")[0].removeprefix("name: ") for schedule in GOLDEN}
    assert names == set(lookup.ours("scheduler"))


@pytest.mark.parametrize("name", lookup.ours("scheduler"))
@settings(max_examples=10, deadline=None, derandomize=True)
@given(steps=st.integers(1, 300), count=st.integers(1, 300))
def test_a_shape_keeps_the_groups_ratios_and_lies_between_0_and_its_peak(name: str, steps: int, count: int) -> None:
    counts = "".join(f", {key}: {min(count, steps)}step" for key in counts_of(name))
    plan = plan_of(f"{{name: {name}{counts}}}", lrs=(0.1, 0.025), length=f"steps: {steps}", steps_per_epoch=7)
    table = plan.curve.lr
    assert table[0].tolist() == [0.1, 0.025]
    assert table.min() >= 0
    assert (table[1:] <= table[:-1]).all()
    assert all(math.isclose(big, 4 * small, rel_tol=1e-12) for big, small in table.tolist())


def test_percent_is_of_the_run_wherever_it_stands() -> None:
    plan = plan_of("[{name: fixed, for: 50%}, {name: wsd, for: rest, cooldown: 20%, shape: linear}]")
    assert [row[0] for row in rows(plan)].count(0.1) == 401
    assert rows(plan)[450] == pytest.approx([0.05])


def test_warmup_before_wsd_is_the_warm_up_of_wsd() -> None:
    plan = plan_of("{name: wsd, warmup: 10%, cooldown: 20%}")
    assert [(span.name, span.start, span.stop) for span in plan.phases] == [
        ("LinearLR", 0, 50),
        ("wsd", 50, 500),
    ]
    assert rows(plan)[50:401] == [[0.1]] * 351


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("my_schedules:halving", "a function of (t, steps) is a shape"),
        ("my_schedules:Halving", "a class is a scheduler of torch's kind"),
        ("my_schedules:make", "so is a function that makes one"),
    ],
)
def test_code_of_the_users_own_is_found_by_import_path(
    path: str, reason: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from torch.optim.lr_scheduler import LRScheduler, StepLR\n"
        "def halving(t, steps, after, words='x'):\n    return 0.5 ** (t // after)\n"
        "class Halving(LRScheduler):\n"
        "    def __init__(self, optimizer, after):\n"
        "        self.after = after\n        super().__init__(optimizer)\n"
        "    def get_lr(self):\n"
        "        return [lr * 0.5 ** (self.last_epoch // self.after) for lr in self.base_lrs]\n"
        "def make(optimizer, after):\n    return StepLR(optimizer, after, gamma=0.5)\n"
    )
    (tmp_path / "my_schedules.py").write_text(source)  # type: ignore[operator]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert reason
    for every, after, ticks in (("step", "2ep", 100), ("epoch", "4ep", 200), ("epoch", "4", 200)):
        plan = plan_of(f"{{name: '{path}', every: {every}, after: {after}}}", lrs=(0.1, 0.025))
        assert rows(plan) == [[0.1 * 0.5 ** (t // ticks), 0.025 * 0.5 ** (t // ticks)] for t in range(500)]


def test_a_scheduler_of_the_users_own_may_go_by_the_place_of_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from torch.optim.lr_scheduler import LambdaLR, LRScheduler\n"
        "class HeadFirst(LRScheduler):\n"
        "    def get_lr(self):\n"
        "        return [lr * (i == 0 or self.last_epoch >= 250) for i, lr in enumerate(self.base_lrs)]\n"
        "def make(optimizer, factors):\n"
        "    return LambdaLR(optimizer, [lambda t, factor=factor: factor for factor in factors])\n"
        "def flat(t, steps):\n    return 1\n"
    )
    (tmp_path / "my_places.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = plan_of("{name: 'my_places:HeadFirst', every: step}", lrs=(0.1, 0.1))
    assert rows(plan) == [[0.1, 0.0]] * 250 + [[0.1, 0.1]] * 250
    chain = "{name: ChainedScheduler, every: step, schedulers: [{name: 'my_places:make', factors: [1.0, 0.5]}]}"
    assert rows(plan_of(chain, lrs=(0.1, 0.1))) == [[0.1, 0.05]] * 500
    assert plan_of("{name: 'my_places:flat', every: step}", lrs=(0.1, 0.1)).curve.columns == (0, 0)


@pytest.mark.parametrize("draw", ["random.random()", "np.random.rand()", "float(torch.rand(()))"])
def test_a_scheduler_of_the_users_own_that_draws_draws_the_same_again(
    draw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_draws.py").write_text(
        f"import random, torch, numpy as np\ndef noisy(t, steps):\n    return {draw}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_draws", raising=False)
    one, other = (plan_of("{name: 'my_draws:noisy', every: step}") for _ in range(2))
    assert rows(one) == rows(other)
    assert len({lr for (lr,) in rows(one)}) > 100


@pytest.mark.parametrize("draw", ["random.Random().random()", "next(COUNT) * 1e-9"])
def test_a_scheduler_that_does_not_draw_the_same_again_is_refused(
    draw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"import itertools, random\nCOUNT = itertools.count()\ndef noisy(t, steps):\n    return {draw}\n"
    (tmp_path / "my_dice.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_dice", raising=False)
    for schedule in (
        "{name: 'my_dice:noisy', every: step}",
        "[{name: LinearLR, for: 20%}, {name: 'my_dice:noisy', every: step}]",
    ):
        with pytest.raises(ConfigError, match="the schedule has other LRs whenever it is planned"):
            plan_of(schedule)


@pytest.mark.parametrize("key", ["weight_decay", "betas"])
def test_a_scheduler_that_sets_more_than_lr_and_momentum_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from torch.optim.lr_scheduler import LRScheduler\n"
        "class Both(LRScheduler):\n"
        "    def get_lr(self):\n"
        f"        self.optimizer.param_groups[0][{key!r}] = 0.1\n"
        "        return self.base_lrs\n"
    )
    (tmp_path / f"my_{key}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=f"it sets {key} of the optimizer's groups, and a schedule sets lr and"):
        plan_of(f"{{name: 'my_{key}:Both', every: step}}", lrs=(0.1, 0.2))
