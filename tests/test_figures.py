import errno
import json
import os
import re
import struct
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from lrtrain.errors import ConfigError, EnvironmentFault
from lrtrain.range_test.figure import draw_range_test, loss_window, save_range_test
from lrtrain.range_test.suggest import smooth, suggest
from lrtrain.schedule import figure
from lrtrain.schedule.figure import save_curve
from tests import independent_suggest as independent
from tests.forked import environment

CURVES = json.loads(independent.CURVES.read_text())


def texts(svg):
    """What an SVG says, in order."""
    found = re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text())
    return [text.replace("&amp;", "&") for text in found]


def first_line(svg):
    """Points (x, y) of the first curve, in the picture's units."""
    path = re.search(rf'<path d="([^"]*)"[^>]*stroke: {figure.COLOURS[0].lower()}', svg.read_text())[1]
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML] (\S+) (\S+)", path)])


def range_test_inputs(name):
    curve = CURVES[name]
    lrs, losses = np.array(curve["lrs"]), np.array(curve["losses"])
    return lrs, losses, smooth(losses), suggest(lrs, losses, curve["steps_planned"])


def test_a_png_of_readable_size_is_written(tmp_path):
    save_curve(tmp_path / "curve.PNG", {"default": [0.1, 0.05]}, 1, title="t")
    header = (tmp_path / "curve.PNG").read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", header[16:])
    assert (width, height) == (1350, 675)


def test_what_a_link_leads_to_is_not_written_over(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "curve.png").symlink_to("victim")
    save_curve(tmp_path / "curve.png", {"default": [0.1, 0.05]}, 1, title="t")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "curve.png").is_symlink()
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_pdf_is_written(tmp_path):
    save_curve(tmp_path / "curve.pdf", {"default": [0.1, 0.05]}, 1, title="t")
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")


def test_the_svg_names_groups_phases_axes_and_the_metric_that_decides(tmp_path):
    cosine = 0.05 * (1 + np.cos(np.linspace(0, np.pi, 300)))
    save_curve(
        tmp_path / "curve.svg",
        {"head": cosine, "^layer[12]$": cosine / 10, "_norm": cosine / 10},
        10,
        momentum={"all": np.linspace(0.95, 0.85, 300)},
        title="cost $5 & $6",
        live_from=200,
        monitor="val_acc1",
        phases=[("LinearLR", 0, 50), ("CosineAnnealingLR", 50, 200), ("ReduceLROnPlateau", 200, 300)],
    )
    said = texts(tmp_path / "curve.svg")
    for text in (
        "head",
        "^layer[12]$, _norm",
        "learning rate",
        "momentum",
        "epoch",
        "cost $5 & $6",
        "LinearLR",
        "CosineAnnealingLR",
        "ReduceLROnPlateau",
        "live: val_acc1",
    ):
        assert text in said, text


def test_a_name_that_begins_with_an_underscore_or_fills_pages_is_still_in_the_legend(tmp_path):
    save_curve(tmp_path / "c.svg", {"_stem": [1.0], "x" * 500: [2.0]}, 1, title="t")
    said = [text.strip() for text in texts(tmp_path / "c.svg")]
    assert "_stem" in said
    assert max(map(len, said)) < 40


def test_of_forty_groups_the_first_and_last_are_in_the_legend(tmp_path):
    save_curve(tmp_path / "c.svg", {f"layer{i}": [0.9**i] * 10 for i in range(40)}, 1, title="t")
    said = texts(tmp_path / "c.svg")
    assert {"layer0", "layer39", "... 24 more ..."} <= set(said)
    assert "layer20" not in said


def test_a_single_group_needs_no_legend(tmp_path):
    save_curve(tmp_path / "c.svg", {"default": [1.0, 2.0]}, 1, title="t")
    assert "default" not in texts(tmp_path / "c.svg")


def test_a_long_run_is_thinned_and_its_corners_stay():
    cyclic = np.abs((np.arange(450_000) % 90_001) - 45_000) / 45_000
    cyclic[123_456] = 2.0
    kept = figure._kept(cyclic)
    assert len(kept) < 5_000
    assert {0, 45_000, 90_000, 90_001, 123_456, 449_999} <= set(kept.tolist())


def test_a_step_is_drawn_as_a_step(tmp_path):
    save_curve(tmp_path / "c.svg", {"default": [0.1] * 50 + [0.01] * 50}, 10, title="t")
    points = first_line(tmp_path / "c.svg")
    moves = np.diff(points, axis=0)
    assert (np.abs(moves) < 1e-4).any(axis=1).all(), "only level and upright strokes"
    (drop,) = np.flatnonzero(np.abs(moves[:, 1]) > 1e-4)
    assert points[drop, 0] == pytest.approx((points[0, 0] + points[-1, 0]) / 2), "after 50 of 100 steps"


@pytest.mark.parametrize("name", ["curve.gif", "curve", ".png", "curve.png.txt"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path, name):
    with pytest.raises(ConfigError, match=r"\.png, \.svg, \.pdf") as refused:
        save_curve(tmp_path / name, {"default": [0.1]}, 1, title="t")
    assert "hint" in str(refused.value)
    lrs, losses, smoothed, found = range_test_inputs("flat")
    with pytest.raises(ConfigError):
        save_range_test(tmp_path / name, lrs, losses, smoothed, found, title="t", chosen="valley")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist_is_a_fault_of_the_environment(tmp_path):
    with pytest.raises(EnvironmentFault, match="cannot write the picture") as fault:
        save_curve(tmp_path / "nowhere" / "c.png", {"default": [0.1]}, 1, title="t")
    assert fault.value.exit_code == 5


def test_of_a_full_disk_the_fix_is_room(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lrtrain.schedule.figure.replacing", full)
    with pytest.raises(EnvironmentFault, match="make room, then try again"):
        save_curve(tmp_path / "c.png", {"default": [0.1]}, 1, title="t")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_a_fault_of_the_environment(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(EnvironmentFault):
        save_curve(tmp_path / "c.png", {"default": [0.1]}, 1, title="t")


def test_letters_that_the_font_lacks_do_not_warn(tmp_path):
    phases = [("木", 0, 1), ("b", 1, 2)]
    save_curve(tmp_path / "c.png", {"default": [0.1, 0.1]}, 1, title="日本\x1b[31m", phases=phases)


def test_no_latex_is_needed_where_a_person_draws_with_it(tmp_path):
    lrs, losses, smoothed, found = range_test_inputs("short")
    with mpl.rc_context({"text.usetex": True}):
        save_curve(tmp_path / "c.svg", {"a_b": [0.1, 0.05]}, 1, title="50 % of $x")
        save_range_test(tmp_path / "r.svg", lrs, losses, smoothed, found, title="50 % of $x", chosen="valley")
    for name in ("c.svg", "r.svg"):
        assert "50 % of $x" in texts(tmp_path / name)


def test_settings_that_matplotlib_refuses_are_named_before_a_sweep(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    environment = os.environ | {"MATPLOTLIBRC": str(tmp_path)}
    config = "steps: 20\nbatch_size: 8\nmodel: small_cnn\ndataset: digits\noptimizer: {name: SGD, lr: 0.1}\n"
    (tmp_path / "c.yaml").write_text(config + "schedule: fixed\n")
    words = [sys.executable, "-m", "lrtrain", "range-test", "c.yaml"]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 5, ended.stderr
    assert "matplotlib cannot be used" in ended.stderr
    # Jupyter sets this for the commands of a notebook, too; for files, no backend is asked.
    (tmp_path / "matplotlibrc").unlink()
    environment = os.environ | {"MPLBACKEND": "module://that_is_not.here"}
    words[3:] = ["preview", "c.yaml", "--plot", "c.png"]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_settings_in_the_working_folder_are_not_read(tmp_path):
    """They may be those of a run from elsewhere; before 3.11, matplotlib hands a cycle of theirs to `eval`."""
    (tmp_path / "matplotlibrc").write_text("font.size: 77\n")
    code = "from lrtrain.schedule.figure import import_matplotlib as m; import os; print(m().rcParams['font.size'], os.getcwd())"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert ended.stdout.split() == ["10.0", str(tmp_path)], ended.stderr


def test_importing_the_figures_does_not_import_matplotlib_or_torch():
    code = (
        "import sys, lrtrain.range_test.figure, lrtrain.schedule.draw; "
        "sys.exit(bool({'matplotlib', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["sgd_on_photos", "ends_in_nan", "never_diverges", "short", "too_short"])
def test_a_recorded_sweep_can_be_drawn(tmp_path, name):
    lrs, losses, smoothed, found = range_test_inputs(name)
    save_range_test(tmp_path / "r.svg", lrs, losses, smoothed, found, title="sweep", chosen="valley")
    said = " ".join(texts(tmp_path / "r.svg"))
    for word in ("minimum_tenth", *found.lrs()):
        assert (word.replace("minimum_tenth", "minimum/10") in said) == (word in found.lrs())
    assert ("stopped at" in said) == (len(lrs) < found.steps_planned)
    assert " ".join((found.caution or "").split()) in " ".join(said.split())
    picture = draw_range_test(lrs, smoothed, found, width=60, unicode=False)
    assert picture.isascii()
    assert max(map(len, picture.split("\n"))) <= 60
    assert draw_range_test(lrs, smoothed, width=40).count("\n") == 11


def test_the_explosion_does_not_flatten_the_valley():
    _, losses, smoothed, _ = range_test_inputs("two_valleys")
    low, high = loss_window(losses, smoothed)
    assert low < losses.min()
    assert smoothed[:100].max() < high < 4
    assert losses.max() > 100


def test_a_suggestion_below_the_sweep_is_named_but_not_placed(tmp_path):
    lrs, losses, smoothed, found = range_test_inputs("flat")
    save_range_test(tmp_path / "r.svg", lrs, losses, smoothed, found, title="sweep", chosen="valley")
    assert "minimum/10 5.01e-7 (below the sweep)" in texts(tmp_path / "r.svg")


def test_labels_of_suggestions_do_not_overlap(tmp_path):
    from matplotlib.figure import Figure

    chart = Figure(figsize=(6, 4), layout="constrained")
    panel = chart.subplots()
    panel.set(xscale="log", xlim=(1e-5, 1))
    near = [(1e-5, "steepest 1e-5"), (1.1e-5, "valley 1.1e-5"), (0.9, "slide 0.9"), (1.2e-5, "minimum/10 1e-5")]
    figure.label_above(chart, panel, near)
    chart.draw_without_rendering()
    boxes = [text.get_window_extent() for text in panel.texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = panel.get_window_extent()
    assert all(box.x0 >= frame.x0 - 2 and box.x1 <= frame.x1 + 2 for box in boxes)


def test_the_terminal_picture_marks_suggestions_on_its_axis():
    lrs, _, smoothed, found = range_test_inputs("sgd_on_photos")
    picture = draw_range_test(lrs, smoothed, found, width=80)
    assert "1 valley 0.0115   2 minimum/10 0.0316   3 steepest 0.0692   4 slide 0.55" in picture
    axis = picture.split("\n")[10]
    assert [c for c in axis if c.isdigit()] == ["1", "2", "3", "4"]
    assert picture.split("\n")[11].split() == ["1e-5", "1e-4", "1e-3", "0.01", "0.1", "1"]


def test_a_sweep_without_two_points_draws_nothing():
    nan = np.array([np.nan, np.nan])
    assert draw_range_test(np.array([1.0, 2.0]), nan, width=60) == ""
