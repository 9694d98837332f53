"""The plan of a run that was made longer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrtrain.config.schema import Extension
from lrtrain.errors import ConfigError
from lrtrain.schedule.curve import NEVER, GroupLR
from lrtrain.schedule.extend import extended
from lrtrain.schedule.plan import make_plan
from tests.schedules import config_of, plan_of


def test_a_plateau_goes_on_only_with_hold() -> None:
    schedule = "[{name: LinearLR, for: 20%}, {name: ReduceLROnPlateau}]"
    plan = plan_of(schedule)
    longer = {policy: Extension(policy=policy, at=300, steps=900) for policy in ("hold", "rescale", "restart")}
    for policy, extension in longer.items():
        config = config_of(schedule).model_copy(update={"extended": (extension,)})

        def planned(changed: Any, before: int) -> Any:
            return plan if changed.steps == 500 else plan_of(schedule, length=f"steps: {changed.steps}")

        if policy == "hold":
            found = extended(config, planned)
            assert (found.total_steps, found.live_from) == (900, 100)
        else:
            with pytest.raises(ConfigError, match="ReduceLROnPlateau"):
                extended(config, planned)


@pytest.mark.parametrize("policy", ["rescale", "restart"])
@pytest.mark.parametrize(("before", "after"), [(1, 40), (40, 41)])
def test_a_momentum_cycle_of_one_tick_goes_on_as_a_longer_one(policy: Any, before: int, after: int) -> None:
    """Of one tick the cycle is the optimizer's own momentum, which the table would leave alone."""

    def planned(changed: Any, before: int) -> Any:
        return plan_of(schedule, lrs=(0.1, 0.2), steps_per_epoch=1, length=f"steps: {changed.steps}")

    schedule = "{name: CyclicLR, base_lr: 0.001, step_size_up: 3, every: step}"
    extension = Extension(policy=policy, at=before, steps=after)
    config = config_of(schedule, length=f"steps: {before}").model_copy(update={"extended": (extension,)})
    found, begun = extended(config, planned).curve, planned(config, 0).curve
    own = np.full((before, 1), 0.9)
    then = planned(config.model_copy(update={"steps": after if policy == "rescale" else after - before}), 0).curve
    expected = np.full((len(then), 1), 0.9) if then.momentum is None else then.momentum[:, :1]
    assert found.momentum is not None
    assert np.array_equal(found.momentum[:before, :1], own if begun.momentum is None else begun.momentum[:, :1])
    assert np.array_equal(found.momentum[before:, :1], expected[before if policy == "rescale" else 0 :])


def test_groups_that_only_frozen_until_tells_apart_begin_again_together() -> None:
    def planned(changed: Any, before: int) -> Any:
        frozen = (max(0, 50 - before),)
        return plan_of(schedule, lrs=(0.1, 0.1, 0.2), frozen_steps=frozen, length=f"steps: {changed.steps}")

    schedule = "{name: CosineAnnealingLR}"
    config = config_of(schedule).model_copy(update={"extended": (Extension(policy="restart", at=500, steps=800),)})
    found, again = extended(config, planned), planned(config_of(schedule, length="steps: 300"), 500)
    for g in range(3):
        assert np.array_equal(found.curve.of_group(g)[500:], again.curve.of_group(g))
        assert np.array_equal(found.curve.of_group(g)[:500], planned(config_of(schedule), 0).curve.of_group(g))


@pytest.mark.parametrize(
    ("until", "extensions", "thawed"),
    [
        (5, ["hold 10 20"], 5),
        (15, ["hold 10 20"], None),  # the last LR is 0, and stays
        (15, ["rescale 10 20"], 15),
        (15, ["rescale 8 12", "rescale 12 20"], 15),
        (15, ["restart 10 20"], 15),
        (30, ["rescale 10 20"], None),
        (15, ["hold 10 12", "rescale 12 20"], 15),
        (15, ["hold 10 17", "rescale 16 20"], 16),
        (15, ["hold 10 17", "restart 17 30"], 17),
        (15, ["hold 10 17", "hold 17 30"], None),
        (NEVER, ["rescale 10 20", "restart 20 30", "hold 30 40"], None),
    ],
)
def test_a_group_is_frozen_where_its_lr_is_0_and_up_to_the_step_that_is_named(
    until: int, extensions: list[str], thawed: int | None
) -> None:
    words: list[Any] = [text.split() for text in extensions]
    parsed = tuple(Extension(policy=policy, at=int(at), steps=int(to)) for policy, at, to in words)
    config = config_of("fixed", length="steps: 10").model_copy(update={"extended": parsed})
    plan = make_plan(config, [GroupLR("a", 0.1, 0.9, until), GroupLR("b", 0.1, 0.9)], 5)
    first = next((t for t in range(plan.total_steps) if plan.lrs(t, None)[0]), None)
    assert first == thawed
    assert all(plan.lrs(t, None) == (0.1 * (t >= plan.groups[0].frozen_steps), 0.1) for t in range(plan.total_steps))
    said = f"until step {thawed} " if thawed else "never trains"
    (note,) = (note for note in plan.notes if "group a" in note)
    assert said in note


def test_what_is_frozen_for_good_does_not_train_once_it_is_held_behind_a_plateau() -> None:
    config = config_of("ReduceLROnPlateau", length="steps: 10")
    config = config.model_copy(update={"extended": (Extension(policy="hold", at=10, steps=20),)})
    plan = make_plan(config, [GroupLR("a", 0.1, 0.9, 10), GroupLR("b", 0.1, 0.9)], 5)
    assert plan.lrs(15, plan.start_live()) == (0.0, 0.1)
