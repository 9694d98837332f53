"""Where images come from, and every way in which that can be wrong."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lrtrain.data.files import FileSplit
from lrtrain.data.sources.imagefolder import unsplit
from lrtrain.data.stratify import hold_out
from lrtrain.errors import ConfigError, DataError
from tests.folders import image, opened, refused, tree

# digits


def test_digits_are_split_the_same_whatever_the_seed():
    one, two = opened(1, name="digits"), opened(2, name="digits")
    assert (len(one.train), len(one.val)) == (1437, 360)
    assert list(one.counts()["val"].values()) == [36] * 10
    assert np.array_equal(one.val.labels, two.val.labels)
    assert all(torch.equal(one.train.read(i), two.train.read(i)) for i in (0, 700, 1436))


def test_digits_are_scaled_to_bytes_and_their_statistics_are_right():
    source = opened(name="digits")
    pixels = torch.stack([source.train.read(i) for i in range(len(source.train))]).double() / 255
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert source.mean == pytest.approx([pixels.mean().item()], abs=1e-4)
    assert source.std == pytest.approx([pixels.std().item()], abs=1e-4)


# imagefolder


def test_train_and_val_folders_are_found_and_test_is_held_back(tmp_path):
    for split, n in (("train", 3), ("val", 2), ("test", 1)):
        tree(tmp_path / split, {"b": n, "a": n})
    source = opened(name="imagefolder", root=str(tmp_path))
    assert source.classes == ("a", "b")
    assert source.counts() == {"train": {"a": 3, "b": 3}, "val": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}}
    assert source.val_from == "val/"
    assert source.image_size == (8, 8)
    assert source.train.read(4).tolist() == torch.full((3, 8, 8), 0).index_fill_(0, torch.tensor(0), 1).tolist()


def test_without_a_val_folder_test_is_evaluated(tmp_path):
    tree(tmp_path / "train", {"a": 3, "b": 3})
    tree(tmp_path / "test", {"a": 1, "b": 1})
    source = opened(name="imagefolder", root=str(tmp_path))
    assert (source.val_from, source.test, len(source.val)) == ("test/", None, 2)


@pytest.mark.parametrize("inside", ["", "train"])
def test_one_tree_is_split_by_class(tmp_path, inside):
    tree(tmp_path / inside, {"a": 20, "b": 10})
    source = opened(name="imagefolder", root=str(tmp_path), val_fraction=0.2)
    assert source.counts() == {"train": {"a": 16, "b": 8}, "val": {"a": 4, "b": 2}}
    assert source.val_from == "20% of train, stratified"


def test_a_class_may_be_called_train(tmp_path):
    tree(tmp_path, {"bus": 4, "plane": 4, "train": 4})
    assert opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5).classes == ("bus", "plane", "train")


def test_the_held_out_part_depends_on_the_seed_and_not_on_the_order_of_files(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(50)]
    labels = np.repeat([0, 1], 50)

    def held(order, seed):
        split = FileSplit(tmp_path, [names[i] for i in order], labels[order], 3)
        return {split.names[i] for i in hold_out(split, ("a", "b"), 0.2, seed, lambda i: split.names[i])[1].chosen}

    order = np.arange(100)
    assert held(order, 1) == held(order[::-1].copy(), 1)
    assert held(order, 1) != held(order, 2)
    assert len(held(order, 1) - held(order[1:], 1)) <= 1


def test_root_may_start_with_a_tilde(tmp_path, monkeypatch):
    tree(tmp_path / "data", {"a": 2, "b": 2})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(opened(name="imagefolder", root="~/data", val_fraction=0.5).train) == 2


def test_gray_images_have_one_channel_where_asked(tmp_path):
    tree(tmp_path, {"a": 2, "b": 2})
    source = opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5, color="gray")
    assert (source.channels, source.train.read(0).shape[0]) == (1, 1)


def test_images_of_different_sizes_have_no_common_size(tmp_path):
    image(tree(tmp_path, {"a": 2, "b": 2}) / "a" / "9.png", (9, 8))
    assert opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5).image_size is None


def test_the_common_size_is_that_of_the_upright_images(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    tree(tmp_path, {"a": 2, "b": 2}, size=(9, 8))
    for suffix in ("jpg", "png", "tif", "webp"):
        Image.new("RGB", (8, 9)).save(tmp_path / "a" / f"turned.{suffix}", exif=turned)
    assert opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5).image_size == (8, 9)
    Image.new("RGB", (9, 8)).save(tmp_path / "a" / "9.jpg", exif=turned)
    assert opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5).image_size is None


@pytest.mark.parametrize(("size", "known"), [((9, 8), (8, 9)), ((90, 90), (90, 90)), ((90, 80), None)])
def test_of_some_headers_no_large_size_but_a_square_is_concluded(size, known, tmp_path, monkeypatch):
    tree(tmp_path, {"a": 3, "b": 3}, size=size)
    section = {"name": "imagefolder", "root": str(tmp_path), "val_fraction": 0.5}
    assert opened(**section).image_size == size[::-1]
    monkeypatch.setattr("lrtrain.data.files.ALL_HEADERS_UP_TO", 4)
    assert opened(**section).image_size == known


def test_litter_is_passed_over_and_counted(tmp_path):
    tree(tmp_path, {"a": 3, "b": 3})
    tree(tmp_path, {"__MACOSX": 1, ".ipynb_checkpoints": 1})
    for name in ("Thumbs.db", "._0.png", "notes.txt"):
        (tmp_path / "a" / name).write_bytes(b"x")
    (tmp_path / "README").write_text("x")
    source = opened(name="imagefolder", root=str(tmp_path), val_fraction=0.3)
    assert source.classes == ("a", "b")
    (note,) = source.notes
    assert "4 hidden or system files" in note
    assert "1 files outside the class folders" in note
    assert "1 files that are no images (.txt)" in note


def test_images_in_nested_folders_are_found_in_an_order_that_names_alone_decide(tmp_path):
    for name in ("b", "a/y", "a/x", "c"):
        image(tmp_path / "one" / f"{name}.png")
    image(tmp_path / "two" / "z.png")
    image(tmp_path / "two" / "z2.png")
    source = opened(name="imagefolder", root=str(tmp_path), val_fraction=0.01)
    paths = [os.path.relpath(source.train.whole.path(i), tmp_path) for i in range(6)]
    assert paths == ["one/a/x.png", "one/a/y.png", "one/b.png", "one/c.png", "two/z.png", "two/z2.png"]


def test_odd_class_names_are_only_names(tmp_path):
    names = ("[red]", "a\nb", "\x1b[31m", "‮abc")
    source = opened(name="imagefolder", root=str(tree(tmp_path, dict.fromkeys(names, 2))), val_fraction=0.5)
    assert source.classes == tuple(sorted(names))


def test_a_class_missing_from_val_is_noted(tmp_path):
    tree(tmp_path / "train", {"a": 2, "b": 2})
    tree(tmp_path / "val", {"a": 2})
    assert "no val images of 1 of 2 classes: b" in opened(name="imagefolder", root=str(tmp_path)).notes


MOVE = "classes belong into train/, val/ and test/ inside the root; move away what else is there"


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("Testing", "Training"), "rename Testing/ to test/, Training/ to train/"),
        (("Train", "val"), "rename Train/ to train/"),
        (("test", "valid"), "rename valid/ to val/"),
        (("test", "val"), MOVE),
        (("Train", "test", "training"), MOVE),
        (("Training",), "rename Training/ to train/"),
        (("docs", "seg_test", "seg_train"), "rename seg_test/ to test/, seg_train/ to train/"),
    ],
)
def test_splits_of_other_names_are_no_classes(tmp_path, names, hint):
    tree(tmp_path, {f"{name}/{label}": 3 for name in names for label in "ab"})
    for fraction in (None, 0.3):
        text = refused(DataError, name="imagefolder", root=str(tmp_path), val_fraction=fraction)
        assert text.endswith(f"would be taken for classes | {hint}")
    with pytest.raises(DataError, match="would be taken for classes"):
        unsplit(tmp_path)


def test_a_split_beside_the_classes_that_it_repeats_is_no_class(tmp_path):
    tree(tmp_path, dict.fromkeys(("cat", "dog", "test/cat", "test/dog"), 3))
    text = refused(DataError, name="imagefolder", root=str(tmp_path), val_fraction=0.3)
    assert text.endswith(f"has test/, which holds folders of classes and would be taken for classes | {MOVE}")


@pytest.mark.parametrize(
    "folders",
    [
        ("Bus", "Car", "Train/freight", "Train/passenger"),
        ("bullet_train/a", "bullet_train/b", "test_tube/a", "test_tube/c"),
        ("test/Control", "walk"),
    ],
)
def test_what_is_called_like_one_split_may_be_a_class(tmp_path, folders):
    tree(tmp_path, dict.fromkeys(folders, 4))
    found = opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5)
    assert found.classes == tuple(sorted({name.partition("/")[0] for name in folders}))


@pytest.mark.parametrize(
    "names", [("train", "Testing"), ("train", "val", "Test"), ("train", "Val"), ("train", "val", "Val")]
)
def test_splits_of_other_names_are_not_left_out_beside_train(tmp_path, names):
    tree(tmp_path, {f"{name}/{label}": 3 for name in names for label in "ab"})
    text = refused(DataError, name="imagefolder", root=str(tmp_path))
    assert f"has {names[-1]}/, which holds folders of classes and would be left out" in text
    assert ("rename" in text) == (names[-1] != "Val" or "val" not in names)


def test_a_class_called_train_does_not_make_the_others_vanish(tmp_path):
    tree(tmp_path, dict.fromkeys(("bus/day", "bus/night", "car/day", "train/day", "train/night"), 3))
    text = refused(DataError, name="imagefolder", root=str(tmp_path), val_fraction=0.3)
    assert "has train/ and bus/, car/ beside it, with folders of images that are called the same | " in text
    with pytest.raises(DataError, match="bus/, car/ beside it"):
        unsplit(tmp_path)


def test_what_lies_beside_train_is_told(tmp_path):
    tree(tmp_path, dict.fromkeys(("train/a", "train/b", "val/a", "val/b", "dev/a", "docs", "runs/plot"), 2))
    assert "passed over beside train/: dev/, docs/, runs/" in opened(name="imagefolder", root=str(tmp_path)).notes
    shutil.rmtree(tmp_path / "val")
    shutil.rmtree(tmp_path / "dev")
    found = opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5)
    assert found.classes == ("a", "b")
    assert "passed over beside train/: docs/, runs/" in found.notes


@pytest.mark.parametrize("names", [("test", "walk"), ("train_station", "walk"), ("Train", "walk")])
def test_a_class_may_be_called_as_a_split_where_it_holds_images(tmp_path, names):
    nested = "" if names[0] == "Train" else "/sub"
    tree(tmp_path, {f"{name}{nested}": 4 for name in names})
    assert opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5).classes == tuple(sorted(names))


def test_a_missing_root_is_shown_as_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = refused(DataError, name="imagefolder", root="~/no/such")
    assert f"does not exist: '{tmp_path}/no/such'" in text
    assert f"the part that exists is '{tmp_path}'" in text


def test_an_archive_as_root_is_refused(tmp_path):
    (tmp_path / "data.tar.xz").write_bytes(b"x")
    assert "is an archive | unpack it" in refused(DataError, name="imagefolder", root=str(tmp_path / "data.tar.xz"))


def test_a_folder_without_class_folders_is_refused(tmp_path):
    image(tmp_path / "0.png")
    assert "no class folders" in refused(DataError, name="imagefolder", root=str(tmp_path), val_fraction=0.5)


def test_one_class_only_is_refused(tmp_path):
    tree(tmp_path, {"a": 3})
    assert "two classes or more" in refused(DataError, name="imagefolder", root=str(tmp_path), val_fraction=0.5)


def test_all_problems_of_a_folder_are_reported_at_once(tmp_path):
    tree(tmp_path / "train", {"a": 2, "b": 2})
    tree(tmp_path / "val", {"a": 2, "stranger": 1})
    (tmp_path / "train" / "hollow").mkdir()
    (tmp_path / "train" / "texts").mkdir()
    (tmp_path / "train" / "texts" / "a.txt").write_text("x")
    (tmp_path / "train" / "a" / "broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "train" / "a" / "loop").symlink_to(tmp_path / "train" / "a")
    (tmp_path / "train" / "b" / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "train" / "b" / "pipe.jpg")
    text = refused(DataError, name="imagefolder", root=str(tmp_path))
    for expected in (
        "class 'hollow' is empty",
        "class 'texts' has no images",
        "only files of type .txt",
        "class 'stranger' is in val/ but not in train/",
        "broken.png' is a broken link",
        "loop' links to a folder that it lies in",
        "self.png' is a broken link",
        "pipe.jpg' is no regular file",
    ):
        assert expected in text


def test_unreadable_images_are_all_named_when_the_folder_is_opened(tmp_path):
    tree(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "1.png").write_bytes(b"")
    (tmp_path / "b" / "2.png").write_bytes(b"nothing")
    text = refused(DataError, name="imagefolder", root=str(tmp_path), val_fraction=0.5)
    assert "a/1.png" in text
    assert "b/2.png" in text


@pytest.mark.parametrize(
    ("folders", "fraction", "what"),
    [
        ({"a": 2, "b": 2}, None, "nothing to evaluate on"),
        ({"train/a": 2, "train/b": 2}, None, "has train/ but no val/"),
        ({"train/a": 2, "train/b": 2, "val/a": 1}, 0.1, "val_fraction 0.1 contradicts val/"),
    ],
)
def test_what_is_evaluated_must_be_clear(tmp_path, folders, fraction, what):
    tree(tmp_path, folders)
    arguments = {} if fraction is None else {"val_fraction": fraction}
    assert what in refused(ConfigError, name="imagefolder", root=str(tmp_path), **arguments)


def test_two_val_folders_are_refused(tmp_path):
    tree(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1})
    assert "val/ and valid/; which is evaluated?" in refused(DataError, name="imagefolder", root=str(tmp_path))


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    tree(tmp_path, {"a": 1, "b": 5})
    assert "'a' has 1" in refused(DataError, name="imagefolder", root=str(tmp_path), val_fraction=0.5)


def test_unknown_and_missing_arguments_of_our_sources_are_refused(tmp_path):
    assert "does not take 'colour'" in refused(ConfigError, name="imagefolder", root=str(tmp_path), colour="rgb")
    assert "imagefolder needs root" in refused(ConfigError, name="imagefolder")
    assert "color must be rgb or gray" in refused(ConfigError, name="imagefolder", root=str(tmp_path), color="blue")
    assert "digits does not take 'root'" in refused(ConfigError, name="digits", root=str(tmp_path))


# csv


def manifest(folder, *lines):
    tree(folder, {"i": 4})
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return {"name": "csv", "manifest": str(folder / "list.csv")}


def test_a_manifest_with_splits_is_read(tmp_path):
    source = opened(
        **manifest(
            tmp_path, "path,label,split", "i/1.png,10,train", "i/0.png,9,train", 'i/2.png,"10",val', "i/3.png,9,test"
        )
    )
    assert source.classes == ("9", "10")
    assert source.counts() == {"train": {"9": 1, "10": 1}, "val": {"9": 0, "10": 1}, "test": {"9": 1, "10": 0}}
    assert source.train.path(0).endswith("i/0.png")
    assert source.notes == ("no val images of 1 of 2 classes: 9", "no test images of 1 of 2 classes: 10")


def test_a_manifest_without_splits_needs_val_fraction(tmp_path):
    dataset = manifest(tmp_path, "path,label", "i/0.png,a", "i/1.png,a", "i/2.png,b", "i/3.png,b")
    assert "no rows of split val or test" in refused(ConfigError, **dataset)
    assert opened(**dataset, val_fraction=0.5).counts()["val"] == {"a": 1, "b": 1}


def test_paths_may_start_from_a_root(tmp_path):
    dataset = manifest(tmp_path / "data", "path,label", "0.png,a", "1.png,a", "2.png,b", "3.png,b")
    assert len(opened(**dataset, root=str(tmp_path / "data" / "i"), val_fraction=0.5).train) == 2


def test_every_wrong_row_is_named_with_its_line(tmp_path):
    dataset = manifest(
        tmp_path,
        "path,label,split",
        "i/0.png,a,train",
        "i/9.png,a,train",
        "i/1.png,,train",
        "i/0.png,b,val",
        "i/2.png,a,dev",
        "i/3.png,a,val,b",
        "i/3.png,a,",
        "i/3.png,a",
        '"i/2.png,a',
        "i/2.png,b",
    )
    with pytest.raises(DataError) as caught:
        opened(**dataset)
    lines = [(p.where.rpartition(":")[2], p.what) for p in caught.value.problems]
    assert [line for line, _ in lines] == [str(i) for i in range(3, 11)]
    wanted = ("no such file", "no label", "listed twice, first on line 2", "not 'dev'", "more cells", *["no split"] * 2)
    wanted = (*wanted, "quote closed?")
    for (_, what), expected in zip(lines, wanted, strict=True):
        assert expected in what


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["file,label", "i/0.png,a"], "has no column path"),
        (["path,label,split", "i/0.png,a,train", "i/1.png,b,val"], "label 'b' is in val but not in train"),
        (["path,label,split", "i/0.png,a,train", "i/1.png,a,val"], "only one class, 'a'"),
        (["path,label,split", "i/0.png,a,val"], "lists no training images"),
    ],
)
def test_a_manifest_that_cannot_be_trained_on_is_refused(tmp_path, lines, what):
    assert what in refused(DataError, **manifest(tmp_path, *lines))


def test_a_missing_manifest_is_refused(tmp_path):
    assert "cannot read the manifest" in refused(DataError, name="csv", manifest=str(tmp_path / "no.csv"))
