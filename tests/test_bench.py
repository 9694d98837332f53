"""What scripts/bench makes of its clocks. Nothing here asks how long anything took."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench_parts import beside, folders, task
from bench_parts.contestants.lrtrain_fit import config_of
from bench_parts.measure import _reason, in_turns, run_command
from bench_parts.rows import Check, Row, fastest, ratio, row_of
from bench_parts.table import short, write_json
from bench_parts.task import Clock, Task, read_task
from bench_parts.training import LINEUP, LRTRAIN, LRTRAIN_FP32, Window, _with_ratios, checks, images_per_second
from lrtrain.config import yaml
from lrtrain.config.load import resolve
from lrtrain.data.build import make_pipeline
from lrtrain.data.open import open_source
from tests.conftest import Ended

CIFAR = Task(
    part="contestants.bare",
    root="images",
    work="work",
    model="small_cnn",
    size=32,
    augment="crop",
    batch=64,
    classes=2,
    steps=5,
    per_epoch=4,
    workers=0,
    threads=1,
)
# The middle of each contestant's values.
MEDIANS = {
    "bare loop, fp32 NCHW": 500.0,
    "bare loop, fp32 at its best": 800.0,
    "bare loop, best precision at its best": 1000.0,
    LRTRAIN_FP32: 780.0,
    LRTRAIN: 940.0,
    "torchvision-style loop": 400.0,
    "Lightning": 450.0,
    "fastai": 300.0,
    "timm": 350.0,
}


def lineup(title: str = "window", **medians: float | None) -> list[Row]:
    """A row for every contestant; None where there is nothing to be said of one."""
    rows = []
    for who in LINEUP:
        middle = medians.get(who.name, MEDIANS[who.name])
        rows.append(Row(title, who.name, "images/s", [] if middle is None else [middle + 9, middle, middle - 1]))
    return _with_ratios(rows)


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_a_row_has_the_median_of_the_repeats_that_did_not_fail() -> None:
    good = [{"value": v, "peak_mib": 10 * v, "start_up_seconds": v / 2, "loss": [v, 0.5]} for v in (3.0, 1.0, 2.5)]
    row = row_of("s", "n", "s", [*good, {"error": "exit code 1: no memory"}])
    assert (row.values, row.median) == ([3.0, 1.0, 2.5], 2.5)
    assert (row.peak_mib, row.start_up_seconds, row.worker_peak_mib) == (25.0, 1.25, None)
    assert row.loss == [2.5, 0.5]
    assert row.note == "failed: exit code 1: no memory"
    assert row.dump()["median"] == 2.5


def test_a_row_of_nothing_but_failures_has_no_median() -> None:
    row = row_of("s", "n", "s", [{"error": "exit code 2: first"}, {"error": "second"}], [])
    assert (row.values, row.median, row.note) == ([], None, "failed: exit code 2: first")


def test_a_row_takes_the_values_that_it_is_given_for_those_of_the_answers() -> None:
    assert row_of("s", "n", "s", [{"value": 1.0}], [7.0]).values == [7.0]


def test_a_ratio_is_the_first_median_over_the_second() -> None:
    two, eight = Row("s", "two", "s", [1.0, 2.0, 90.0]), Row("s", "eight", "s", [8.0])
    assert ratio(two, eight) == 0.25
    assert ratio(eight, two) == 4.0


@pytest.mark.parametrize("other", [None, Row("s", "empty", "s"), Row("s", "zero", "s", [0.0])])
def test_there_is_no_ratio_to_what_was_not_measured(other: Row | None) -> None:
    assert ratio(Row("s", "one", "s", [1.0]), other) is None
    assert ratio(None, other) is None


def test_the_fastest_has_the_highest_median_not_the_highest_value() -> None:
    steady, lucky = Row("s", "steady", "s", [5.0, 5.0, 5.0]), Row("s", "lucky", "s", [1.0, 2.0, 50.0])
    assert fastest([Row("s", "absent", "s"), lucky, steady]) is steady
    assert fastest([Row("s", "absent", "s")]) is None


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [
        (1.0, True, "met"),
        (0.99, True, "not met"),
        (None, True, "not measured"),
        (0.99, False, "met"),
        (1.0, False, "not met"),
        (None, False, "not measured"),
    ],
)
def test_a_threshold_is_at_least_reached_or_else_stayed_below(
    value: float | None, at_least: bool, verdict: str
) -> None:
    check = Check("what", value, 1.0, at_least=at_least)
    assert check.verdict == check.dump()["verdict"] == verdict


def test_a_window_counts_its_own_steps_and_the_time_since_the_step_before() -> None:
    found = {"seconds": [1.0, 3.0, 4.0, 8.0, 16.0], "images": [1, 10, 100, 1000, 10_000]}
    assert images_per_second(found, 1, 3) == 110 / (4.0 - 1.0)
    assert images_per_second(found, 2, 5) == 11_100 / (16.0 - 3.0)


def test_a_window_from_the_first_step_counts_from_when_the_first_batch_was_asked_for() -> None:
    assert images_per_second({"seconds": [2.0, 3.0], "images": [4, 8]}, 0, 2) == 12 / 3.0


def test_each_is_compared_with_the_fastest_bare_loop_in_its_own_precision_and_the_fastest_peer() -> None:
    rows = by_name(lineup())
    assert rows[LRTRAIN].ratios == {"bare": 0.94, "fastest peer": 940 / 450}
    assert rows[LRTRAIN_FP32].ratios == {"bare": 780 / 800, "fastest peer": 780 / 450}
    assert rows["fastai"].ratios == {"bare": 300 / 800, "fastest peer": 300 / 450}
    assert rows["bare loop, fp32 NCHW"].ratios["bare"] == 500 / 800


def test_nothing_is_compared_with_itself() -> None:
    rows = by_name(lineup())
    assert list(rows["Lightning"].ratios) == ["bare"]
    assert list(rows["bare loop, fp32 at its best"].ratios) == ["fastest peer"]


def test_who_is_not_installed_has_no_ratio_and_is_nobodys_fastest() -> None:
    rows = by_name(lineup(Lightning=None))
    assert rows["Lightning"].ratios == {}
    assert rows[LRTRAIN].ratios["fastest peer"] == 940 / 400


def verdicts(key: str, rows: list[Row], *titles: str) -> list[tuple[float | None, str]]:
    windows = [Window(title, 0, 1) for title in titles or ("window",)]
    return [(check.value, check.verdict) for check in checks(key, rows, windows)]


def test_the_thresholds_of_the_resnet_are_of_the_bare_loop_and_over_the_peers() -> None:
    assert verdicts("a", lineup()) == [
        (0.94, "not met"),
        (780 / 800, "met"),
        (940 / 450, "met"),
        (780 / 450, "met"),
    ]


def test_the_thresholds_of_the_small_network_are_its_own() -> None:
    assert verdicts("b", lineup()) == [(0.94, "met"), (940 / 450, "not met")]


def test_photos_have_a_threshold_for_each_of_two_windows() -> None:
    rows = lineup("first") + lineup("later", **{LRTRAIN: 500.0})
    assert verdicts("c", rows, "first", "later") == [(940 / 450, "met"), (500 / 450, "not met")]


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_what_was_not_measured_meets_no_threshold(key: str) -> None:
    absent = lineup(**dict.fromkeys(MEDIANS))
    for rows in ([], absent):
        assert set(verdicts(key, rows, "window", "later")) == {(None, "not measured")}


def test_the_thresholds_name_contestants_that_there_are() -> None:
    assert {LRTRAIN, LRTRAIN_FP32} <= {who.name for who in LINEUP} == set(MEDIANS)


@pytest.mark.parametrize("who", LINEUP, ids=lambda who: who.name)
def test_every_contestant_has_a_file(who: Any) -> None:
    assert importlib.util.find_spec(f"bench_parts.contestants.{who.part}") is not None


def test_contestants_take_turns_and_each_round_starts_with_another() -> None:
    calls: list[str] = []

    def run(name: str) -> dict[str, Any]:
        calls.append(name)
        return {"value": len(calls)}

    found = in_turns({"a": "A", "b": "B", "c": "C"}, 4, run, lambda text: None)
    assert "".join(calls) == "ABC" + "BCA" + "CAB" + "ABC"
    assert [one["value"] for one in found["b"]] == [2, 4, 9, 11]


def test_one_that_fails_is_not_tried_again_and_the_others_go_on() -> None:
    told: list[str] = []
    answers: dict[str, Iterator[dict[str, Any]]] = {
        "good": iter([{"value": 1.0}] * 3),
        "bad": iter([{"value": 1.0}, {"error": "no memory"}]),
    }
    found = in_turns({name: name for name in answers}, 3, lambda name: next(answers[name]), told.append)
    assert [len(found["good"]), found["bad"]] == [3, [{"value": 1.0}, {"error": "no memory"}]]
    assert told == [
        "1 of 3: good",
        "1 of 3: bad",
        "2 of 3: bad",
        "bad failed: no memory",
        "2 of 3: good",
        "3 of 3: good",
    ]


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Say what the clock will show."""

    def show(times: list[float]) -> None:
        left = iter(times)
        monkeypatch.setattr(task.time, "perf_counter", lambda: next(left))

    return show


def test_the_clock_tells_seconds_since_it_began_and_the_images_of_each_step(
    seconds: Callable[[list[float]], None],
) -> None:
    seconds([100.0, 101.5, 104.0])
    clock = Clock(2)
    clock.begin()
    clock.step(64)
    assert not clock.done
    clock.step(16)
    assert clock.done
    assert clock.report() == {"seconds": [1.5, 4.0], "images": [64, 16], "loss": None}


def test_the_clock_tells_the_mean_loss_of_the_first_and_the_last_tenth() -> None:
    import torch

    clock = Clock(20)
    for step in range(20):
        clock.step(1, torch.tensor(float(step), requires_grad=True))
    assert clock.report()["loss"] == [0.5, 18.5]
    assert not clock.losses[0].requires_grad


def test_a_task_reads_back_as_it_was_written(tmp_path: Path) -> None:
    wanted = replace(CIFAR, variant={"precision": "auto", "groups": 2})
    (tmp_path / "task.json").write_text(wanted.dump())
    assert read_task(str(tmp_path / "task.json")) == wanted


@pytest.mark.parametrize(("augment", "size"), [("crop", 32), ("resized_crop", 24)])
def test_a_task_makes_a_config_that_lrtrain_takes(augment: str, size: int, tiny_cifar10: Path) -> None:
    variant = {"precision": "fp32", "checkpoint": {"every": "2step"}}
    wanted = replace(CIFAR, root=str(tiny_cifar10), augment=augment, size=size, variant=variant)
    config = resolve(yaml.parse(json.dumps(config_of(wanted)), "bench.yaml"))
    assert (str(config.steps), config.batch_size, config.model.name) == ("5", 64, "small_cnn")
    assert (config.precision, str(config.checkpoint.every), str(config.eval_every)) == ("fp32", "2step", "5step")
    source = open_source(config.dataset, config.seed, config.where)
    pipeline = make_pipeline(source, config.dataset, seed=config.seed, where=config.where)
    assert pipeline.shape == (3, size, size)
    assert (len(source.train), len(source.val)) == (256, 64)


def test_folders_are_linked_class_by_class_in_turn_and_again_where_there_are_not_enough(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "a/3", "b/1"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    assert folders.count(tmp_path / "from") == 4
    for images, expected in ((3, ["a/1", "a/2", "b/1"]), (6, ["a/1", "a/1", "a/2", "a/3", "b/1", "b/1"])):
        made = tmp_path / f"to-{images}"
        assert folders.linked(tmp_path / "from", made, images) == 2
        assert sorted(path.read_text() for path in made.glob("*/*")) == expected
        assert all(path.read_text().startswith(path.parent.name) for path in made.glob("*/*"))


def test_a_command_must_end_with_the_exit_code_that_was_expected(tmp_path: Path) -> None:
    words = [sys.executable, "-S", "-c", "print('starting'); raise SystemExit('error: full')"]
    assert set(run_command(words, 1, 1, str(tmp_path))) == {"value", "peak_mib"}
    assert run_command(words, 0, 1, str(tmp_path)) == {"error": "exit code 1: error: full"}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("10 %\rTraceback\nerror: full\n  hint: less\n", "error: full"),
        ("Traceback\nKilled\n\n", "Killed"),
        (" \n", "no output"),
    ],
)
def test_the_reason_of_a_failure_is_the_line_that_says_error_or_else_the_last(output: str, reason: str) -> None:
    assert _reason(output) == reason


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Task], dict[str, Any]]) -> None:
    monkeypatch.setattr(beside, "run_task", answer)


def test_lr_control_is_judged_as_a_share_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {2: 5e-5, 50: 2e-4}
    answering(monkeypatch, lambda asked: {"value": costs[asked.variant["groups"]], "beside": 1e-2})
    rows, found = beside.lr_control(CIFAR, 3, lambda text: None)
    assert [row.median for row in rows] == pytest.approx([50.0, 200.0])  # us
    assert [check.value for check in found] == pytest.approx([0.5, 2.0])  # %
    assert [check.verdict for check in found] == ["met", "not met"]


def test_what_failed_beside_training_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, lambda asked: {"error": "exit code 1: no memory"})
    rows, found = beside.lr_control(CIFAR, 3, lambda text: None)
    assert {row.note for row in rows} == {"failed: exit code 1: no memory"}
    assert {check.verdict for check in found} == {"not measured"}


def test_checkpoints_cost_what_steps_with_a_save_take_longer_than_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # The end of each step. The first two, of another speed, are the warm-up; a save follows steps 3 and 6.
    seconds = [7.0, 15.0, 16.0, 17.5, 18.5, 19.5, 20.75, 21.75]
    asked: list[Any] = []

    def answer(task: Task) -> dict[str, Any]:
        asked.append(task.variant["checkpoint"])
        return {"seconds": seconds, "images": [64] * 8}

    answering(monkeypatch, answer)
    eight = replace(CIFAR, steps=8)
    (speed, each, lost), (check,) = beside.checkpoint(eight, 2, 3, 2, lambda text: None)
    assert asked == [{"every": "3step"}] * 2
    assert speed.values == pytest.approx([64 * 6 / 6.75] * 2)
    assert each.values == pytest.approx([0.375] * 2)
    assert lost.values == pytest.approx([100 * 0.75 / 6.75] * 2)
    assert (check.value, check.verdict) == (pytest.approx(100 * 0.75 / 6.75), "not met")


def test_the_first_start_of_a_command_is_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: dict[str, Iterator[float]] = {}

    def run(words: tuple[str, ...], *rest: Any) -> dict[str, Any]:
        slow = 2.0 if "preview" in words else 1.0
        return {"value": next(shown.setdefault(" ".join(words), iter([99.0, slow, slow])))}

    monkeypatch.setattr(beside, "run_command", run)
    rows, (check,) = beside.start_up(tmp_path, 1, 2, lambda text: None)
    preview = next(row for row in rows if "preview" in row.name)
    assert preview.values == [2.0, 2.0]
    assert preview.ratios == {"import torch": 2.0}
    assert (check.value, check.verdict) == (2.0, "met")


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.917, "1.92"), (4044.4, "4,044"), (100.0, "100"), (-250.6, "-251")]
)
def test_numbers_have_three_digits_or_all_whole_ones(value: float, text: str) -> None:
    assert short(value) == text


def test_programs_get_the_values_of_every_repeat(tmp_path: Path) -> None:
    write_json(tmp_path / "b.json", {"memory": "1 GiB"}, [Row("s", "n", "s", [1.0, 3.0])], [Check("w", None, 1.0)])
    found = json.loads((tmp_path / "b.json").read_text())
    assert (found["rows"][0]["values"], found["rows"][0]["median"]) == ([1.0, 3.0], 2.0)
    assert found["thresholds"][0]["verdict"] == "not measured"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "a,d"], "--only d: choose from a,b,c,lr-control"),
        ([], "--cifar10 DIR is needed for a,b,lr-control"),
        (["--only", "c"], "--photos DIR is needed for c"),
        (["--only", "c", "--photos", "nowhere"], "--photos nowhere: there is no train/ in it"),
        (["--only", "start-up", "--steps", "1"], "--steps is at least 2"),
        (["--only", "start-up", "--repeats", "-1"], "--repeats, --threads and --photo-images are at least 1"),
        (["--only", "start-up", "--workers", "two"], "--workers: invalid int value"),
    ],
)
def test_a_mistake_in_the_arguments_ends_the_benchmark_at_once(
    script: Callable[..., Ended], arguments: list[str], message: str
) -> None:
    ended = script("bench", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_more_steps_than_there_are_images_for_are_refused(script: Callable[..., Ended], tiny_cifar10: Path) -> None:
    ended = script("bench", "--only", "b", "--cifar10", tiny_cifar10, "--steps", "3")
    assert ended.code == 1
    assert f"--steps 3: {tiny_cifar10} has images for 2 steps of 128" in ended.err


def test_the_benchmark_measures_and_writes_what_it_shows(
    script: Callable[..., Ended], tiny_cifar10: Path, tmp_path: Path
) -> None:
    chosen = ("--quick", "--only", "lr-control", "--steps", "2", "--workers", "0", "--threads", "1")
    ended = script("bench", *chosen, "--cifar10", tiny_cifar10, "--json", "found.json")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["Plan.write, 2 groups", "Plan.write, 50 groups"]
    assert all(row["median"] > 0 and row["name"] in ended.out for row in found["rows"])
    for row, check in zip(found["rows"], found["thresholds"], strict=True):
        assert check["value"] == 100 * row["ratios"]["bare small CNN step"]
        assert check["verdict"] in ("met", "not met")
