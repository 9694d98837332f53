"""scripts/accuracy compares what it says it compares. Whether lrtrain learns the same is for the program to say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lrtrain.data.augment
from accuracy_parts import main
from accuracy_parts.lists import LISTS, NORMALIZE, torchvisions
from accuracy_parts.plain import Plain
from accuracy_parts.runs import Setting, config_of, run
from accuracy_parts.verdict import Comparison, compare
from lrtrain.build import build
from lrtrain.config import yaml
from lrtrain.config.load import resolve
from tests.conftest import Ended

# Python 3.12 warns of fork beside threads; torch's workers are made for it.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def plain(root: Path, name: str = "crop", seed: int = 1) -> Plain:
    return Plain(str(root), LISTS[name], seed=seed, batch_size=96, workers=1)


def test_the_lists_have_every_transform_that_lrtrain_does_batch_by_batch() -> None:
    batched = {path.stem for path in Path(lrtrain.data.augment.__file__).parent.glob("[A-Z]*.py")}
    assert batched == {entry["name"] for entries in LISTS.values() for entry in entries}


@pytest.mark.parametrize("name", LISTS)
def test_lrtrain_does_the_whole_list_batch_by_batch_on_images_in_memory(name: str, tiny_cifar10: Path) -> None:
    config = config_of(Setting(str(tiny_cifar10), 1, 64, 2), LISTS[name], 1)
    job = build(resolve(yaml.parse(json.dumps(config), "accuracy")))
    assert job.pipeline.train.once == job.pipeline.train.per_sample == ()
    # Normalize converts too.
    assert [step.name for step in job.pipeline.train.per_batch] == [
        entry["name"] for entry in LISTS[name] if entry["name"] != "ToDtype"
    ]
    assert "memory" in " ".join(job.batches.kept_words)


@pytest.mark.parametrize("name", LISTS)
def test_torchvision_applies_the_same_list_to_one_pil_image(name: str) -> None:
    made = torchvisions(LISTS[name])
    names = [type(transform).__name__ for transform in made.transforms]
    assert [one for one in names if one not in ("ToImage", "ToPureTensor")] == [e["name"] for e in LISTS[name]]
    image = made(Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)))
    assert (type(image), image.dtype, image.shape) == (torch.Tensor, torch.float32, (3, 32, 32))


def test_both_evaluate_on_the_same_numbers(tiny_cifar10: Path) -> None:
    config = config_of(Setting(str(tiny_cifar10), 1, 96, 0), NORMALIZE, 1)
    ours = build(resolve(yaml.parse(json.dumps(config), "accuracy"))).batches.evaluate("val")
    for one, other in zip(ours, plain(tiny_cifar10).evaluate("val"), strict=True):
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-5)
        assert torch.equal(one.labels, other.labels)
        assert one.total == other.total == 64


def test_plain_batches_are_whole_and_shuffled_anew_in_every_epoch(tiny_cifar10: Path) -> None:
    batches = list(plain(tiny_cifar10).train(0, 5))  # two an epoch, of 256 images
    assert [batch.total for batch in batches] == [96] * 5
    labels = [batch.labels.tolist() for batch in batches]
    assert len({tuple(one) for one in labels}) == 5
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)


def test_plain_batches_follow_from_the_seed_whatever_the_engine_does_to_the_generator(tiny_cifar10: Path) -> None:
    def first_of_each_epoch(seed: int, engine: int) -> list[torch.Tensor]:
        found = []
        for step, batch in enumerate(plain(tiny_cifar10, seed=seed).train(0, 3)):
            torch.manual_seed(engine)
            found += [batch.images] if step % 2 == 0 else []
        return found

    one, same, other = (first_of_each_epoch(*seeds) for seeds in ((1, 5), (1, 6), (2, 5)))
    assert all(map(torch.equal, one, same))
    assert not any(map(torch.equal, one, other))


def test_plain_batches_begin_at_the_first_step(tiny_cifar10: Path) -> None:
    with pytest.raises(ValueError, match="begins at step 0, not 2"):
        plain(tiny_cifar10).train(2, 4)


def test_both_ways_start_from_the_same_weights_and_take_as_many_steps(tiny_cifar10: Path) -> None:
    setting = Setting(str(tiny_cifar10), 1, 96, 1)
    ours, other, next_seed = (
        run(setting, LISTS["crop"], seed, plain=plain) for seed, plain in ((1, False), (1, True), (2, False))
    )
    assert ours.initial == other.initial != next_seed.initial
    assert ours.steps == other.steps == 2


def comparison(difference: float, half: float) -> Comparison:
    return Comparison("list", (50.0,), (50.0,), difference, difference - half, difference + half)


@pytest.mark.parametrize(
    ("difference", "half", "verdict", "reason"),
    [
        (0.25, 0.5, "met", ""),
        (-0.5, 0.5, "met", ""),
        (1.0, 1.0, "met", ""),
        (0.75, 0.5, "not met", "0 is outside the interval"),
        (-0.75, 0.5, "not met", "0 is outside the interval"),
        (0.0, 1.5, "not met", "the interval is wider than +-1 points, take more --seeds or --epochs"),
        (float("nan"), float("nan"), "not met", "0 is outside the interval"),
    ],
)
def test_the_verdict_needs_zero_in_an_interval_that_is_narrow(
    difference: float, half: float, verdict: str, reason: str
) -> None:
    found = comparison(difference, half)
    assert found.verdict == found.dump()["verdict"] == verdict
    assert (found.reasons or [""])[0] == reason


def test_an_interval_that_is_far_off_and_wide_says_both() -> None:
    assert len(comparison(9.0, 2.0).reasons) == 2


def test_without_any_spread_the_interval_is_the_difference() -> None:
    found = compare("list", [50.0, 50.0], [49.0, 49.0])
    assert (found.low, found.difference, found.high, found.verdict) == (1.0, 1.0, 1.0, "not met")


def test_the_interval_is_welchs() -> None:
    pytest.importorskip("scipy")
    # Equal spreads: 4 degrees of freedom, t = 2.7764; the standard error is sqrt(1 / 3 + 1 / 3).
    found = compare("list", [52.0, 53.0, 54.0], [51.0, 52.0, 50.0])
    assert found.difference == pytest.approx(2.0)
    assert (found.high + found.low) / 2 == pytest.approx(2.0)
    assert found.half_width == pytest.approx(2.776445 * (2 / 3) ** 0.5, rel=1e-5)
    # Where all the spread is on one side, only its degrees of freedom are left: 2, t = 4.3027.
    steady = compare("list", [52.0, 53.0, 54.0], [51.0, 51.001, 50.999])
    assert steady.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-4)


def test_a_missing_scipy_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_cifar10: Path
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr(sys, "argv", ["accuracy", "--quick", "--cifar10", str(tiny_cifar10)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert "the interval needs scipy: scripts/install bench, or pip install scipy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "crop,flip"], "--only flip: choose from crop,resized-crop"),
        (["--seeds", "1"], "--seeds is at least 2"),
        (["--workers", "0"], "--workers are at least 1"),
        (["--images", "127"], "--images 127: less than one batch of 128"),
        (["--images", "300"], "has 256"),
        (["--cifar10", "nowhere"], "--cifar10 nowhere: there is no train/ in it"),
    ],
)
def test_a_mistake_in_the_arguments_ends_the_comparison_at_once(
    script: Callable[..., Ended], tiny_cifar10: Path, arguments: list[str], message: str
) -> None:
    ended = script("accuracy", "--cifar10", tiny_cifar10, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_the_comparison_runs_and_a_quick_one_judges_nothing(
    script: Callable[..., Ended], tiny_cifar10: Path, tmp_path: Path
) -> None:
    pytest.importorskip("scipy")
    chosen = ("--quick", "--threads", "1", "--workers", "1")
    ended = script("accuracy", *chosen, "--cifar10", tiny_cifar10, "--json", "found.json")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "found.json").read_text())
    ways = found["accuracies"]["crop"]
    assert [len(ways["lrtrain"]), len(ways["torchvision"])] == [2, 2]
    (one,) = found["comparisons"]
    assert (one["ours"], one["plain"], one["verdict"]) == (ways["lrtrain"], ways["torchvision"], "not judged")
    assert one["difference"] == pytest.approx(sum(one["ours"]) / 2 - sum(one["plain"]) / 2)
    assert all(f"{accuracy:.2f}" in ended.out for accuracy in (*one["ours"], *one["plain"]))
    assert "the figures mean nothing" in ended.out


def verdict_code(monkeypatch: pytest.MonkeyPatch, root: Path, difference: float) -> int:
    found = [comparison(0.0, 0.5), comparison(difference, 0.5)]
    monkeypatch.setattr(main, "_all_runs", lambda args, setting: ({"list": {"lrtrain": [1.0] * 2}}, found))
    monkeypatch.setattr(main.importlib.util, "find_spec", lambda name: "there")
    argv = ["accuracy", "--seeds", "2", "--images", "128", "--cifar10", str(root), "--threads"]
    monkeypatch.setattr(sys, "argv", [*argv, str(torch.get_num_threads())])
    return main.main()


def test_one_verdict_that_is_not_met_ends_the_program_with_1(
    monkeypatch: pytest.MonkeyPatch, tiny_cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict_code(monkeypatch, tiny_cifar10, 0.25) == 0
    assert "not met" not in capsys.readouterr().out
    assert verdict_code(monkeypatch, tiny_cifar10, 0.75) == 1
    assert "not met: 0 is outside the interval" in capsys.readouterr().out
