"""`lrtrain evaluate` of a run's own data, part of which was held out of training."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lrtrain.commands.evaluate import _data_of
from lrtrain.config.schema import RunConfig
from tests.folders import noise
from tests.hostile import Typed, assert_clear

CONFIG = """
seed: 1
steps: 2
batch_size: 8
model: {name: small_cnn, width: 4}
dataset: {name: imagefolder, root: here/photos, val_fraction: 0.25}
optimizer: {name: SGD, lr: 0.01}
"""


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    monkeypatch.chdir(tmp_path)
    return Typed(monkeypatch, capfd)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """c.yaml, and here/photos, of two classes."""
    root = tmp_path / "here" / "photos"
    root.parent.mkdir()
    noise(root.parent, {"photos": 12})
    (tmp_path / "c.yaml").write_text(CONFIG)
    return root


def test_a_skip_list_after_training_holds_out_no_images_that_were_trained_on(typed: Typed, photos: Path) -> None:
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    assert typed("evaluate", "run").code == 0
    shutil.copytree(photos, "copy")
    ended = typed("evaluate", "run", "--set", "dataset.root=copy")
    assert (ended.code, "warning" in ended.out + ended.err) == (0, False), ended.err
    skipped = sorted(photos.rglob("*.*"))[0]
    Path("skip.txt").write_text(f"{skipped.relative_to(photos)}\n")
    evaluate = ("evaluate", "run", "--set", "dataset.skip_list=skip.txt")
    assert_clear(typed(*evaluate), 3, "holds out some that were trained on", "a: 9 images when the run began, 8 now")
    skipped.unlink()
    assert_clear(typed("evaluate", "run"), 3, "holds out some that were trained on", "restore the dataset")
    photos.rename(photos.with_name("others"))
    moved = ("evaluate", "run", "--set", "dataset.root=here/others")
    ended = typed(*moved)
    assert ended.code == 0, ended.err
    assert "as they were (train/a: 9 images when the run began, 8 now): if some" in " ".join(ended.out.split())


def test_another_dataset_is_evaluated_with_the_transforms_of_the_run(typed: Typed, photos: Path) -> None:
    config = yaml.safe_load(CONFIG)
    ending = {"name": "Normalize", "mean": [0.1] * 3, "std": [0.3] * 3}
    config["dataset"]["transforms"] = {"train": [{"name": "Resize", "size": [9, 9]}, ending]}
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    again = "dataset={name: imagefolder, root: here/photos, val_fraction: 0.25}"
    plain = again.replace("}", ", transforms: {val: [{name: CenterCrop, size: 9}]}}")
    ended = [typed("evaluate", "run", *more) for more in ((), ("--set", again), ("--set", plain))]
    assert [each.code for each in ended] == [0, 0, 0], ended[1].err
    losses = [re.findall(r"loss +([\d.]+)", each.out) for each in ended]
    assert losses[0] == losses[1] != losses[2] != []


NORMALIZE = "{name: Normalize, mean: [0.1, 0.1, 0.1], std: [0.3, 0.3, 0.3]}"


@pytest.mark.parametrize(
    "asked",
    [
        "dataset.transforms.val=null",
        "dataset.transforms={train: null, val: null}",
        "dataset.transforms.val=[{name: Compose, transforms: [{name: Resize, size: [9, 9]}, ToTensor]}]",
        f"dataset.transforms.val=[{{name: Compose, transforms: [ToTensor, {{name: Resize, size: 9}}, {NORMALIZE}]}}]",
        "dataset.transforms={train: null, val: [{name: Resize, size: [9, 9]}]}",
        "dataset.transforms={train: [{name: CenterCrop, size: 99}], val: [{name: Resize, size: [9, 9]}]}",
        "dataset={name: imagefolder, root: here/photos, val_fraction: 0.25, transforms: {train: null, val: null}}",
        "dataset={name: imagefolder, root: here/photos, val_fraction: 0.25, transforms: {val: [{name: Resize, size: 9}]}}",
    ],
)
def test_images_are_normalised_as_the_runs_are(typed: Typed, photos: Path, asked: str) -> None:
    config = yaml.safe_load(CONFIG)
    whole = [{"name": "Resize", "size": [9, 9]}, {"name": "Normalize", "mean": [0.1] * 3, "std": [0.3] * 3}]
    config["dataset"]["transforms"] = {"train": whole, "val": copy.deepcopy(whole)}
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    ended = [typed("evaluate", "run", *more) for more in ((), ("--set", asked))]
    assert [each.code for each in ended] == [0, 0], ended[1].err
    assert len({tuple(re.findall(r"loss +([\d.]+)", each.out)) for each in ended}) == 1


def test_images_that_are_normalised_otherwise_are_refused_and_an_empty_list_is_one(typed: Typed, photos: Path) -> None:
    config = yaml.safe_load(CONFIG)
    config["dataset"]["transforms"] = {"val": [{"name": "Resize", "size": [9, 9]}, {"name": "CenterCrop", "size": 8}]}
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    other = "dataset.transforms.val=[{name: Normalize, mean: [0.9, 0.9, 0.9], std: [0.1, 0.1, 0.1]}]"
    assert_clear(
        typed("evaluate", "run", "--set", other), 2, "train and val normalise differently", "mean [0.9, 0.9, 0.9]"
    )
    bytes_ = "dataset.transforms.val=[{name: ToDtype, dtype: float32}]"
    assert_clear(typed("evaluate", "run", "--set", bytes_), 2, "scale")
    ended = [
        typed("evaluate", "run", *more)
        for more in ((), ("--set", "dataset.transforms.val=[]"), ("--set", "dataset.transforms.val=[Identity]"))
    ]
    assert [each.code for each in ended] == [0, 0, 0], [each.err for each in ended]
    losses = [re.findall(r"loss +([\d.]+)", each.out) for each in ended]
    assert losses[0] != losses[1] == losses[2]


def test_what_makes_gray_images_by_code_of_ones_own_makes_others_gray_too(
    typed: Typed, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_gray.py").write_text("def gray():\n    return lambda image: image[:1]\n")
    lists = [{"name": "own_gray:gray"}, {"name": "Normalize", "mean": [0.5], "std": [0.3]}]
    config = yaml.safe_load(CONFIG)
    config["dataset"]["transforms"] = {"train": lists, "val": copy.deepcopy(lists)}
    config["model"] = {"name": "own_net:net"}
    Path("own_net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    Path("c.yaml").write_text(yaml.safe_dump(config))
    ended = typed("fit", "c.yaml", "--out", "run")
    assert ended.code == 0, ended.err
    shutil.copytree(photos, "copy")
    ended = typed("evaluate", "run", "--trust", "--set", "dataset.root=copy")
    assert ended.code == 0, ended.err


def test_images_that_the_runs_train_list_does_not_take_are_evaluated(typed: Typed, photos: Path) -> None:
    config = yaml.safe_load(CONFIG)
    noise(photos.parent, {"large": 12}, size=(32, 32))
    config["dataset"] |= {"root": "here/large", "transforms": {"train": [{"name": "RandomCrop", "size": 24}]}}
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    noise(photos.parent, {"small": 4}, size=(20, 20))
    ended = typed("evaluate", "run", "--set", "dataset={name: imagefolder, root: here/small, val_fraction: 0.5}")
    assert ended.code == 0, ended.err


def test_an_image_of_another_size_is_no_other_hold_out(typed: Typed, photos: Path) -> None:
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    with sorted(photos.rglob("*.*"))[0].open("ab") as file:
        file.write(b"a comment behind it")
    ended = typed("evaluate", "run")
    assert ended.code == 0, ended.err
    assert "warning: these are not the run's images as they were" in " ".join(ended.out.split())


def test_what_other_arguments_choose_are_other_images() -> None:
    def data(**args: str) -> RunConfig:
        section = {"name": "own:make", "val_fraction": 0.2, **args}
        return RunConfig.model_validate({**yaml.safe_load(CONFIG), "dataset": section})

    assert _data_of(data(part="a")) != _data_of(data(part="b"))
    assert _data_of(data(skip_list="a")) == _data_of(data(skip_list="b")) == _data_of(data())


def test_test_images_may_come_and_go_after_training(typed: Typed, photos: Path) -> None:
    train, test = photos / "train", photos / "test"
    noise(photos, {"train": 12})
    shutil.rmtree(photos / "a")
    shutil.rmtree(photos / "b")
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    shutil.copytree(train, test)
    for split in ("test", "val", "train"):
        ended = typed("evaluate", "run", "--split", split)
        assert ended.code == 0, ended.err
    ended = typed("fit", "--resume", "--out", "run", "--extend", "hold", "--set", "steps=3")
    assert ended.code == 0, ended.err
    sorted(train.rglob("*.*"))[0].unlink()
    assert typed("evaluate", "run", "--split", "test").code == 0
    assert_clear(typed("evaluate", "run", "--split", "val"), 3, "holds out some that were trained on: train/a:")


def test_a_skip_list_that_names_the_root_as_the_config_does_holds_for_the_run_too(typed: Typed, photos: Path) -> None:
    names = [file.relative_to(Path.cwd()) for file in sorted(photos.rglob("*.*"))[::12]]
    Path("skip.txt").write_text("".join(f"{name}\n" for name in names))
    ended = typed("fit", "c.yaml", "--out", "run", "--set", "dataset.skip_list=skip.txt")
    assert ended.code == 0, ended.err
    assert "left out: 2 images" in ended.out
    for again in (("evaluate", "run"), ("fit", "--resume", "--out", "run", "--extend", "hold", "--set", "steps=3")):
        ended = typed(*again)
        assert ended.code == 0, ended.err
