"""A dataset's fingerprint: what changes it, what does not, and what is said of a change."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from lrtrain.data.fingerprint import differences, fingerprint
from lrtrain.data.pairs import PairSplit
from lrtrain.errors import DataError
from tests.folders import image, opened, tree


def folders(root):
    tree(root / "train", {"ants": 4, "bees": 3})
    tree(root / "val", {"ants": 2, "bees": 1})
    return {"name": "imagefolder", "root": str(root)}


def listed(root):
    tree(root, {"i": 4})
    rows = ["path,label,split", "i/0.png,a,train", "i/1.png,b,train", "i/2.png,a,val", "i/3.png,b,test"]
    (root / "list.csv").write_text("\n".join(rows))
    return {"name": "csv", "manifest": str(root / "list.csv")}


def listed_absolutely(root):
    dataset = listed(root)
    (root / "list.csv").write_text((root / "list.csv").read_text().replace("i/", f"{root}/i/"))
    return dataset


def shards(root):
    pytest.importorskip("webdataset")
    for split, n in (("train", 4), ("val", 2)):
        for i in range(n):
            image(root / split / f"{i}.png", value=i)
            (root / split / f"{i}.cls").write_text(str(i % 2))
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for path in sorted((root / split).iterdir()):
                tar.add(path, path.name)
    return {"name": "webdataset", "train": str(root / "train.tar"), "val": str(root / "val.tar")}


def test_members_of_a_shard_in_another_order_are_another_dataset(tmp_path, monkeypatch):
    """Images are trained on in the order of the tar file, within a class and between classes."""
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "cache"))
    dataset = shards(tmp_path)
    found = [fingerprint(opened(**dataset))]
    for order in ("0213", "1032"):  # the classes take turns: the first swaps images of one, the second the classes
        with tarfile.open(tmp_path / "train.tar", "w") as tar:
            for key in order:
                for suffix in ("cls", "png"):
                    tar.add(tmp_path / "train" / f"{key}.{suffix}", f"{key}.{suffix}")
        found.append(fingerprint(opened(**dataset)))
    assert found[0] != found[1] != found[2] != found[0]
    assert "their order differ" in differences(found[0], found[2])[0]


@pytest.mark.parametrize("made", [folders, listed, listed_absolutely, shards])
def test_a_dataset_that_was_moved_and_touched_has_the_same_fingerprint(tmp_path, made, monkeypatch):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "cache"))
    before = fingerprint(opened(**made(tmp_path / "here")))
    shutil.move(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "there")
    dataset = made(tmp_path / "there")
    for path in (tmp_path / "there").rglob("*.*"):
        os.utime(path, (1, 1))
    assert fingerprint(opened(**dataset)) == before
    assert differences(before, before) == []


def test_it_counts_each_class_of_each_split_and_is_plain_data(tmp_path):
    found = fingerprint(opened(**folders(tmp_path)))
    counts = {split: {name: part["images"] for name, part in classes.items()} for split, classes in found.items()}
    assert counts == {"train": {"ants": 4, "bees": 3}, "val": {"ants": 2, "bees": 1}}
    assert json.loads(json.dumps(found)) == found


def add(root):
    image(root / "train" / "ants" / "9.png")


def remove(root):
    (root / "train" / "ants" / "0.png").unlink()


def rename(root):
    (root / "val" / "bees" / "0.png").rename(root / "val" / "bees" / "1.png")


def resize(root):
    image(root / "val" / "bees" / "0.png", (80, 80))


def relabel(root):
    (root / "train" / "ants" / "3.png").rename(root / "train" / "bees" / "3.png")


def new_class(root):
    tree(root / "train", {"wasps": 2})


def new_split(root):
    tree(root / "test", {"ants": 3})


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (add, ["train/ants: 4 images when the run began, 5 now"]),
        (remove, ["train/ants: 4 images when the run began, 3 now"]),
        (
            rename,
            [
                "val/bees: 1 image as when the run began, but not the same ones: names, sizes, pixels or their order differ"
            ],
        ),
        (
            resize,
            [
                "val/bees: 1 image as when the run began, but not the same ones: names, sizes, pixels or their order differ"
            ],
        ),
        (relabel, ["train/ants: 4 images when the run began, 3 now", "train/bees: 3 images when the run began, 4 now"]),
        (
            new_class,
            [
                "train/wasps: no such class when the run began, 2 images now",
                "val/wasps: no such class when the run began, 0 images now",
            ],
        ),
        (new_split, ["test: not there when the run began, 3 images now"]),
    ],
)
def test_a_change_is_said_in_words(tmp_path, change, lines):
    dataset = folders(tmp_path)
    before = fingerprint(opened(**dataset))
    change(tmp_path)
    assert differences(before, fingerprint(opened(**dataset))) == lines


def test_what_is_held_out_belongs_to_it(tmp_path):
    dataset = {"name": "imagefolder", "root": str(tree(tmp_path, {"a": 20, "b": 20})), "val_fraction": 0.2}
    one, two = (fingerprint(opened(seed, **dataset)) for seed in (1, 2))
    assert one == fingerprint(opened(1, **dataset))
    assert len(differences(one, two)) == 4


def test_labels_tell_where_there_are_no_files():
    source = opened(name="digits")
    assert fingerprint(source) == fingerprint(opened(name="digits"))
    before = fingerprint(replace(source, val=PairSplit("digits", None, source.val.labels, 1)))
    labels = source.val.labels.copy()
    labels[[0, 1]] = labels[[1, 0]]
    changed = fingerprint(replace(source, val=PairSplit("digits", None, labels, 1)))
    assert {line.split(":")[0] for line in differences(before, changed)} == {f"val/{c}" for c in labels[:2]}


def test_pixels_of_some_tell_where_there_are_no_files():
    source = opened(name="digits")

    def of(value):
        pairs = [(np.full((8, 8), value if i == 20 else i % 7, np.uint8), i % 2) for i in range(40)]
        split = PairSplit("own", pairs, np.array([label for _, label in pairs]), 1)
        return fingerprint(replace(source, val=split))

    assert of(1) == of(1)
    assert [line.split(":")[0] for line in differences(of(1), of(2))] == ["val/0"]


def test_two_classes_of_one_name_are_kept_apart():
    labels = np.array([0, 0, 1], dtype=np.int64)
    split = PairSplit("x", None, labels, 1)
    found = fingerprint(replace(opened(name="digits"), classes=("crane", "crane"), train=split, val=split))
    assert [part["images"] for part in found["train"].values()] == [2, 1]


def test_a_file_that_is_gone_is_named(tmp_path):
    source = opened(**folders(tmp_path))
    remove(tmp_path)
    with pytest.raises(DataError, match=r"ants/0\.png"):
        fingerprint(source)


def test_names_that_are_no_utf8_have_a_fingerprint(tmp_path):
    dataset = folders(tmp_path)
    os.rename(tmp_path / "train" / "ants" / "0.png", os.path.join(os.fsencode(tmp_path), b"train/ants/\xff.png"))
    assert json.dumps(fingerprint(opened(**dataset)))
