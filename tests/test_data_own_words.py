"""Where a dataset says one thing in two places, what its images say counts, and what is written down is found again."""

from __future__ import annotations

import os
import sys
import tarfile
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from lrtrain.build import build
from lrtrain.commands.evaluate import _refuse_other_held_out
from lrtrain.config.load import resolve
from lrtrain.config.yaml import Document
from lrtrain.data.loader import Order, Workshop
from lrtrain.errors import ConfigError, DataError
from tests.folders import noise, opened, refused, tree


def of_ones_own(monkeypatch, train, val):
    """A dataset by import path that returns these two."""
    mine = types.ModuleType("my_data")
    mine.__dict__["both"] = lambda: (train, val)
    monkeypatch.setitem(sys.modules, "my_data", mine)
    return opened(name="my_data:both")


class Pairs:
    """Items as given, and whatever attributes."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def pairs(labels, **attributes):
    return Pairs([(torch.full((1, 8, 8), i, dtype=torch.uint8), label) for i, label in enumerate(labels)], **attributes)


def test_a_list_of_labels_that_the_items_contradict_is_not_believed(monkeypatch):
    labels = [i % 2 for i in range(40)]
    listed = list(labels)
    listed[7] = 1 - listed[7]  # neither the first, the last nor the one in the middle
    source = of_ones_own(monkeypatch, pairs(labels, targets=listed), pairs([0, 1]))
    assert source.train.labels.tolist() == labels


def test_images_are_gray_only_if_all_that_are_looked_at_are(monkeypatch):
    def images(modes):
        return Pairs([(Image.new(mode, (8, 8)), i % 2) for i, mode in enumerate(modes)])

    gray = of_ones_own(monkeypatch, images(["L"] * 6), images(["L"] * 2))
    mixed = of_ones_own(monkeypatch, images(["L", *["RGB"] * 5]), images(["RGB"] * 2))
    assert (gray.channels, mixed.channels) == (1, 3)
    assert mixed.train.read(0).shape == (3, 8, 8)


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Named .png in a folder that a class of the user's opens, which reads whatever Pillow can."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    for i, label in enumerate("ab"):
        for split in ("train", "val"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / f"{i}.png").write_bytes(eps)
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *command, **_: started.append(command))
    monkeypatch.setattr(Image, "ID", ["EPS"])

    class Mine(ImageFolder):
        pass

    with pytest.raises(DataError, match="Ghostscript"):
        of_ones_own(monkeypatch, Mine(tmp_path / "train"), Mine(tmp_path / "val"))
    assert not started


def test_images_that_a_transform_leaves_of_two_types_make_no_batch():
    class Sometimes:
        def __call__(self, image):
            return image.double() if image.float().mean() > 76 else image

    split = opened(name="digits").train
    workshop = Workshop("train", split, SimpleNamespace(prepare=Sometimes(), to_sample=lambda image, i, moment: image))
    (problem,) = workshop[Order(np.arange(64), None)].problems
    assert "leave images of different types: torch." in problem.what


@pytest.mark.parametrize("column", ["Split", "split ", "SPLIT"])
def test_a_column_of_almost_the_right_name_is_refused(tmp_path, column):
    tree(tmp_path, {"i": 4})
    rows = [f"i/{i}.png,{'ab'[i % 2]},{'train' if i < 2 else 'val'}" for i in range(4)]
    (tmp_path / "list.csv").write_text("\n".join([f"path,label,{column}", *rows]))
    said = refused(DataError, name="csv", manifest=str(tmp_path / "list.csv"), val_fraction=0.5)
    assert f"has a column {column!r} | write split, small and without blanks" in said


def test_the_skip_list_that_check_writes_of_whole_paths_is_read(tmp_path):
    tree(tmp_path, {"i": 6})
    rows = [f"{tmp_path}/i/{i}.png,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "skip.txt").write_text("i/5.png\n")
    skipping = opened(
        name="csv", manifest=str(tmp_path / "list.csv"), val_fraction=0.4, skip_list=str(tmp_path / "skip.txt")
    )
    assert len(skipping.train) + len(skipping.val) == 5


def config(**changes):
    return resolve(
        Document(
            "c.yaml",
            {
                "seed": 1,
                "steps": 2,
                "batch_size": 4,
                "model": "small_cnn",
                "optimizer": {"name": "SGD", "lr": 0.1},
                "device": "cpu",
                **changes,
            },
        )
    )


def test_the_config_of_a_run_names_a_manifest_by_the_link_that_was_named(tmp_path, monkeypatch):
    """Its images lie beside the link, not where that leads to."""
    tree(tmp_path, {"i": 8}, size=(16, 16))
    (tmp_path / "store").mkdir()
    rows = [f"i/{i}.png,{'ab'[i % 2]}" for i in range(8)]
    (tmp_path / "store" / "v3.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "now.csv").symlink_to("store/v3.csv")
    monkeypatch.chdir(tmp_path)
    made = build(config(dataset={"name": "csv", "manifest": "now.csv", "val_fraction": 0.5}))
    assert made.config.dataset.args["manifest"] == str(tmp_path / "now.csv")
    again = build(made.config)
    before = [os.path.abspath(made.source.train.path(i)) for i in range(4)]
    assert [again.source.train.path(i) for i in range(4)] == before


@pytest.mark.parametrize(
    "own",
    [
        {"splits": {"train": 0.5, "val": {"root": "a"}}, "manifest": "v2", "skip_list": "none"},
        {"splits": ["train"], "manifest": ["a.csv"], "skip_list": 1},
    ],
)
def test_arguments_of_a_dataset_of_ones_own_are_its_own(monkeypatch, own):
    """Whatever they are called, the run's config.yaml has them as they were given."""
    mine = types.ModuleType("my_data")
    mine.__dict__["both"] = lambda **_: (pairs([0, 1] * 4), pairs([0, 1]))
    monkeypatch.setitem(sys.modules, "my_data", mine)
    dataset = {"name": "my_data:both", **own}
    assert build(config(dataset=dataset)).config.dataset.args == config(dataset=dataset).dataset.args


@pytest.mark.parametrize("kind", ["imagefolder", "ImageFolder", "webdataset"])
def test_a_folder_that_the_config_of_a_run_cannot_name_is_refused(tmp_path, monkeypatch, kind):
    here = noise(tmp_path / "caf\udce9", {"train": 4, "val": 4})
    monkeypatch.chdir(here)
    dataset = {"root": "."}
    if kind == "ImageFolder":
        dataset = {"splits": {split: {"root": split} for split in ("train", "val")}}
    elif kind == "webdataset":
        pytest.importorskip("webdataset")
        monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "cache"))
        with tarfile.open("t.tar", "w") as tar:
            for i in range(8):
                (here / "label").write_text("ab"[i % 2])
                tar.add("label", f"{i}.cls")
                tar.add(f"train/{'ab'[i % 2]}/{i // 2}.png", f"{i}.png")
        dataset = {"train": ["t.tar"], "val_fraction": 0.5}
    with pytest.raises(ConfigError) as caught:
        build(config(dataset={"name": kind, **dataset}))
    (problem,) = caught.value.problems
    assert "must be UTF-8 text, for the run's config.yaml" in problem.what
    assert problem.where.startswith("c.yaml  dataset.")


@pytest.mark.parametrize(("change", "refuses"), [({"seed": 2}, True), ({"val_fraction": 0.25}, True), ({}, False)])
def test_evaluate_holds_out_what_was_held_out_while_training(tmp_path, change, refuses):
    noise(tmp_path, {"all": 8})
    data = {"name": "imagefolder", "root": str(tmp_path / "all"), "val_fraction": 0.5}
    own = config(dataset=data)
    asked = config(
        seed=change.get("seed", 1), dataset={**data, "val_fraction": change.get("val_fraction", data["val_fraction"])}
    )
    if refuses:
        with pytest.raises(ConfigError, match="would hold out other images"):
            _refuse_other_held_out(asked, own)
    else:
        _refuse_other_held_out(asked, own)
    elsewhere = config(seed=2, dataset={**data, "root": str(tmp_path)})
    _refuse_other_held_out(elsewhere, own)
