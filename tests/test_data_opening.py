"""Files of torchvision's datasets that say more than they hold, or are none: refused where torchvision opens them."""

from __future__ import annotations

import errno
import json
import os
import pickle
import sys
import tempfile
import time
import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lrtrain.data.inspect import look
from lrtrain.data.opening import only_whole_files
from lrtrain.data.torchvision_source import torchvision_source
from lrtrain.errors import DataError
from tests.folders import image, opened, refused


def never_written(path, size=2**40):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)


class Parts:
    """Of no kind that is read."""


LARGE = "of its 1,099,511,627,776 bytes most were never written"


@pytest.mark.parametrize(
    ("name", "file", "others"),
    [
        ("CIFAR10", "cifar-10-batches-py/data_batch_1", ()),
        ("EMNIST", "EMNIST/raw/emnist-digits-train-images-idx3-ubyte", ("emnist-digits-train-labels-idx1-ubyte",)),
        ("Flowers102", "flowers-102/setid.mat", ("imagelabels.mat",)),
        ("Places365", "categories_places365.txt", ()),
        ("FER2013", "fer2013/icml_face_data.csv", ()),
    ],
)
def test_a_file_that_was_never_written_is_not_read_whichever_it_is(tmp_path, name, file, others, monkeypatch):
    for other in others:
        (tmp_path / file).with_name(other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).with_name(other).write_bytes(b"any")
    if name == "Flowers102":
        monkeypatch.setattr("torchvision.datasets.Flowers102._check_integrity", lambda self: True)
    never_written(tmp_path / "disk.img")  # which is nothing of the dataset's
    never_written(tmp_path / file)
    dataset = {"name": name, "root": str(tmp_path), "val_fraction": 0.2}
    began = time.process_time()
    said = refused(DataError, **dataset, **({"split": "digits"} if name == "EMNIST" else {}))
    assert f"{file.rpartition('/')[2]}: {LARGE}" in said
    assert time.process_time() - began < 5


def emnist(root):
    folder = root / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        head = b"\0\0\x08\x03" + (20).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
        (folder / f"emnist-digits-{split}-images-idx3-ubyte").write_bytes(head + bytes(20 * 28 * 28))
        labels = b"\0\0\x08\x01" + (20).to_bytes(4, "big") + bytes(i % 10 for i in range(20))
        (folder / f"emnist-digits-{split}-labels-idx1-ubyte").write_bytes(labels)
    return {"name": "EMNIST", "root": str(root), "split": "digits"}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_in_place_of_a_list_is_refused(tmp_path, make):
    for folder in ("labels", "images"):
        (tmp_path / "dtd" / "dtd" / folder).mkdir(parents=True)
    make(tmp_path / "dtd" / "dtd" / "labels" / "train1.txt")
    assert "it is no regular file" in refused(DataError, name="DTD", root=str(tmp_path))


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no disk in memory there")
def test_what_lies_on_a_disk_in_memory_is_no_device_of_the_systems():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.mkfifo(f"{folder}/a")
        with only_whole_files(), pytest.raises(OSError, match="it is no regular file"):
            open(f"{folder}/a", "rb").close()


@pytest.mark.parametrize("archive", [True, False])
def test_what_torchvision_kept_of_mnist_in_pickles_is_read_if_torch_wrote_an_archive(tmp_path, archive):
    folder, dataset = tmp_path / "EMNIST" / "processed", emnist(tmp_path)
    folder.mkdir()
    kept = (torch.zeros(12, 28, 28, dtype=torch.uint8), torch.arange(12) % 10)
    for name in ("training_digits.pt", "test_digits.pt"):
        if archive:
            torch.save(kept, folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps([1]))
    (tmp_path / "any.bin").write_bytes(b"of another kind")
    with only_whole_files():
        open(tmp_path / "any.bin", "rb").close()
    if archive:
        assert len(opened(**dataset).train) == 12
    else:
        said = refused(DataError, **dataset)
        assert "training_digits.pt' is damaged, or not a file of torch.save" in said
        assert "remove it" in said


@pytest.mark.parametrize("images", [torch.zeros(12, 28, 28), torch.zeros(12, 784, dtype=torch.uint8)])
def test_what_is_kept_of_mnist_that_are_no_pixels_is_refused(tmp_path, images):
    folder, dataset = tmp_path / "EMNIST" / "processed", emnist(tmp_path)
    folder.mkdir()
    for name in ("training_digits.pt", "test_digits.pt"):
        torch.save((images, torch.arange(12) % 10), folder / name)
    assert "and must hold uint8 (N, height, width)" in refused(DataError, **dataset)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "../../none", "x" * 5000])
def test_a_list_that_names_what_cannot_be_is_no_bug(tmp_path, name):
    folder = tmp_path / "food-101"
    (folder / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        listed = {label: [f"{label}/{split}{i}" for i in range(4)] for label in "ab"}
        for each in (each for names in listed.values() for each in names):
            image(folder / "images" / f"{each}.jpg")
        listed["a"] += [name] if split == "train" else []
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
    dataset = {"name": "Food101", "root": str(tmp_path)}
    assert "cannot read the image" in refused(DataError, **dataset)
    split = opened(**dataset).train
    (at,) = (i for i in range(9) if "/train" not in split.name(i))
    assert look(split, at, 3).why
    for asked in (split.content, split.bytes_of, split.read):
        with pytest.raises(DataError, match="cannot read the image"):
            asked(at)


def test_what_torchvision_made_of_imagenet_before_torch_1_6_is_read_if_it_is_plain(tmp_path):
    file = tmp_path / "meta.bin"
    plain = ({"n01440764": ("tench", "Tinca tinca")}, ["n01440764"])
    old = {"_use_new_zipfile_serialization": False}
    large = (plain, torch.zeros(2_000_000))  # as MNIST's processed/training.pt
    for content, right in ((plain, True), ((plain, torch.zeros(2)), False), ((plain, Parts), False), (large, False)):
        torch.save(content, file, **old)
        with only_whole_files(), nullcontext() if right else pytest.raises(ValueError, match=r"meta\.bin"):
            assert torch.load(file, weights_only=True) == plain
    torch.save(plain, file, **old)
    for damaged in (file.read_bytes()[:-20], file.read_bytes() + b"more", b"\x80\x02K\x01."):
        file.write_bytes(damaged)
        with only_whole_files(), pytest.raises(ValueError, match=r"not a file of torch\.save"):
            open(file, "rb").close()


def nested(depth):
    """Lists that hold one another twice."""
    inside = [1]
    for _ in range(depth):
        inside = [inside, inside]
    return inside


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("training.pt", (torch.zeros(1).expand(10**9, 28, 28), torch.zeros(1).expand(10**9)), "more bytes than are"),
        ("meta.bin", ({"n1": {0: nested(40)}, "n2": ("b",)}, ["n1"]), "does not name its classes"),
        ("meta.bin", ({"n1": ["x" * 900] * 100_000}, ["n1"]), "does not name its classes"),
        ("training.pt", (torch.zeros(9, 4, 4, dtype=torch.uint8), torch.zeros(9)), None),
        ("meta.bin", ({"n1": ("a", "b"), "n2": "c"}, ["n1"]), None),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_small_file_that_stands_for_a_large_one_is_refused(name, content, words, zipped, tmp_path):
    if not zipped and name == "training.pt":
        words = "it has more than plain values"
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with only_whole_files(), pytest.raises(ValueError, match=words) if words else nullcontext():
        open(tmp_path / name, "rb").close()


def test_it_lasts_as_long_as_it_says_and_is_of_one_thread(tmp_path):
    never_written(tmp_path / "long")
    with pytest.raises(ValueError, match=LARGE), only_whole_files():
        open(tmp_path / "long", "rb").close()
    with open(tmp_path / "long", "rb") as file:
        assert file.read(1) == b"\0"
    with only_whole_files():
        with only_whole_files():
            pass
        with pytest.raises(ValueError, match=LARGE):
            open(tmp_path / "long", "rb").close()
        with open(tmp_path / "long", "r+b"), open(tmp_path / "new", "wb"), open(os.devnull, "rb"):
            pass
        os.close(os.open(tmp_path, os.O_RDONLY))
        with pytest.raises(FileNotFoundError):
            open(tmp_path / "none", "rb").close()


def test_a_file_system_that_went_away_is_not_said_of_the_dataset(monkeypatch):
    class Away:
        def __init__(self, split="train"):
            raise OSError(errno.ESTALE, "Stale file handle", "labels.txt")

    with pytest.raises(OSError, match="Stale file handle"):
        torchvision_source(Away, seed=1, val_fraction=0.2)


def test_pcams_labels_are_read_at_once(tmp_path, monkeypatch):
    read = []

    class File(dict):
        def __init__(self, path):
            read.append(path.name)
            n = 400 if "train" in path.name else 100
            labels = (np.arange(n) // 3 % 2)[:, None, None, None]
            super().__init__(x=np.zeros((n, 96, 96, 3), np.uint8), y=labels.astype(np.uint8))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=File))
    for split in ("train", "valid", "test"):
        for part in "xy":
            (tmp_path / "pcam").mkdir(exist_ok=True)
            (tmp_path / "pcam" / f"camelyonpatch_level_2_split_{split}_{part}.h5").touch()
    source = opened(name="PCAM", root=str(tmp_path))
    assert source.train.labels.tolist() == [i // 3 % 2 for i in range(400)]
    monkeypatch.setattr("lrtrain.data.torchvision_source._MOST_LABELS", 399)
    assert "it has 400 labels" in refused(DataError, name="PCAM", root=str(tmp_path))
    of_labels = [name for name in read if name == "camelyonpatch_level_2_split_train_y.h5"]
    assert len(of_labels) < 400


def test_a_link_to_a_folder_that_it_lies_in_is_not_followed_by_torchvision(tmp_path):
    for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3"):
        image(tmp_path / "photos" / f"{name}.png")
    elsewhere = tmp_path / "more"
    image(elsewhere / "4.png")
    (tmp_path / "photos" / "a" / "more").symlink_to(elsewhere)
    dataset = {"name": "ImageFolder", "root": str(tmp_path / "photos"), "val_fraction": 0.3}
    assert sum(map(len, opened(**dataset).splits().values())) == 7
    (tmp_path / "photos" / "a" / "loop").symlink_to(".")
    assert "links to a folder that it lies in" in refused(DataError, **dataset)
    (tmp_path / "photos" / "a" / "loop").unlink()
    for i in range(22):  # four million ways to the last
        (tmp_path / "links" / str(i)).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "links" / str(i) / name).symlink_to(f"../{i + 1}")
    image(tmp_path / "links" / "22" / "0.png")
    (tmp_path / "photos" / "a" / "links").symlink_to(tmp_path / "links" / "0")
    assert "by more than 3,000 ways through links" in refused(DataError, **dataset)
    (tmp_path / "photos" / "a" / "links").unlink()
    image(tmp_path.joinpath("photos", "a", *["d"] * 250, "0.png"))  # Python's stack has a step for each
    assert "lies in more than 200 folders" in refused(DataError, **dataset)
