import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from lrtrain.schedule.draw import MIN_WIDTH, draw, far_apart, short

VALUES = st.lists(
    st.floats(0, 1000) | st.sampled_from([0.0, 1e-8, 0.1, 1e300, float("nan"), float("inf")]), min_size=1, max_size=300
)
NAMES = st.text(min_size=1, max_size=60)


def warmup_cosine(steps, warmup, peak=0.1):
    t = np.arange(steps)
    falling = peak / 2 * (1 + np.cos(np.pi * (t - warmup) / (steps - warmup)))
    return np.where(t < warmup, peak * t / warmup, falling)


def plot_rows(picture, height, level="+", side="|"):
    """The plot's lines without the y labels."""
    rows = picture.split("\n")[:height]
    return [row[min(i for i in (row.find(level), row.find(side)) if i >= 0) + 1 :] for row in rows]


@settings(deadline=None, max_examples=150)
@given(
    series=st.dictionaries(NAMES, VALUES, min_size=1, max_size=6),
    width=st.integers(MIN_WIDTH, 130),
    height=st.integers(2, 20),
    unicode=st.booleans(),
    log_y=st.booleans(),
    steps_per_epoch=st.none() | st.integers(1, 400),
    live_from=st.none() | st.integers(0, 400),
)
def test_any_picture_fits_its_width_and_height(series, width, height, unicode, **options):
    picture = draw(series, width=width, height=height, unicode=unicode, **options)
    if not np.isfinite(np.concatenate(list(series.values()))).any():
        assert picture == ""
        return
    lines = picture.split("\n")
    assert max(map(cell_len, lines)) <= width
    assert cell_len(lines[height]) == width, "the x axis reaches the edge"
    assert len(lines) >= height + 2
    assert not any(line != line.rstrip() for line in lines[: height + 2])
    if not unicode:
        assert picture.isascii()
        assert "\x1b" not in picture


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.floats(1e-6, 10), min_size=2, max_size=400), width=st.integers(MIN_WIDTH, 100))
def test_a_falling_curve_is_drawn_falling(values, width):
    rows = plot_rows(draw({"lr": sorted(values, reverse=True)}, width=width, unicode=False), 10)
    filled = np.array([[cell == "*" for cell in row.ljust(width)] for row in rows])
    drawn = filled[:, filled.any(axis=0)]
    tops, bottoms = drawn.argmax(axis=0), 9 - drawn[::-1].argmax(axis=0)
    assert (np.diff(tops) >= 0).all()
    assert (np.diff(bottoms) >= 0).all()


@settings(deadline=None, max_examples=30)
@given(spike=st.integers(0, 449_999))
def test_a_spike_of_one_step_in_450_000_survives(spike):
    values = np.full(450_000, 0.01)
    values[spike] = 0.1
    picture = draw({"lr": values}, width=80, unicode=False)
    assert plot_rows(picture, 10)[0].strip() == "*"


def test_a_warmup_and_cosine_look_like_this():
    assert draw({"lr": warmup_cosine(3000, 300)}, width=40, height=8, steps_per_epoch=100) == GOLDEN_COSINE


def test_two_groups_with_steps_look_like_this_in_ascii():
    head = 0.1 * 0.1 ** (np.arange(900) // 300)
    series = {"head": head, "body": head / 10}
    picture = draw(series, width=40, height=7, unicode=False, steps_per_epoch=10, log_y=True)
    assert picture == GOLDEN_STEPS


def test_equal_groups_share_a_line_and_an_entry():
    curve = warmup_cosine(100, 10)
    assert "head, norm" in draw({"head": curve, "norm": curve.copy(), "body": curve / 2}, width=60)


def test_of_twelve_groups_the_highest_and_lowest_are_drawn_and_the_rest_is_counted():
    curve = warmup_cosine(100, 10)
    legend = draw({f"layer{i:02}": curve * 0.75**i for i in range(12)}, width=80).split("\n", 12)[-1]
    assert "layer00" in legend
    assert "layer11" in legend
    assert "and 8 more between them" in legend


def test_the_stretch_that_depends_on_a_metric_is_lighter_and_labelled():
    picture = draw({"lr": [0.1] * 100}, width=40, live_from=50, monitor="val_acc1", unicode=False)
    assert picture.startswith(" 0.1 +" + "*" * 17 + "." * 17 + "\n")
    assert picture.endswith("live: val_acc1")
    braille = draw({"lr": [0.1] * 100}, width=40, live_from=50)
    assert braille.startswith(" 0.1 ┤" + "⠉" * 17 + " ⠁" * 8)
    assert "live" not in draw({"lr": [0.1] * 100}, width=40, live_from=None)


@pytest.mark.parametrize("values", [[1.0, 0.0], [0.0, 1.0]])
def test_a_jump_between_two_columns_is_one_line_from_end_to_end(values):
    assert all("*" in row for row in plot_rows(draw({"lr": values}, width=40, unicode=False), 10))


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_constant_is_one_level_line(value):
    rows = plot_rows(draw({"lr": [value] * 50}, width=40, unicode=False), 10)
    assert [bool(row) for row in rows] == [i == (9 if value == 0 else 0) for i in range(10)]
    assert set(max(rows)) == {"*"}


def test_the_labels_name_the_highest_middle_and_lowest_value():
    labels = [row.split()[0] for row in draw({"lr": np.linspace(0, 0.1, 50)}, width=40).split("\n")[:10]]
    assert [labels[0], labels[5], labels[9]] == ["0.1", "0.05", "0"]
    logged = draw({"lr": np.geomspace(1e-5, 0.1, 50)}, width=40, log_y=True).split("\n")
    assert [logged[i].split()[0] for i in (0, 5, 9)] == ["0.1", "1e-3", "1e-5"]


def test_values_that_hardly_differ_get_labels_that_do():
    rows = draw({"lr": np.linspace(0.1, 0.10001, 50)}, width=40).split("\n")
    assert [rows[0].split()[0], rows[9].split()[0]] == ["0.10001", "0.1"]


@pytest.mark.parametrize(
    ("steps", "steps_per_epoch", "width", "axis"),
    [
        (3000, 100, 40, ["0", "10", "20", "30ep"]),
        (2000, 100, 80, ["0", "5", "10", "15", "20ep"]),
        (1700, 100, 80, ["0", "2", "4", "6", "8", "10", "12", "14", "16ep"]),
        (9000, 100, 40, ["0", "30", "60", "90ep"]),
        (50, 100, 60, ["0", "0.1", "0.2", "0.3", "0.4", "0.5ep"]),
        (10, None, 80, ["0", "2", "4", "6", "8", "10step"]),
        (3, None, 80, ["0", "1", "2", "3step"]),
        (450_000, None, 40, ["0", "200k", "400k", "step"]),
    ],
)
def test_the_x_axis_has_round_numbers_and_a_unit(steps, steps_per_epoch, width, axis):
    picture = draw({"lr": np.linspace(0.1, 0, steps)}, width=width, steps_per_epoch=steps_per_epoch)
    assert picture.split("\n")[11].split() == axis


def test_a_name_from_outside_cannot_drive_the_terminal():
    picture = draw({"a\x1b[31m": [1.0, 2.0], "b\n": [2.0, 1.0]}, width=60)
    assert "\x1b" not in picture
    assert "\\x1b[31m" in picture
    assert "b\\n" in picture


@pytest.mark.parametrize("width", [0, 1, MIN_WIDTH - 1])
def test_where_nothing_fits_the_picture_is_empty(width):
    assert draw({"lr": [0.1, 0.2]}, width=width) == ""


def test_marks_stand_on_the_axis():
    picture = draw({"a": [1.0, 2.0]}, width=40, x_marks={0.0: "1", 1.0: "2"}, notes=["1 low", "2 high"])
    axis, legend = picture.split("\n")[10], picture.split("\n")[-1]
    assert axis.strip("└ ")[0] == "1"
    assert axis[-1] == "2"
    assert legend == "1 low   2 high"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (0.001, "1e-3"),
        (3e-4, "3e-4"),
        (0.0312345, "0.0312"),
        (1.0, "1"),
        (0.0, "0"),
        (12.5, "12.5"),
        (2.5e-7, "2.5e-7"),
        (-0.001, "-1e-3"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


GOLDEN_COSINE = """\
 0.1 ┤   ⡏⠉⠙⠒⠲⠤⣄⡀
     │  ⢸⠁      ⠉⠳⢤⡀
     │  ⡏          ⠉⠳⢤⡀
     │ ⢰⠃             ⠙⠦⣄
0.05 ┤ ⡞                ⠈⠳⢤⡀
     │⢠⠇                   ⠙⠲⣄
     │⡸                       ⠙⠲⣄⡀
   0 ┤⡇                          ⠉⠓⠲⠤⢤⣀⣀
     └┬──────────┬──────────┬──────────┬
      0         10         20       30ep"""

GOLDEN_STEPS = """\
    0.1 +***********
        |          *
        |oooooooooo***********
3.16e-3 +          o         *
        |          oooooooooo***********
        |                    o
   1e-4 +                    ooooooooooo
        ++---------+---------+---------+
         0        30        60      90ep
*** head   ooo body"""


def test_groups_whose_peaks_lie_far_apart_are_told_from_others():
    curve = warmup_cosine(200, 20)
    assert far_apart({"backbone": curve, "head": 64 * curve})
    assert not far_apart({"backbone": curve, "head": 10 * curve})
    assert not far_apart({"LR": curve})
    assert not far_apart({"frozen": 0 * curve, "head": curve})


def test_a_logarithmic_axis_ends_four_decades_below_the_lowest_peak():
    curve = np.array([0.1, 1e-9])
    picture = draw({"low": curve, "high": 100 * curve}, width=40, height=6, unicode=False, log_y=True)
    assert picture.split("\n")[0].split()[0] == "10"
    assert picture.split("\n")[5].split()[0] == "1e-5"
