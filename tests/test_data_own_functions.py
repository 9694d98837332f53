"""Datasets that functions of the users return, named by import path."""

from __future__ import annotations

import random
import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from lrtrain.errors import DataError
from tests.folders import opened, refused


@pytest.fixture
def own(monkeypatch):
    """A module of the user's."""
    module = types.ModuleType("own_data")
    monkeypatch.setitem(sys.modules, "own_data", module)
    return module


def pairs(n, image=None):
    return [(Image.new("L", (8, 8), i) if image is None else image, i % 2) for i in range(n)]


def test_a_function_of_the_users_may_return_two_datasets(own):
    own.make = lambda n, seed: (pairs(n), pairs(seed))
    source = opened(6, name="own_data:make", n=10)
    assert (source.classes, source.channels, len(source.train), len(source.val)) == (("0", "1"), 1, 10, 6)
    assert (source.train.read(3) == 3).all()


def test_a_function_of_the_users_may_return_what_random_split_gives(own):
    own.make = lambda: torch.utils.data.random_split(pairs(10), [6, 4])
    source = opened(name="own_data:make")
    assert (len(source.train), len(source.val)) == (6, 4)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_may_be_arrays_of_rows(own, channels):
    array = np.random.default_rng(1).integers(0, 256, (8, 9, channels), dtype=np.uint8)
    array[..., 3:] = 255
    own.make = lambda: (pairs(4, array), pairs(2, array))
    source = opened(name="own_data:make")
    assert (source.channels, source.image_size) == (min(channels, 3), (8, 9))
    assert torch.equal(source.train.read(1), torch.from_numpy(array[..., :3]).permute(2, 0, 1))


def test_a_function_of_the_users_may_return_a_source(own):
    own.make = lambda: opened(name="digits")
    assert opened(name="own_data:make").classes == tuple("0123456789")


class Named(list):
    """Pairs of a dataset that names its classes."""

    def __init__(self, classes, each=2):
        super().__init__((Image.new("L", (8, 8)), i) for i in range(len(classes)) for _ in range(each))
        self.classes = classes


def test_classes_of_one_name_are_counted_apart(own):
    train, val = Named(["a", "b", "b"]), Named(["a", "b", "b"])
    del train[4:]
    own.make = lambda: (train, val)
    source = opened(name="own_data:make")
    assert source.counts()["train"] == {"a (0)": 2, "b (1)": 2, "b (2)": 0}
    assert "classes without training images: b (2)" in source.notes


def test_the_classes_of_val_are_those_of_train_by_name(own):
    own.make = lambda: (Named(["cat", "dog", "fox"]), Named(["cat", "fox"]))
    assert opened(name="own_data:make").counts()["val"] == {"cat": 2, "dog": 0, "fox": 2}
    own.make = lambda: (Named(["cat", "dog"]), Named(["cat", "fox"]))
    assert "own_data:make (val) has the class 'fox', and train has 'cat', 'dog'" in refused(
        DataError, name="own_data:make"
    )
    own.make = lambda: (Named(["cat", "cat"]), Named(["cat"]))
    assert "numbers its classes otherwise than train" in refused(DataError, name="own_data:make")


class Listed(list):
    """Pairs beside a list of targets that need not be those of the items."""

    def __init__(self, items, targets, classes=None, broken=()):
        super().__init__(items)
        self.targets, self.broken = targets, broken
        if classes:
            self.classes = classes

    def __getitem__(self, i):
        if i in self.broken:
            raise OSError("cut")
        return super().__getitem__(i)


@pytest.mark.parametrize(("of", "classes"), [(2, ("0", "1")), (3, ("a", "b", "c"))])
def test_names_of_a_list_that_is_not_the_items_are_taken_for_as_many(own, of, classes):
    items = [(Image.new("L", (8, 8)), i % of) for i in range(100)]
    own.make = lambda: (Listed(items, [i % 3 + 1 for i in range(100)], list("abc")), items)
    assert opened(name="own_data:make").classes == classes


def test_an_image_that_cannot_be_read_is_told_by_its_name_and_does_not_hide_others(own):
    items = pairs(200)
    labels = [label for _, label in items]
    own.make = lambda: (Listed(items, labels, broken=[0, 199]), pairs(20))
    source = opened(name="own_data:make")
    assert (source.train.labels.tolist(), source.channels, source.image_size) == (labels, 1, (8, 8))
    with pytest.raises(DataError, match=r"cannot read image 0 of own_data:make \(train\): cut"):
        source.train.read(0)
    own.make = lambda: (Listed(items, None, broken=[7]), pairs(20))
    assert "cannot read image 7 of own_data:make (train): cut" in refused(DataError, name="own_data:make")
    own.make = lambda: (Listed(items, labels, broken=range(200)), pairs(20))
    assert "own_data:make (train) was opened, but cannot be used: OSError: cut" in refused(
        DataError, name="own_data:make"
    )


def test_what_a_transform_does_in_place_leaves_the_dataset_as_it_was(own):
    tensors = [(torch.full((1, 8, 8), i, dtype=torch.uint8), i % 2) for i in range(6)]
    own.make = lambda: (tensors, tensors)
    for source in (opened(name="own_data:make"), opened(name="digits")):
        before = source.train.read(3).clone()
        source.train.read(3).fill_(255)
        assert torch.equal(source.train.read(3), before)


def test_a_dataset_of_the_users_that_is_split_at_random_is_split_by_the_seed(own):
    def make():
        order = random.sample(range(0, 40, 2), 20)
        every = pairs(40)
        return [every[i + k] for i in order[:10] for k in (0, 1)], [every[i + k] for i in order[10:] for k in (0, 1)]

    own.make = make
    firsts = [int(opened(seed, name="own_data:make").train.read(0)[0, 0, 0]) for seed in (1, 1, 2, 3, 4)]
    assert firsts[0] == firsts[1]
    assert len(set(firsts)) > 1


class Flipped(list):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return v2.RandomHorizontalFlip()(image), label


def test_a_dataset_of_the_users_that_draws_where_it_is_read_is_refused(own):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    plain, drawn = pairs(40, image), Flipped(pairs(40, image))
    for splits in ((drawn, plain), (plain, drawn)):
        own.make = lambda splits=splits: splits
        assert "draws at random: image" in refused(DataError, name="own_data:make")
    own.make = lambda: (plain, plain)
    assert len(opened(name="own_data:make").train) == 40


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (3, "it returned int"),
        ((pairs(2), []), r"own_data:make \(val\) is empty"),
        (([(Image.new("L", (8, 8)), "cat")] * 2, pairs(2)), "a target must be one integer, not str 'cat'"),
        (
            ([(Image.new("L", (8, 8)), target) for target in (0, 1, torch.tensor(0.5))], pairs(2)),
            r"image 2 of own_data:make \(train\) has no class: a target must be one integer, not Tensor",
        ),
        ((pairs(2, torch.zeros(1, 8, 8)), pairs(2)), "cannot read image 0.*uint8 tensor.*not torch.float32"),
        (([(Image.new("L", (8, 8)), 0)] * 2, pairs(2)), "occur in another split but not in train"),
    ],
)
def test_what_a_function_of_the_users_may_not_return(own, made, what):
    own.make = lambda: made
    assert re.search(what, refused(DataError, name="own_data:make"))


def test_a_function_of_the_users_that_fails_is_named(own):
    def make():
        raise KeyError("x")

    own.make = make
    assert "own_data:make failed: KeyError: 'x'" in refused(DataError, name="own_data:make")


class Noisy(list):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, label if random.random() < 0.7 else 1 - label


def test_labels_that_are_drawn_where_they_are_read_are_refused(own):
    own.make = lambda: (Noisy(pairs(40)), pairs(40))
    assert "has another label whenever it is read" in refused(DataError, name="own_data:make")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_the_dataset_keeps_is_not_turned_there(own, orientation):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    photo.getexif()[274] = orientation
    before = photo.tobytes()
    own.make = lambda: (pairs(4, photo), pairs(2, photo))
    source = opened(name="own_data:make")
    upright = np.array(ImageOps.exif_transpose(photo))
    assert torch.equal(source.train.read(1), torch.from_numpy(upright).permute(2, 0, 1))
    assert (photo.size, photo.tobytes(), photo.getexif()[274]) == ((9, 8), before, orientation)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "make", [lambda a: a[:, ::-1], lambda a: a[::-1], lambda a: a[0, :, ::-1], lambda a: a[..., ::-1]]
)
def test_arrays_may_run_backwards_and_be_read_only(own, make):
    array = make(np.random.default_rng(1).integers(0, 256, (3, 8, 9), dtype=np.uint8))
    array.flags.writeable = False
    own.make = lambda: (pairs(4, array), pairs(2, array))
    expected = torch.from_numpy(array.copy())
    assert torch.equal(opened(name="own_data:make").train.read(1), expected if array.ndim == 3 else expected[None])


def test_a_kept_photo_is_turned_though_the_rest_of_its_exif_is_damaged(own, monkeypatch):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    photo.getexif()[274] = 6
    monkeypatch.setattr(Image.Exif, "tobytes", lambda *_: 1 / 0)
    own.make = lambda: (pairs(4, photo), pairs(2, photo))
    assert opened(name="own_data:make").train.read(1).shape == (3, 9, 8)
