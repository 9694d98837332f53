"""Arguments of transforms that torchvision takes and that must not be: each is refused at once, by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lrtrain import lookup
from lrtrain.data.known_transforms import draws, nested
from lrtrain.data.transforms import build_steps
from tests.hostile import Typed, assert_clear


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "{steps: 2, batch_size: 96, model: {name: small_cnn, width: 4}, dataset: digits, "
        "optimizer: {name: SGD, lr: 0.05}, workers: 0}"
    )
    return Typed(monkeypatch, capfd)


def built(entry: dict[str, Any]) -> Any:
    return build_steps([entry], ["c.yaml"])[0].transform


# the transform, words of the error
REFUSED = [
    ("{name: RandomApply, transforms: [null]}", ("RandomApply's transforms", "got None")),
    ("{name: RandomApply, transforms: [3]}", ("RandomApply's transforms", "got 3")),
    ("{name: RandomApply, transforms: [{a: 1}]}", ("a mapping with a name", "{'a': 1}")),
    ("{name: Compose, transforms: [{name: 3}]}", ("a mapping with a name", "{'name': 3}")),
    ("{name: RandomApply, transforms: GaussianBlur}", ("must be a list", "'GaussianBlur'")),
    ("{name: Compose, transforms: [Mirror]}", ("there is no transform 'Mirror'",)),
    ("{name: Compose, transforms: [{name: Pad, paddin: 1}]}", ("Pad has no argument 'paddin'",)),
    ("{name: Compose, transforms: [{name: Normalize, mean: [0], std: [0]}]}", ("Normalize's std",)),
    ("{name: Grayscale, num_output_channels: x}", ("num_output_channels must be 1 or 3", "'x'")),
    ("{name: Grayscale, num_output_channels: [3]}", ("num_output_channels must be 1 or 3", "[3]")),
    ("{name: Grayscale, num_output_channels: 2}", ("num_output_channels must be 1 or 3",)),
    ("{name: Normalize, mean: [0.5], std: [0]}", ("Normalize's std", "got [0]", "such as std: [")),
    ("{name: Normalize, mean: [0.5], std: [-0.5]}", ("Normalize's std",)),
    ("{name: Normalize, mean: [0.5], std: [1.0e-320]}", ("Normalize's std",)),
    ("{name: Normalize, mean: [a], std: [1]}", ("Normalize's mean", "['a']")),
    ("{name: Normalize, mean: [.inf], std: [1]}", ("mean must be a finite number",)),
    ("{name: Normalize, mean: [], std: [1]}", ("Normalize's mean",)),
    ("{name: RandomRotation, degrees: 1.0e+308, expand: true}", ("RandomRotation's degrees", "at most 1e+06")),
    ("{name: RandomErasing, scale: [5, 1]}", ("RandomErasing's scale", "the lower first", "[5, 1]")),
    ("{name: RandomErasing, scale: [0.3, 0.02]}", ("RandomErasing's scale", "the lower first")),
    ("{name: RandomErasing, ratio: [3, 0.3]}", ("RandomErasing's ratio",)),
    ("{name: RandomErasing, ratio: [0, 1]}", ("RandomErasing's ratio",)),
    ("{name: RandomResizedCrop, size: 8, scale: [0, 0]}", ("RandomResizedCrop's scale", "not both 0")),
    ("{name: RandomResizedCrop, size: 8, scale: [-1, 1]}", ("RandomResizedCrop's scale",)),
    ("{name: RandomResizedCrop, size: 8, ratio: [0, 0]}", ("RandomResizedCrop's ratio",)),
    ("{name: RandomResizedCrop, size: 8, ratio: [2, 1]}", ("RandomResizedCrop's ratio", "the lower first")),
    ("{name: RandAugment, num_ops: 1000000}", ("RandAugment's num_ops", "at most 100")),
    ("{name: RandAugment, magnitude: 31}", ("RandAugment's magnitude", "below num_magnitude_bins, 31")),
    ("{name: RandAugment, num_magnitude_bins: 1000000000}", ("num_magnitude_bins", "at most 1000")),
    ("{name: TrivialAugmentWide, num_magnitude_bins: 1}", ("num_magnitude_bins", "at least 2")),
    ("{name: RandAugment, num_magnitude_bins: 1, magnitude: 0}", ("num_magnitude_bins", "at least 2")),
    ("{name: TrivialAugmentWide, num_magnitude_bins: 1000000000}", ("num_magnitude_bins", "at most 1000")),
    ("{name: AugMix, chain_depth: 1000000}", ("AugMix's chain_depth", "at most 100")),
    ("{name: AugMix, mixture_width: 1000000}", ("AugMix's mixture_width", "at most 100")),
    ("{name: Compose, transforms: [{name: RandAugment, num_ops: 1000000}]}", ("RandAugment's num_ops",)),
    ("{name: GaussianBlur, kernel_size: 50001}", ("GaussianBlur's kernel_size", "at most 1001")),
    ("{name: ElasticTransform, sigma: 10000}", ("ElasticTransform's sigma", "at most 125")),
    ("{name: RandomZoomOut, side_range: [1, 100000]}", ("RandomZoomOut would make 800,000 x 800,000 pixels",)),
    ("{name: ScaleJitter, target_size: [100000, 100000]}", ("ScaleJitter would make 200,000 x 200,000",)),
    ("{name: ScaleJitter, target_size: [8, 8], scale_range: [1, 100000]}", ("ScaleJitter would make",)),
    ("{name: ScaleJitter, target_size: 8}", ("ScaleJitter does not take these arguments",)),
    ("{name: RandomShortestSize, min_size: 100000}", ("RandomShortestSize would make 100,000 x 100,000",)),
    ("{name: RandomShortestSize, min_size: [8, 100000], max_size: 90000}", ("would make 90,000 x 90,000",)),
    ("{name: RandomResize, min_size: 99998, max_size: 100000}", ("RandomResize would make 99,999 x 99,999",)),
    ("{name: Resize, size: 99998, max_size: 99999}", ("Resize would make 99,998 x 99,998",)),
    ("{name: Resize, size: null, max_size: 99999}", ("Resize would make 99,999 x 99,999",)),
    ("{name: Resize, size: 8, max_size: x}", ("Resize does not take these arguments",)),
    ("{name: RandomCrop, size: 8, padding: 100000}", ("RandomCrop would make 200,008 x 200,008",)),
    ("{name: Pad, padding: [a, b]}", ("Pad does not take these arguments",)),
    ("{name: Compose, transforms: [{name: CenterCrop, size: 100000}]}", ("CenterCrop would make 100,000",)),
    ("{name: RandomApply, transforms: [{name: RandomZoomOut, side_range: [1, 9000]}]}", ("RandomZoomOut would",)),
    ("{name: CenterCrop, size: 0}", ("CenterCrop must make one image of one", "1x0x0")),
]  # fmt: skip


@pytest.mark.parametrize(("transform", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_it_is_refused_at_once(typed: Typed, transform: str, words: tuple[str, ...]) -> None:
    ending = "{name: Resize, size: [8, 8]}"
    more = f"dataset.transforms={{train: [{transform}, {ending}], val: [{ending}]}}"
    assert_errors(typed("fit", "c.yaml", "--set", more), *words)


def assert_errors(ended: Any, *words: str) -> None:
    assert "bug in lrtrain" not in ended.err
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: "), ended.err
    for word in words:
        assert word in " ".join(ended.err.split()), ended.err


def test_what_a_list_asks_for_wrongly_is_said_with_all_else_and_where_it_stands(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(
        "steps: 2\nbatch_size: 0\nmodel: small_cnn\noptimizer: {name: SGD, lr: 0.1}\ndataset:\n  name: digits\n"
        "  transforms:\n    train:\n      - name: Compose\n        transforms:\n"
        "          - RandomHorizontalFlip\n          - name: RandomErasing\n            scale: [2, 1]\n"
    )
    ended = typed("preview", "d.yaml")
    assert_clear(ended, 2, "d.yaml:2 batch_size", "d.yaml:13 dataset.transforms.train[0].transforms[1].scale")


def test_a_turned_image_is_as_large_as_its_frame(typed: Typed, tmp_path: Path) -> None:
    from tests.folders import image

    for name in "ab":
        for i in range(2):
            image(tmp_path / "data" / name / f"{i}.png", (100_000, 1 + i))
    turned = (
        "dataset.transforms={train: [{name: RandomRotation, degrees: %s, expand: true}, {name: Resize, size: [8, 8]}]}"
    )
    data = ["--set", "dataset.name=imagefolder", "--set", "dataset.root=data", "--set", "dataset.val_fraction=0.5"]
    ended = typed("fit", "c.yaml", *data, "--set", turned % "[0, 90]")
    assert_clear(ended, 3, "RandomRotation would make 70,71")
    assert "would make" not in typed("fit", "c.yaml", *data, "--set", turned % "[0, 0]").err
    ended = typed("fit", "c.yaml", *data, "--set", turned % "1.0e+6")  # at once, and not after all right angles
    assert_clear(ended, 3, "RandomRotation would make 70,71")


RANDOM = [
    "GaussianNoise",
    "{name: Compose, transforms: [{name: RandomCrop, size: 8, padding: 4}]}",
    "{name: RandomApply, transforms: [GaussianNoise]}",
    "{name: Compose, transforms: [{name: Compose, transforms: [RandomVerticalFlip]}]}",
    "ElasticTransform",
    "{name: ScaleJitter, target_size: [8, 8]}",
    "{name: GaussianBlur, kernel_size: 3}",
    "{name: GaussianBlur, kernel_size: 3, sigma: [0.5, 0.6]}",
    "{name: JPEG, quality: [50, 90]}",
    '"torchvision.transforms.v2:GaussianNoise"',
]


@pytest.mark.parametrize("transform", RANDOM)
def test_evaluation_must_not_be_random(typed: Typed, transform: str) -> None:
    ended = typed("fit", "c.yaml", "--set", f"dataset.transforms={{val: [{transform}, {{name: Resize, size: 8}}]}}")
    assert_clear(ended, 2, "evaluation must not be random, and", "move it to transforms.train")


@pytest.mark.parametrize(
    "transform",
    [
        "{name: GaussianBlur, kernel_size: 3, sigma: 0.5}",
        pytest.param("{name: JPEG, quality: 90}", marks=pytest.mark.filterwarnings("ignore:The image decoding")),
        "{name: GaussianNoise, sigma: 0}",
        "{name: ScaleJitter, target_size: [8, 8], scale_range: [1, 1]}",
        "{name: Compose, transforms: [{name: Resize, size: 8}, Identity]}",
        "{name: RandomErasing, scale: [0, 0.3]}",
        "{name: RandomResizedCrop, size: 8, scale: [0, 1.5]}",
        "{name: RandAugment, num_ops: 3, magnitude: 30}",
        "{name: RandomZoomOut, side_range: [1, 2]}",
    ],
)
def test_what_makes_sense_is_taken(typed: Typed, transform: str) -> None:
    split = "train" if "Random" in transform or "RandAugment" in transform else "val"
    rest = "{name: Resize, size: [8, 8]}, {name: ToDtype, dtype: float32, scale: true}"
    ended = typed("fit", "c.yaml", "--smoke", "--set", f"dataset.transforms={{{split}: [{transform}, {rest}]}}")
    assert ended.code == 0, ended.err


ARGUMENTS: dict[str, Any] = {
    "size": 8, "padding": 1, "bits": 4, "threshold": 100, "sharpness_factor": 2, "degrees": 10, "mean": [0.5, 0.4, 0.3],
    "std": [0.5, 0.4, 0.3], "quality": [1, 90], "target_size": [8, 8], "min_size": 8, "max_size": 20, "kernel_size": 3,
    "transforms": ["RandomHorizontalFlip", "RandomVerticalFlip"], "clamping_mode": "soft", "format": "XYXY",
    "num_samples": 1, "dtype": "float32",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(lookup.names("transform"))))
def test_whatever_of_torchvision_draws_is_known_to(name: str) -> None:
    """All of the installed version, so that what a new one brings is noticed here."""
    takes = lookup.arguments("transform", name)
    assert takes is not None
    try:
        transform = built({"name": name, **{key: ARGUMENTS[key] for key in takes.required if key in ARGUMENTS}})
        image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        image = image / 255 if name in ("Normalize", "RandomAdjustSharpness") else image
        made = []
        for seed in range(20):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                made.append(transform(image.clone()))
    except Exception:
        return  # it cannot be used here at all: it needs boxes or a function
    differs = any(one.shape != made[0].shape or not torch.equal(one, made[0]) for one in made if torch.is_tensor(one))
    assert not differs or any(map(draws, nested(transform)))
