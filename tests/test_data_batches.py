"""Batches are a pure function of (config, step)."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from lrtrain.config.schema import Dataset
from lrtrain.data.augment.RandomCrop import RandomCrop
from lrtrain.data.batches import Batches
from lrtrain.data.build import make_pipeline
from lrtrain.data.open import open_source
from lrtrain.data.order import batch_of_step
from lrtrain.errors import ConfigError, DataError, EnvironmentFault
from lrtrain.random import key, uniforms
from tests.folders import noise, where

RANDOM = [
    {"name": "RandomCrop", "size": 12, "padding": 2},
    "RandomHorizontalFlip",
    {"name": "ColorJitter", "brightness": 0.5},
    "RandomInvert",  # not batched
    {"name": "ToDtype", "dtype": "float32", "scale": True},
    {"name": "RandomErasing", "p": 0.5},
    "RandomVerticalFlip",
]
PHOTOS = [{"name": "RandomResizedCrop", "size": 10}, "RandomHorizontalFlip"]
LISTS = {"default": None, "random": RANDOM, "photos": PHOTOS}


def pipeline(seed=1, **dataset):
    section = Dataset(**dataset)
    return make_pipeline(open_source(section, seed, where), section, seed=seed, where=where)


def lists(**named):
    return {
        "transforms": {
            split: [{"name": e} if isinstance(e, str) else e for e in entries] for split, entries in named.items()
        }
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """26 images of noise, 16x16, in two classes, half of them beside as val."""
    return noise(tmp_path_factory.mktemp("images"), {"train": 13, "val": 5})


def batches(folder, kind="default", seed=1, batch_size=8, **options):
    transforms = {} if LISTS[kind] is None else lists(train=LISTS[kind])
    made = pipeline(seed, name="imagefolder", root=str(folder), **transforms)
    return Batches(made, batch_size=batch_size, where=where, **options)


def mixed(root):
    """Eight images of different sizes."""
    for i in range(4):
        for label in "ab":
            (root / label).mkdir(exist_ok=True)
            Image.new("RGB", (30 + i, 40)).save(root / label / f"{i}.jpg")
    return {"name": "imagefolder", "root": str(root), "val_fraction": 0.5}


def same(one, two):
    return (
        torch.equal(one.images, two.images)
        and torch.equal(one.labels, two.labels)
        and np.array_equal(one.index, two.index)
    )


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0, "cache": "off"},
        {"workers": 1, "cache": "off"},
        {"workers": 2, "cache": "off"},
        {"workers": 2, "cache": "auto"},
        {"workers": 0, "cache": "memory"},
        {"workers": 0, "cache": "disk"},
        {"workers": 2, "cache": "disk"},
    ],
    ids=str,
)
def test_batches_are_the_same_bits_for_any_workers_cache_and_start(folder, kind, options, tmp_path, monkeypatch):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path))
    reference = list(batches(folder, kind, cache="auto").train(0, 9))
    other = batches(folder, kind, **options)
    assert other.steps_per_epoch == 4
    middle = list(other.train(3, 9))
    assert len(middle) == 6
    assert all(same(one, two) for one, two in zip(reference[3:], middle, strict=True))


@pytest.mark.parametrize("most", [1, 20, 10**6])
def test_batches_made_together_are_those_made_one_by_one(folder, most):
    made = batches(folder, "photos" if most == 20 else "default")
    alone = list(made.train(2, 11))
    orders = (made._order(step) for step in range(2, 11))
    together = list(made._ready(made._train, orders, most * 4 * made._train.ready[0].numel()))
    assert len(together) == 9
    assert all(same(one, two) and one.total == two.total for one, two in zip(alone, together, strict=True))


@pytest.mark.parametrize("kind", LISTS)
def test_the_augmentation_of_a_sample_does_not_depend_on_its_batch(folder, kind):
    large, small = (
        {
            int(i): image
            for batch in batches(folder, kind, batch_size=size).train(0, -(-26 // size))
            for i, image in zip(batch.index, batch.images, strict=True)
        }
        for size in (26, 7)
    )
    assert large.keys() == small.keys() == set(range(26))
    assert all(torch.equal(large[i], small[i]) for i in large)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(("seed", "epoch"), [(1, 1), (2, 0)])
def test_the_augmentation_of_a_sample_differs_between_epochs_and_seeds(folder, kind, seed, epoch):
    def by_index(seed, epoch):
        (batch,) = batches(folder, kind, seed=seed, batch_size=26).train(epoch, epoch + 1)
        return batch.images[np.argsort(batch.index)]

    one, two = by_index(1, 0), by_index(seed, epoch)
    differs = [not torch.equal(a, b) for a, b in zip(one, two, strict=True)]
    assert sum(differs) >= 20  # a sample may draw the same crop and flip twice


def test_a_default_batch_is_torchvisions_crop_flip_and_normalisation(folder):
    made = pipeline(name="imagefolder", root=str(folder))
    batch = next(Batches(made, batch_size=8, where=where).train(5, 6))
    crop, _, normalize = made.train.per_batch
    assert isinstance(crop.batched, RandomCrop)
    corners = crop.batched.corners(uniforms(key(1, "augment", 1, 0), batch.index, 2), 20, 20)
    mirrored = uniforms(key(1, "augment", 1, 1), batch.index, 1)[:, 0] < 0.5
    for image, i, corner, m in zip(batch.images, batch.index, corners.tolist(), mirrored, strict=True):
        expected = F.crop(F.pad(made.source.train.read(int(i)), [2, 2]), *corner, 16, 16)
        expected = F.to_dtype(F.horizontal_flip(expected) if m else expected, torch.float32, scale=True)
        expected = F.normalize(expected, list(normalize.batched.mean), list(normalize.batched.std))
        torch.testing.assert_close(image, expected, rtol=1e-5, atol=2e-6)


def test_labels_belong_to_their_images(folder):
    made = batches(folder)
    labels = made.pipeline.source.train.labels
    for batch in made.train(0, 4):
        assert np.array_equal(batch.labels.numpy(), labels[batch.index])


@pytest.mark.parametrize("options", [{"cache": "off"}, {"cache": "off", "workers": 2}, {"cache": "memory"}], ids=str)
def test_evaluation_sees_every_image_once_and_in_order(folder, options):
    made = batches(folder, batch_size=4, **options)
    for split, n in (("val", 10), ("train", 26)):
        seen = list(made.evaluate(split))
        assert np.concatenate([batch.index for batch in seen]).tolist() == list(range(n))
    first, again = (torch.cat([b.images for b in made.evaluate("val", size)]) for size in (4, 10))
    assert torch.equal(first, again)
    (own,) = made.evaluate(made.pipeline.source.val, 10)
    assert torch.equal(own.images, first)


def test_a_split_that_is_not_there_is_refused(folder):
    with pytest.raises(ConfigError, match=r"no split 'test'[\s\S]*it has train, val"):
        batches(folder).evaluate("test")


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_random_state_is_left_alone(folder, kind, workers):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    list(batches(folder, kind, workers=workers).train(0, 3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_images_are_channels_last_where_asked(folder):
    batch = next(batches(folder, channels_last=True).train(0, 1))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images, next(batches(folder).train(0, 1)).images)


def test_no_worker_is_started_where_all_is_cached_and_batched(folder, monkeypatch):
    made = batches(folder, workers=2)
    monkeypatch.setattr("lrtrain.data.batches.fulfilled", None)
    assert len(list(made.train(0, 5))) == 5
    assert len(list(made.evaluate())) == 2


@pytest.mark.parametrize("kind", LISTS)
def test_images_of_one_size_that_is_no_square_are_kept_and_give_the_same_bits(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    folder = noise(tmp_path / "images", {"train": 5, "val": 2}, size=(12, 24))
    off, *others = (batches(folder, kind, workers=0, cache=cache) for cache in ("off", "memory", "disk"))
    for other in others:
        assert other._train.ready.shape == (10, 3, 12, 24)
        assert all(same(one, two) for one, two in zip(off.train(0, 4), other.train(0, 4), strict=True))


# What goes wrong while running


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_is_named(folder, workers, tmp_path):
    root = shutil.copytree(folder, tmp_path / "copy")
    made = batches(root, "photos", workers=workers, cache="off")
    (root / "train" / "b" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"b/7\.png") as caught:
        list(made.train(0, 4))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_may_have_weights_of_its_own(folder, workers):
    entries = ["ToTensor", "tests.nets:Learned", "RandomErasing", "tests.nets:Learned"]
    made = pipeline(name="imagefolder", root=str(folder), **lists(train=entries))
    (first, *_) = Batches(made, batch_size=8, where=where, cache="off", workers=workers).train(0, 1)
    assert not first.images.requires_grad
    assert first.images.std() > 0


@pytest.mark.parametrize("last", [[], [{"name": "CenterCrop", "size": 16}]])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_may_fill_the_same_memory_for_each_image(folder, workers, last):
    made = pipeline(name="imagefolder", root=str(folder), **lists(train=["tests.nets:Filling", *last]))
    plain = pipeline(name="imagefolder", root=str(folder), **lists(train=last))
    (first,), (expected,) = (
        Batches(each, batch_size=8, where=where, cache="off", workers=workers).train(0, 1) for each in (made, plain)
    )
    torch.testing.assert_close(first.images, expected.images)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_transform_that_draws_from_a_generator_of_its_own_is_refused(folder, split):
    with pytest.raises(ConfigError, match=rf"the {split} transform tests.nets:Drawing makes another image of .*asked"):
        pipeline(name="imagefolder", root=str(folder), **lists(**{split: ["ToTensor", "tests.nets:Drawing"]}))
    half, whole = ({"name": "ToDtype", "dtype": dtype} for dtype in ("bfloat16", "float32"))
    entries = ["ToTensor", {"name": "tests.nets:Drawing", "own": False}, half, whole]
    pipeline(name="imagefolder", root=str(folder), **lists(train=entries))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_whole_batch_of_another_size_is_named(folder, workers, tmp_path):
    root = shutil.copytree(folder, tmp_path / "copy")
    made = pipeline(name="imagefolder", root=str(root), **lists(train=["RandomHorizontalFlip"]))
    made = Batches(made, batch_size=8, where=where, cache="off", workers=workers)
    split = made.pipeline.source.train
    for i in batch_of_step(1, len(split), 8, 2, drop_last=False):
        Image.new("RGB", (20, 16)).save(root / split.path(int(i)))
    shown = made.train(0, 4)
    with pytest.raises(DataError, match=r"images of different sizes.*png: 3x16x16; .*png: 3x16x20"):
        list(shown)


def test_more_images_a_batch_than_there_are_is_refused_with_drop_last(folder):
    with pytest.raises(ConfigError, match="batch_size 27 is more than the 26 training images"):
        batches(folder, batch_size=27, drop_last=True)
    assert batches(folder, batch_size=27).steps_per_epoch == 1
    assert len(list(batches(folder, batch_size=8, drop_last=True).train(0, 6))) == 6


def test_a_cache_that_cannot_be_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cache: memory needs images of one size"):
        Batches(pipeline(**mixed(tmp_path)), batch_size=8, where=where, cache="memory")
    monkeypatch.setattr("lrtrain.data.cache.available_bytes", lambda: 1000)
    with pytest.raises(EnvironmentFault, match=r"needs 20 kB for train; 1 kB are available"):
        batches(folder, cache="memory")
    small = batches(folder, cache="auto", workers=0)
    assert len(list(small.train(0, 4))) == 4
