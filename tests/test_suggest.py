import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrtrain.range_test.suggest import (
    StopRule,
    minimum_tenth,
    slide,
    smooth,
    steepest,
    suggest,
    trimmed,
    valley,
)
from tests import independent_suggest as independent

CURVES = json.loads(independent.CURVES.read_text())
METHODS = ("steepest", "valley", "minimum_tenth", "slide")


def array(*values):
    return np.array(values, dtype=np.float64)


@pytest.fixture(params=list(CURVES))
def curve(request):
    return CURVES[request.param]


def recorded_suggestions(name):
    return suggest(CURVES[name]["lrs"], CURVES[name]["losses"], CURVES[name]["steps_planned"])


def test_suggestions_equal_the_stored_numbers_of_an_independent_implementation(curve):
    found = suggest(curve["lrs"], curve["losses"], curve["steps_planned"])
    assert [getattr(found, method) for method in METHODS] == [curve["expected"][method] for method in METHODS]


def test_the_suggestions_look_at_the_stored_number_of_points(curve):
    lrs, losses = trimmed(np.array(curve["lrs"]), smooth(curve["losses"]), curve["steps_planned"])
    assert len(lrs) == len(losses) == curve["expected"]["points"]


def test_the_sweep_stops_at_the_stored_step(curve):
    rule = StopRule()
    stop = next((step for step, loss in enumerate(curve["losses"]) if rule.stops(loss)), None)
    assert stop == curve["expected"]["stop"]


def test_smoothing_by_hand():
    # v: 0.02*2 = 0.04, 0.98*0.04 + 0.02*4 = 0.1192, 0.98*0.1192 + 0.02*1 = 0.136816
    # 1 - 0.98^k: 0.02, 0.0396, 0.058808; quotients 2, 3.0101..., 2.32648...
    assert smooth([2.0, 4.0, 1.0]) == pytest.approx([2.0, 0.1192 / 0.0396, 0.136816 / 0.058808], rel=1e-12)


def test_three_falling_points_by_hand():
    # Slopes per ln lr (ln 10 = 2.303): (2-3)/2.303 = -0.434, (0.5-2)/2.303 = -0.651: the second,
    # left point 0.1.
    # Longest descent: 3 points, end 2, start 2-3 = -1, third (2+1)/3 = 1, index
    # -1 + 1 + floor(0.5) = 0: LR 0.01.
    # Smallest loss at 1; a tenth is 0.1. Slide needs 16 points.
    lrs, losses = array(0.01, 0.1, 1.0), array(3.0, 2.0, 0.5)
    assert steepest(lrs, losses) == 0.1
    assert valley(lrs, losses) == 0.01
    assert minimum_tenth(lrs, losses) == 0.1
    assert slide(lrs, losses) is None


def test_a_valley_with_a_bump_by_hand():
    # LRs 1..9, losses 5 4 6 3 2 7 1 8 9. Lengths of the longest descents that end at each: 1 2 1 3 4 1 5 1 1.
    # The longest, 5 4 3 2 1, ends at index 6: start 6 - 5 = 1, third 5/3, index 1 + 1 + floor(0.83) = 2: LR 3.
    # The smallest loss, 1, is at LR 7, so 0.7.
    # Steepest: differences -1 2 -3 -1 5 -6 7 1 over ln((k+1)/k). Falls: -1/ln(2/1) = -1.44,
    # -3/ln(4/3) = -10.4, -1/ln(5/4) = -4.5, -6/ln(7/6) = -38.9: the left point of the last, LR 6.
    lrs, losses = np.arange(1.0, 10.0), array(5, 4, 6, 3, 2, 7, 1, 8, 9)
    assert valley(lrs, losses) == 3.0
    assert minimum_tenth(lrs, losses) == pytest.approx(0.7)
    assert steepest(lrs, losses) == 6.0


def test_slide_by_hand():
    # 18 points, lr_diff 15: L = 0 up to index 15, then 1 and 3. np.gradient: 0 up to index 14,
    # G[15] = (1-0)/2 = 0.5, G[16] = (3-0)/2 = 1.5, G[17] = 3-1 = 2.
    # Pairs (right, left): (17, 2) differ by 2, (16, 1) by 1.5, (15, 0) by 0.5; then left would be -1: the LR
    # at 0.
    lrs = np.arange(1.0, 19.0)
    losses = array(*[0.0] * 16, 1.0, 3.0)
    assert slide(lrs, losses) == 1.0
    # With a threshold of 1 the pair (15, 0) is no longer different enough: the LR at 1, times adjust.
    assert slide(lrs, losses, threshold=1.0, adjust=0.5) == 1.0
    # Where not even the first pair differs, the answer is its left point all the same.
    assert slide(lrs, losses, threshold=5.0) == 3.0


def test_a_strictly_falling_curve_of_85_points_has_its_valley_at_index_41():
    lrs = np.arange(1.0, 86.0)
    assert valley(lrs, -lrs) == lrs[41]


def test_a_flat_curve_stays_flat_when_smoothed():
    assert set(smooth([2.302585] * 100)) == {2.302585}


def test_a_descent_of_the_first_two_points_gives_no_valley_instead_of_the_highest_lr():
    # Length 2 ending at index 1: start -1, third 2/3, index -1 + 0 + 0 = -1.
    assert valley(array(1, 2, 3, 4), array(5, 4, 6, 7)) is None


@pytest.mark.parametrize("points", [0, 1])
def test_too_few_points_give_none(points):
    lrs, losses = np.ones(points), np.ones(points)
    assert steepest(lrs, losses) is None
    assert valley(lrs, losses) is None
    assert slide(lrs, losses) is None
    assert (minimum_tenth(lrs, losses) is None) == (points == 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_stop_rule_stops_on_a_loss_that_is_not_finite(bad):
    rule = StopRule()
    assert [rule.stops(loss) for loss in (2.0, 2.0, bad)] == [False, False, True]
    assert rule.best == 2.0


def test_points_from_the_first_loss_that_is_not_finite_are_left_out():
    lrs, losses = np.arange(1.0, 41.0), np.linspace(2, 1, 40)
    losses[20] = np.inf
    assert trimmed(lrs, losses, 40)[0].tolist() == list(range(5, 21))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flat", "hardly fell"),
        ("rises_from_the_start", "hardly fell"),
        ("never_diverges", "still falling"),
        ("adamw_on_photos", "28x apart"),
        ("short", "only 12 usable points"),
        ("too_short", "only 0 usable points"),
    ],
)
def test_a_doubtful_curve_is_called_doubtful(name, words):
    assert words in (recorded_suggestions(name).caution or "")


@pytest.mark.parametrize("name", ["sgd_on_photos", "linear_sweep_on_photos"])
def test_a_good_curve_is_not_called_doubtful(name):
    assert recorded_suggestions(name).caution is None


def test_a_fall_within_the_noise_is_called_doubtful():
    noise = np.random.Generator(np.random.Philox(key=1)).normal(0, 1, 100)
    assert "hardly fell" in (suggest(np.geomspace(1e-5, 1, 100), 2.3 + noise, 100).caution or "")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5]) | st.floats(0.01, 10), min_size=2, max_size=60))
def test_any_curve_gives_what_the_independent_implementation_gives(losses):
    lrs = np.geomspace(1e-4, 1, len(losses))
    points = list(zip(lrs.tolist(), losses, strict=True))
    assert valley(lrs, np.array(losses)) == independent.valley(points)
    assert minimum_tenth(lrs, np.array(losses)) == independent.minimum(points)
    assert slide(lrs, np.array(losses)) == independent.slide(points)
    assert smooth(losses) == pytest.approx(independent.smoothed_losses(losses), rel=1e-9)


def test_a_thousand_points_are_no_trouble():
    falling = np.linspace(3, 1, 1000)
    # end 999, start -1, third 333.33, index -1 + 333 + 166 = 498
    assert valley(np.arange(1000.0), falling) == 498.0
