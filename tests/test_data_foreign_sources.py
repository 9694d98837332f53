"""Datasets of torchvision, by name."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import os
import pickle
import re
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import MNIST

from lrtrain.data.torchvision_source import _refuse_unreadable_matlab, pairs_source, torchvision_source
from lrtrain.errors import ConfigError, DataError, EnvironmentFault
from tests.folders import image, opened, refused, tree


def write_mnist(root, n):
    """The four files of MNIST's own format, n images each, as torchvision expects them after unpacking."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.arange(n, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    for name in ("train", "t10k"):
        head = b"\0\0\x08\x03" + n.to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(i % 10 for i in range(n))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + n.to_bytes(4, "big") + labels)
        with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(b"")


def test_torchvisions_mnist_is_read_with_its_own_split(tmp_path):
    write_mnist(tmp_path, 20)
    source = opened(name="MNIST", root=str(tmp_path))
    assert (source.channels, source.image_size, len(source.train), len(source.val)) == (1, (28, 28), 20, 20)
    assert source.classes[3] == "3 - three"
    assert (source.train.read(7) == 7).all()
    assert not source.mirrored_is_same
    assert source.mean == (0.1307,)


def test_val_fraction_of_a_dataset_with_a_test_split_holds_that_back(tmp_path):
    write_mnist(tmp_path, 40)
    source = opened(name="MNIST", root=str(tmp_path), val_fraction=0.25)
    assert (len(source.train), len(source.val), len(source.test)) == (30, 10, 40)


def test_torchvisions_cifar10_is_read(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        batch = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = opened(name="CIFAR10", root=str(tmp_path))
    assert (source.channels, source.image_size, len(source.train), len(source.val)) == (3, (32, 32), 20, 4)
    assert source.val.labels.tolist() == [0, 1, 2, 9]


@pytest.mark.parametrize(
    ("shape", "images", "known"),
    [((8, 12), 200, (8, 12)), ((80, 96), 40, (80, 96)), ((80, 96), 200, None), ((80, 80), 200, None)],
)
def test_images_have_a_common_size_where_all_were_seen_or_they_are_small(shape, images, known):
    source = opened(name="FakeData", size=images, image_size=[3, *shape], num_classes=4, val_fraction=0.25)
    assert source.image_size == known


def test_stl10s_files_are_read(tmp_path, monkeypatch):
    from torchvision.datasets import STL10

    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(bytes(20 * 3 * 96 * 96))
        (folder / f"{split}_y.bin").write_bytes(bytes(1 + i % 10 for i in range(20)))
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    source = opened(name="STL10", root=str(tmp_path))
    assert (len(source.train), len(source.val), source.classes) == (20, 20, tuple("abcdefghij"))


def test_parts_of_one_array_have_a_common_size_however_large(monkeypatch):
    from torchvision.datasets import STL10

    def loaded(self, *_):
        return np.zeros((100, 3, 96, 96), np.uint8), np.arange(100) % 10

    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(STL10, "_STL10__loadfile", loaded)
    assert opened(name="STL10", root="", val_fraction=0.2).image_size == (96, 96)


def test_cats_and_dogs_are_not_called_by_breeds(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split in ("trainval", "test"):
        rows = [f"{'abcd'[i % 4]}_{split}{i} {i % 4 + 1} {i % 4 // 2 + 1} 1" for i in range(8)]
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(rows))
        for i in range(8):
            Image.new("RGB", (20, 20)).save(folder / "images" / f"{'abcd'[i % 4]}_{split}{i}.jpg")
    dataset = {"name": "OxfordIIITPet", "root": str(tmp_path)}
    assert opened(**dataset).classes == tuple("ABCD")
    of_two = opened(**dataset, target_types="binary-category")
    assert (of_two.classes, of_two.train.labels.tolist()) == (("Cat", "Dog"), [0, 0, 1, 1] * 2)


def test_files_of_a_torchvision_dataset_are_read_by_our_rule_and_called_by_their_names(tmp_path):
    folder = tree(tmp_path / "train", {"a": 20, "b": 20}, ".png")
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    clear.save(folder / "a" / "0.png")
    (folder / "b" / "3.png").write_bytes(b"cut")
    shutil.copytree(folder, tmp_path / "val")
    splits = {split: {"root": str(tmp_path / split)} for split in ("train", "val")}
    source = opened(name="ImageFolder", splits=splits)
    assert (source.classes, source.channels) == (("a", "b"), 3)
    assert (source.train.read(0) == 255).all()
    assert source.train.name(0) == "a/0.png"
    with pytest.raises(DataError, match=r"train/b/3\.png: its content is no image format"):
        source.train.read([source.train.name(i) for i in range(40)].index("b/3.png"))


def test_a_pipe_or_a_device_among_a_torchvision_datasets_images_is_refused_and_not_read(tmp_path):
    folder = tree(tmp_path, {"a": 20, "b": 20})
    (folder / "a" / "0.png").unlink()
    os.mkfifo(folder / "a" / "0.png")
    (folder / "a" / "1.png").unlink()
    (folder / "a" / "1.png").symlink_to("/dev/zero")
    split = opened(name="ImageFolder", root=str(tmp_path), val_fraction=0.25).train.whole
    for i in range(2):
        for read in (split.read, split.content):
            with pytest.raises(DataError, match=f"a/{i}.png: it is no regular file"):
                read(i)
        with pytest.raises(OSError, match="it is no regular file"):
            split.size_of(i)


@pytest.mark.parametrize(
    ("raised", "kind", "what"),
    [
        (None, EnvironmentFault, "h5py is not found.*pip install h5py"),
        (MemoryError("Unable to allocate"), MemoryError, "Unable to allocate"),
    ],
)
def test_what_the_machine_lacks_is_not_said_of_the_datasets_files(monkeypatch, raised, kind, what):
    class Packed(Parts):
        def __init__(self, split="train"):
            if raised is not None:
                raise raised
            try:
                raise ImportError("No module named 'h5py'", name="h5py")
            except ImportError:
                raise RuntimeError("h5py is not found") from None

    with pytest.raises(kind) as caught:
        torchvision_source(Packed, seed=1)
    said = f"{caught.value} {getattr(caught.value, 'problems', '')}"
    assert re.search(what, said)


def listed_backwards(monkeypatch, module):
    def backwards(folder, *suffixes, prefix=False):
        kept = [name for name in os.listdir(folder) if name.endswith(suffixes or "")]
        return sorted(kept, reverse=True)

    monkeypatch.setattr(f"torchvision.datasets.omniglot.{module}", backwards)


def test_omniglots_characters_are_numbered_by_name_not_as_the_file_system_lists_them(tmp_path, monkeypatch):
    from torchvision.datasets import Omniglot

    monkeypatch.setattr(Omniglot, "_check_integrity", lambda self: True)
    folder = tmp_path / "omniglot-py" / "images_background"
    for alphabet in ("Greek", "Latin"):
        tree(folder / alphabet, {"character01": 10, "character02": 10}, ".png")
    sources = [opened(name="Omniglot", root=str(tmp_path), val_fraction=0.2)]
    for function in ("list_dir", "list_files"):
        listed_backwards(monkeypatch, function)
    sources.append(opened(name="Omniglot", root=str(tmp_path), val_fraction=0.2))
    one, other = sources
    assert one.classes == other.classes == tuple(f"{a}/character0{i}" for a in ("Greek", "Latin") for i in (1, 2))
    assert [one.train.path(i) for i in range(32)] == [other.train.path(i) for i in range(32)]
    assert one.train.labels.tolist() == other.train.labels.tolist() == [i // 8 for i in range(32)]
    assert one.channels == 1


@pytest.mark.filterwarnings("ignore:unclosed file")  # Caltech101 leaves that to Python
def test_species_and_categories_are_called_by_their_names(tmp_path):
    species = [f"{i:05d}_Animalia_Chordata_Aves_Order_Family{i % 2}_Genus_species{i}" for i in range(4)]
    tree(tmp_path / "2021_train", dict.fromkeys(species, 4))
    tree(tmp_path / "caltech101/101_ObjectCategories", {"BACKGROUND_Google": 1, "ant": 4, "yin_yang": 4})
    for folder in (tmp_path / "caltech101/101_ObjectCategories").iterdir():
        for i, file in enumerate(sorted(folder.iterdir())):
            file.rename(folder / f"image_{i + 1:04d}.jpg")

    def classes(**dataset):
        return opened(root=str(tmp_path), val_fraction=0.25, **dataset).classes

    assert classes(name="INaturalist", version="2021_train") == tuple(species)
    assert classes(name="INaturalist", version="2021_train", target_type="family") == ("Family0", "Family1")
    assert classes(name="Caltech101") == classes(name="Caltech101", target_type="category") == ("ant", "yin_yang")
    for kind in ("annotation", ["category", "annotation"]):  # a MATLAB file an image, which SciPy may crash of
        said = refused(DataError, name="Caltech101", root=str(tmp_path), val_fraction=0.25, target_type=kind)
        assert "only `target_type: category` gives images classes" in said


@pytest.mark.parametrize(
    "dataset", [{"name": "Caltech101"}, {"name": "Caltech256"}, {"name": "INaturalist", "version": "2021_train"}]
)
def test_no_folder_is_made_where_there_is_no_dataset(tmp_path, dataset):
    said = refused(DataError, root=str(tmp_path / "a" / "b"), val_fraction=0.25, **dataset)
    assert "there is no folder" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["test", None])
def test_a_test_split_that_is_not_there_or_has_no_labels_is_not_needed_for_training(tmp_path, monkeypatch, missing):
    class Kaggles(Parts):
        def __init__(self, split="train"):
            if split not in ("train", "test"):
                raise ValueError("Valid values are train, test")
            if split == missing:
                raise RuntimeError("Dataset not found")
            super().__init__(split)
            self.targets = [None] * 8 if split == "test" else self.targets

    source = torchvision_source(Kaggles, seed=1, val_fraction=0.25)
    assert (len(source.train), len(source.val), source.test) == (6, 2, None)
    why = "Dataset not found" if missing else "Kaggles has no labels"
    assert any("no test split" in note and why in note for note in source.notes)
    with pytest.raises(DataError, match="Dataset not found" if missing else "has no labels") as caught:
        torchvision_source(Kaggles, seed=1)
    assert missing or "val_fraction" in caught.value.problems[0].hint


def test_a_dataset_without_splits_needs_val_fraction_or_explicit_splits():
    fake = {"name": "FakeData", "size": 40, "image_size": [3, 8, 8], "num_classes": 4}
    assert "FakeData has no split for it" in refused(ConfigError, **fake)
    assert len(opened(**fake, val_fraction=0.25).train) == 30
    splits = {"train": {"size": 30}, "val": {"size": 10, "random_offset": 30}}
    assert [len(split) for split in opened(**fake, splits=splits).splits().values()] == [30, 10]


@pytest.mark.parametrize(
    ("dataset", "kind", "what"),
    [
        ({"name": "MNIST"}, DataError, "cannot open MNIST.*add `download: true`"),
        ({"name": "MNIST", "train": True}, ConfigError, "train: True picks one split, and training needs two"),
        ({"name": "VOCDetection"}, ConfigError, "no image classification dataset but for detection"),
        ({"name": "CelebA"}, ConfigError, "attributes"),
        ({"name": "DTD"}, DataError, "cannot open DTD"),
        ({"name": "ImageFolder", "val_fraction": 0.2}, DataError, "cannot open ImageFolder.*--set dataset.root=FOLDER"),
        ({"name": "FakeData", "splits": {"val": {}}}, ConfigError, "splits must name train"),
        ({"name": "FakeData", "shape": 3}, ConfigError, "does not take these arguments"),
        ({"name": "DTD", "partition": 0.5}, ConfigError, "does not take these arguments"),
        ({"name": "STL10", "folds": "all"}, ConfigError, "does not take these arguments"),
        ({"name": "EMNIST", "split": "mnist", "shape": 3}, ConfigError, "does not take these arguments"),
        ({"name": "QMNIST", "what": 3}, ConfigError, "does not take these arguments"),
        ({"name": "LSUN"}, ConfigError, "'LSUN' cannot be used here"),
        ({"name": "LSUNClass"}, ConfigError, "'LSUNClass' cannot be used here"),
        ({"name": "SEMEION", "val_fraction": 0.2}, DataError, "cannot open SEMEION.*not found.*add `download: true`"),
        ({"name": "CIFAR11"}, ConfigError, "no dataset 'CIFAR11'.*CIFAR10"),
    ],
)
def test_what_torchvision_cannot_open_is_refused(tmp_path, dataset, kind, what):
    arguments = dataset if dataset["name"] == "FakeData" else {**dataset, "root": str(tmp_path)}
    assert re.search(what, refused(kind, **arguments))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("images-idx3", b""),
        ("images-idx3", b"\0\0\x08\x03" + b"\0\0\0\x14" + b"\0\0\0\x1c" * 2),  # cut behind its head
        ("images-idx3", b"\0\0\x0d\x03" + b"\0\0\0\1" * 3 + b"\0" * 4),  # floats
        ("labels-idx1", b"\0\0\x08\x02" + b"\0\0\0\1" * 2 + b"\0"),
    ],
)
def test_a_damaged_file_is_no_wrong_argument(tmp_path, name, content):
    write_mnist(tmp_path, 20)
    (tmp_path / "MNIST" / "raw" / f"train-{name}-ubyte").write_bytes(content)
    assert "cannot open MNIST" in refused(DataError, name="MNIST", root=str(tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("invalid literal for int() with base 10: 'unknown'"),
        TypeError("list indices must be integers or slices, not str"),
    ],
)
def test_what_a_file_holds_is_no_wrong_argument(error):
    class Listed(Parts):
        def __init__(self, split="train"):
            raise error

    with pytest.raises(DataError, match="cannot open Listed"):
        torchvision_source(Listed, seed=1)


@pytest.mark.parametrize("labels", [60, 20])
def test_labels_of_another_split_are_counted_against_the_images(tmp_path, labels):
    write_mnist(tmp_path, 40)
    other = b"\0\0\x08\x01" + labels.to_bytes(4, "big") + bytes(i % 10 for i in range(labels))
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(other)
    said = refused(DataError, name="MNIST", root=str(tmp_path))
    assert f"MNIST (val) holds 40 images and {labels} labels" in said


def test_a_label_beyond_mnists_classes_is_damage_and_no_further_class(tmp_path):
    write_mnist(tmp_path, 40)
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[8 + 3] = 255
    labels.write_bytes(content)
    said = refused(DataError, name="MNIST", root=str(tmp_path))
    assert "image 3 of MNIST (train) has the label 255, and there are 10 classes" in said
    made = [MNIST(str(tmp_path), train=train) for train in (True, False)]
    for own in made:  # who makes a dataset of it may well have more classes
        own.targets = torch.arange(len(own)) % 12
    assert len(pairs_source("own:made", dict(zip(("train", "val"), made, strict=True)), None, 0).classes) == 12


def dds(side):
    """A texture of the kind that Pillow unpacks in Python, pixel by pixel."""
    head = struct.pack("<7I", 124, 0x1007, side, side, 0, 0, 0) + bytes(44)
    masks = struct.pack("<8I", 32, 0x40, 0, 8, 0xE0, 0x1C, 0x03, 0)
    return b"DDS " + head + masks + struct.pack("<5I", 0x1000, 0, 0, 0, 0) + bytes(side * side)


def coded_bmp(side):
    """A BMP of 8 bits, run-length coded, in which nothing is said of any pixel."""
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 2, 0, 0, 1, 0)
    return b"BM" + struct.pack("<IHHI", 60, 0, 0, 58) + head + bytes(4) + b"\0\1"


@pytest.mark.parametrize(
    ("content", "what"),
    [(dds(8), "cannot identify image file"), (dds(3000), "cannot identify"), (coded_bmp(9000), "run-length coded")],
    ids=["dds", "large dds", "coded bmp"],
)
def test_torchvision_reads_images_within_the_bounds_of_our_own_sources(tmp_path, content, what):
    folder = tree(tmp_path / "gtsrb" / "GTSRB" / "Training", {"00000": 20, "00001": 20}, ".ppm")
    signs = {"name": "GTSRB", "root": str(tmp_path), "val_fraction": 0.25}
    assert len(opened(**signs).train) == 30
    (folder / "00000" / "0.ppm").write_bytes(content)
    began = time.process_time()
    with pytest.raises(DataError, match=rf"cannot read image 0 of GTSRB \(train\): .*{what}"):
        opened(**signs).train.whole.read(0)
    assert time.process_time() - began < 5


def test_signs_are_numbered_alike_where_some_are_left_out(tmp_path):
    folder = tree(tmp_path / "gtsrb" / "GTSRB" / "Training", {"00000": 4, "00002": 4, "00003": 4}, ".ppm")
    shown = folder.parent / "Final_Test" / "Images"
    rows = [f"{sign}.ppm;{sign}" for sign in (0, 2, 3)]
    for sign in (0, 2, 3):
        image(shown / f"{sign}.ppm")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("\n".join(["Filename;ClassId", *rows]))
    source = opened(name="GTSRB", root=str(tmp_path))
    assert source.classes == ("0", "2", "3")
    assert (source.train.labels.tolist(), source.val.labels.tolist()) == ([0] * 4 + [1] * 4 + [2] * 4, [0, 1, 2])


def usps(root, content):
    for name in ("usps.bz2", "usps.t.bz2"):
        (root / name).write_bytes(bz2.compress(content))
    return {"name": "USPS", "root": str(root)}


def test_a_packed_file_that_is_not_the_datasets_own_is_not_unpacked(tmp_path, monkeypatch):
    from torchvision.datasets import USPS

    images = b"".join(b"%d %s\n" % (1 + i % 10, b" ".join(b"%d:0.5" % k for k in range(256))) for i in range(20))
    dataset = usps(tmp_path, images)
    own = {
        split: [url, name, hashlib.md5((tmp_path / name).read_bytes()).hexdigest()]
        for split, (url, name, _) in USPS.split_list.items()
    }
    said = refused(DataError, **dataset)
    assert "cannot open USPS" in said
    assert "usps.bz2 is not the dataset's own file" in said
    monkeypatch.setattr(USPS, "split_list", own)
    assert len(opened(**dataset).val) == 20
    usps(tmp_path, b"\n" * 1_000_000)
    assert "usps.bz2 is not the dataset's own file" in refused(DataError, **dataset)


def test_lists_of_stanford_cars_that_unpack_to_too_much_or_crash_are_refused(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    folder = tmp_path / "stanford_cars"
    for name, images in (("devkit", 0), ("cars_train", 4), ("cars_test", 4)):
        (folder / name).mkdir(parents=True)
        for i in range(images):
            image(folder / name / f"{i}.jpg")
    cars = np.array([(f"{i}.jpg", 1 + i % 2) for i in range(4)], dtype=[("fname", object), ("class", object)])
    train, val = folder / "devkit" / "cars_train_annos.mat", folder / "cars_test_annos_withlabels.mat"
    for path in (train, val):
        scipy_io.savemat(path, {"annotations": cars}, do_compression=True)
    names = np.array(["a", "b"], dtype=object)
    scipy_io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names}, do_compression=True)
    dataset = {"name": "StanfordCars", "root": str(tmp_path)}
    (folder / "devkit" / "._cars_meta.mat").write_bytes(bytes(200))  # as tar on macOS leaves it; nobody reads it
    assert opened(**dataset).counts()["val"] == {"a": 2, "b": 2}
    with monkeypatch.context() as changed:  # as SciPy 1.17 does with some damaged ones
        changed.setattr(
            "lrtrain.data.torchvision_source._READ_MATLAB",
            "import os; print(0, 1, flush=True); os.abort()",
        )
        _refuse_unreadable_matlab.cache_clear()
        assert "cars_meta.mat is damaged: SciPy crashes as it reads it, by signal 6" in refused(DataError, **dataset)
        changed.setattr("lrtrain.data.torchvision_source._READ_MATLAB", "import time; time.sleep(60)")
        changed.setattr("lrtrain.data.torchvision_source._MATLAB_S", 0.5)
        assert "its lists (*.mat) take more than 0.5 s to read" in refused(DataError, **dataset)
    content = bytearray(val.read_bytes())
    content[200] ^= 1
    val.write_bytes(content)
    assert "cars_test_annos_withlabels.mat is damaged: " in refused(DataError, **dataset)
    scipy_io.savemat(val, {"annotations": {"class": np.zeros(5_000_000)}}, do_compression=True)
    assert "cars_test_annos_withlabels.mat unpacks to more than 8,000,000 bytes" in refused(DataError, **dataset)


class Parts:
    """A dataset of torchvision's make whose trainval holds val, as FGVCAircraft's does."""

    def __init__(self, split="trainval"):
        if split not in ("train", "val", "trainval", "test"):
            raise ValueError("Valid values are train, val, trainval, test")
        self.split, self.targets = split, [0, 1] * 4

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return Image.new("L", (8, 8)), self.targets[i]


def test_what_is_trained_on_as_trainval_is_not_evaluated_on_val():
    source = torchvision_source(Parts, seed=1)
    assert (source.train.pairs.split, source.val.pairs.split, source.test) == ("trainval", "test", None)
