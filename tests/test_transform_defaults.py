"""The transforms that a split gets where the config leaves them out, and lists that cannot work."""

from __future__ import annotations

import pytest

from lrtrain.config.schema import Dataset
from lrtrain.data.batches import Batches
from lrtrain.data.build import make_pipeline
from lrtrain.data.open import open_source
from lrtrain.errors import ConfigError
from tests.folders import noise, where
from tests.test_data_batches import PHOTOS, RANDOM, lists, mixed, pipeline, same


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """26 images of noise, 16x16, in two classes, half of them beside as val."""
    return noise(tmp_path_factory.mktemp("images"), {"train": 13, "val": 5})


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"train": RANDOM},
        {"val": [{"name": "Resize", "size": 12}]},
        {"train": PHOTOS, "val": ["ToTensor"]},
        {"train": ["ToImage", {"name": "Normalize", "mean": [0.5] * 3, "std": [0.5] * 3}]},
    ],
)
def test_resolved_transforms_read_back_as_the_same_pipeline(folder, given):
    first = pipeline(name="imagefolder", root=str(folder), **(lists(**given) if given else {}))
    second = pipeline(name="imagefolder", root=str(folder), **lists(**first.resolved_transforms))
    assert second.resolved_transforms == first.resolved_transforms
    one, two = (Batches(made, batch_size=8, where=where) for made in (first, second))
    assert all(same(a, b) for a, b in zip(one.train(0, 5), two.train(0, 5), strict=True))
    assert all(same(a, b) for a, b in zip(one.evaluate(), two.evaluate(), strict=True))


def names(made):
    return {split: [entry["name"] for entry in items] for split, items in made.resolved_transforms.items()}


def test_defaults_of_small_images_are_crop_and_flip(folder):
    made = pipeline(name="imagefolder", root=str(folder))
    assert names(made) == {
        "train": ["RandomCrop", "RandomHorizontalFlip", "ToDtype", "Normalize"],
        "val": ["ToDtype", "Normalize"],
    }
    assert made.resolved_transforms["train"][0] == {"name": "RandomCrop", "size": [16, 16], "padding": [2, 2]}
    assert made.shape == (3, 16, 16)


def test_small_images_of_one_size_that_is_no_square_get_the_same_defaults(tmp_path):
    made = pipeline(name="imagefolder", root=str(noise(tmp_path, {"train": 3, "val": 2}, size=(12, 24))))
    assert names(made)["train"] == ["RandomCrop", "RandomHorizontalFlip", "ToDtype", "Normalize"]
    assert names(made)["val"] == ["ToDtype", "Normalize"]
    assert made.resolved_transforms["train"][0] == {"name": "RandomCrop", "size": [12, 24], "padding": [3, 1]}
    assert made.shape == made.val_shape == (3, 12, 24)
    made = pipeline(name="imagefolder", root=str(tmp_path), **lists(val=[{"name": "CenterCrop", "size": [10, 24]}]))
    assert made.resolved_transforms["train"][0] == {"name": "RandomCrop", "size": [10, 24]}


def test_digits_are_not_mirrored_by_default():
    made = pipeline(name="digits")
    assert names(made) == {"train": ["RandomCrop", "ToDtype", "Normalize"], "val": ["ToDtype", "Normalize"]}
    assert made.resolved_transforms["train"][0]["padding"] == [1, 1]
    batch = next(Batches(made, batch_size=1437, where=where).train(0, 1))
    assert abs(batch.images.mean()) < 0.1
    assert abs(batch.images.std() - 1) < 0.1


def test_defaults_of_photos_are_the_usual_ones(tmp_path):
    made = pipeline(**mixed(tmp_path))
    assert names(made) == {
        "train": ["RandomResizedCrop", "RandomHorizontalFlip", "ToDtype", "Normalize"],
        "val": ["Resize", "CenterCrop", "ToDtype", "Normalize"],
    }
    assert made.resolved_transforms["val"][0]["size"] == 256
    assert made.resolved_transforms["train"][-1] == {
        "name": "Normalize",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    own = pipeline(**mixed(tmp_path), **lists(train=[PHOTOS[0]]))
    assert [entry["size"] for entry in own.resolved_transforms["val"][:2]] == [11, [10, 10]]


GRAY = {"name": "Grayscale", "num_output_channels": 3}
BLUR = {"name": "RandomApply", "p": 0.5, "transforms": [{"name": "GaussianBlur", "kernel_size": 3}]}


@pytest.mark.parametrize(
    ("given", "other", "first"),
    [
        ({"train": [{"name": "RandomCrop", "size": 12}]}, "val", {"name": "CenterCrop", "size": [12, 12]}),
        ({"train": [{"name": "Resize", "size": 24}]}, "val", {"name": "Resize", "size": [24, 24]}),
        ({"train": [{"name": "Resize", "size": 12}]}, "val", {"name": "Resize", "size": [12, 12]}),
        ({"train": [{"name": "RandomResizedCrop", "size": 12}]}, "val", {"name": "Resize", "size": [12, 12]}),
        (
            {"train": [{"name": "Resize", "size": 20}, {"name": "RandomCrop", "size": 12}]},
            "val",
            {"name": "Resize", "size": [20, 20]},
        ),
        (
            {"train": [{"name": "RandomCrop", "size": 20, "padding": 4, "fill": 255}]},
            "val",
            {"name": "Resize", "size": [20, 20]},
        ),
        (
            {"train": [{"name": "RandomCrop", "size": 12, "padding": 2, "padding_mode": "reflect"}]},
            "val",
            {"name": "CenterCrop", "size": [12, 12]},
        ),
        ({"train": [BLUR, {"name": "RandomCrop", "size": 12}]}, "val", {"name": "CenterCrop", "size": [12, 12]}),
        *(
            ({"train": [chance, {"name": "RandomCrop", "size": 12}]}, "val", {"name": "Resize", "size": [12, 12]})
            for chance in (
                {"name": "RandomZoomOut", "p": 1e-9},
                {"name": "RandomApply", "p": 1e-9, "transforms": [{"name": "Resize", "size": 30}]},
                {
                    "name": "RandomApply",
                    "p": 1e-9,
                    "transforms": [
                        {"name": "Compose", "transforms": [{"name": "RandomRotation", "degrees": 9, "expand": True}]}
                    ],
                },
            )
        ),
        (
            {"train": [{"name": "CenterCrop", "size": 8}, {"name": "RandomCrop", "size": 24, "padding": 8}]},
            "val",
            {"name": "CenterCrop", "size": [8, 8]},
        ),
        (
            {"train": [{"name": "RandomResize", "min_size": 12, "max_size": 20}, {"name": "RandomCrop", "size": 12}]},
            "val",
            {"name": "Resize", "size": [12, 12]},
        ),
        (
            {"train": [{"name": "ToDtype", "dtype": "float32", "scale": True}, {"name": "Pad", "padding": 4}]},
            "val",
            {"name": "Pad", "padding": 4},
        ),
        (
            {"train": [{"name": "Normalize", "mean": [0.5] * 3, "std": [0.5] * 3}, {"name": "Pad", "padding": 4}]},
            "val",
            {"name": "Resize", "size": [24, 24]},
        ),
        (
            {"train": ["ToTensor", {"name": "Resize", "size": 20}, {"name": "RandomCrop", "size": [12]}]},
            "val",
            {"name": "Resize", "size": [20, 20]},
        ),
        (
            {"train": [{"name": "Resize", "size": [14]}, {"name": "RandomCrop", "size": 12, "padding_mode": "edge"}]},
            "val",
            {"name": "Resize", "size": [14, 14]},
        ),
        (
            {"train": [{"name": "RandomCrop", "size": 12}, {"name": "Pad", "padding": 4, "fill": 9}]},
            "val",
            {"name": "Resize", "size": [20, 20]},
        ),
        ({"train": [GRAY]}, "val", GRAY),
        ({"val": [{"name": "Compose", "transforms": [GRAY]}]}, "train", GRAY),
        ({"train": ["Grayscale", "RGB"]}, "val", {"name": "Grayscale"}),
        ({"train": [{"name": "Pad", "padding": 4, "fill": [255, 0, 0]}, "Grayscale"]}, "val", {"name": "Grayscale"}),
        (
            {"val": [{"name": "CenterCrop", "size": 20}]},
            "train",
            {"name": "RandomCrop", "size": [20, 20], "pad_if_needed": True},
        ),
        ({"train": [{"name": "Pad", "padding": 4}]}, "val", {"name": "Pad", "padding": 4}),
        ({"val": [{"name": "Pad", "padding": 4}]}, "train", {"name": "Pad", "padding": 4}),
        (
            {"train": [{"name": "RandomCrop", "size": 20, "padding": 4}]},
            "val",
            {"name": "CenterCrop", "size": [20, 20]},
        ),
        (
            {"train": [{"name": "Compose", "transforms": [{"name": "Resize", "size": 12}]}]},
            "val",
            {"name": "Resize", "size": [12, 12]},
        ),
        (
            {"val": [{"name": "Resize", "size": 14}, {"name": "CenterCrop", "size": 12}]},
            "train",
            {"name": "Resize", "size": [14, 14]},
        ),
        ({"train": [{"name": "RandomCrop", "size": 12}, BLUR]}, "val", {"name": "CenterCrop", "size": [12, 12]}),
        ({"val": [{"name": "Resize", "size": 12}]}, "train", {"name": "Resize", "size": [12, 12]}),
        ({"val": [{"name": "CenterCrop", "size": 12}]}, "train", {"name": "RandomCrop", "size": [12, 12]}),
        ({"val": [{"name": "Resize", "size": 24}]}, "train", {"name": "Resize", "size": [24, 24]}),
    ],
)
def test_a_missing_list_follows_the_size_of_the_given_one(folder, given, other, first):
    made = pipeline(name="imagefolder", root=str(folder), **lists(**given))
    assert made.resolved_transforms[other][0] == first
    assert made.shape == made.val_shape


@pytest.mark.parametrize("train", [["RandomHorizontalFlip"], ["ToTensor"], [BLUR, "RandomErasing"], []])
def test_photos_of_one_size_that_are_trained_on_whole_are_evaluated_whole(tmp_path, train):
    root = noise(tmp_path, {"train": 2, "val": 1}, size=(96, 96))
    made = pipeline(name="imagefolder", root=str(root), **lists(train=train))
    assert names(made)["val"] == ["ToDtype", "Normalize"]
    assert made.shape == made.val_shape == (3, 96, 96)


def test_photos_that_are_all_of_the_usual_size_are_made_as_others_are(tmp_path):
    made = pipeline(name="imagefolder", root=str(noise(tmp_path, {"train": 2, "val": 1}, size=(224, 224))))
    assert names(made) == {
        "train": ["RandomResizedCrop", "RandomHorizontalFlip", "ToDtype", "Normalize"],
        "val": ["Resize", "CenterCrop", "ToDtype", "Normalize"],
    }


def test_of_photos_of_several_sizes_the_other_list_follows_what_is_found_by_trying(tmp_path):
    root = noise(noise(tmp_path, {"train": 3, "val": 2}, size=(90, 80)), {"train/more": 3}, size=(99, 70))
    made = pipeline(
        name="imagefolder", root=str(root), **lists(train=[{"name": "RandomResizedCrop", "size": 64}, BLUR])
    )
    assert made.resolved_transforms["val"][:2] == [
        {"name": "Resize", "size": 73},
        {"name": "CenterCrop", "size": [64, 64]},
    ]
    assert made.shape == made.val_shape == (3, 64, 64)


OWN = {"name": "Normalize", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1]}


@pytest.mark.parametrize("ending", [[OWN], ["ToTensor"], ["ToDtype32", OWN]])
@pytest.mark.parametrize("other", [None, [{"name": "CenterCrop", "size": 12}]])
@pytest.mark.parametrize(("split", "left"), [("train", "val"), ("val", "train")])
def test_a_list_without_normalisation_gets_that_of_the_other_list(folder, ending, other, split, left):
    ending = [{"name": "ToDtype", "dtype": "float32", "scale": True} if e == "ToDtype32" else e for e in ending]
    given = {split: [{"name": "CenterCrop", "size": 12}, *ending]} | ({left: other} if other else {})
    made = pipeline(name="imagefolder", root=str(folder), **lists(**given))
    ends = {
        name: [e for e in entries if e["name"] in ("ToDtype", "Normalize")]
        for name, entries in made.resolved_transforms.items()
    }
    assert ends["train"] == ends["val"]
    assert [e["name"] for e in ends["val"]] == ["ToDtype", "Normalize"]
    assert (ends["val"][1] == OWN) == (OWN in ending)


MANY, ONE = {**OWN, "mean": [0.2, 0.5, 0.8]}, {"name": "Normalize", "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    "given",
    [
        [MANY, GRAY, {"name": "ConvertImageDtype"}],
        [MANY, "Grayscale", ONE],
        [MANY, GRAY],
        ["ToTensor", MANY, "Grayscale"],
        ["Grayscale", ONE, "RGB"],
        ["Grayscale", "ToTensor", ONE],
    ],
)
@pytest.mark.parametrize(("split", "left"), [("train", "val"), ("val", "train")])
def test_colours_are_made_before_or_behind_normalisation_as_in_the_other_list(folder, given, split, left):
    made = pipeline(name="imagefolder", root=str(folder), **lists(**{split: given}))
    plain = [entry for entry in made.resolved_transforms[left] if not entry["name"].startswith("Random")]
    assert plain == made.resolved_transforms[split]
    assert made.shape == made.val_shape


def test_conversion_alone_is_normalised_as_the_other_list(folder):
    made = pipeline(name="imagefolder", root=str(folder), **lists(train=[OWN], val=["ToTensor"]))
    assert made.resolved_transforms["val"][-1] == OWN


def test_two_normalisations_are_refused(folder):
    with pytest.raises(ConfigError, match=r"normalise differently: mean \[0.4.* against") as caught:
        pipeline(name="imagefolder", root=str(folder), **lists(train=[OWN], val=[{**OWN, "std": [0.2, 0.3, 0.2]}]))
    assert caught.value.problems[0].where == "cfg.yaml dataset.transforms.val"


BARE = {"name": "ToDtype", "dtype": "float32"}
SCALED = {**BARE, "scale": True}


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ({"train": [BARE]}, "train.0"),
        ({"val": [BARE]}, "val.0"),
        ({"train": [SCALED], "val": [BARE]}, "val.0"),
        ({"train": [SCALED, OWN], "val": [BARE, OWN]}, "val.0"),
        ({"train": [BARE, OWN], "val": [SCALED, OWN]}, "transforms"),
        ({"train": [BARE, OWN], "val": [SCALED]}, "transforms"),
    ],
)
def test_pixels_of_two_scales_are_refused(folder, given, at):
    with pytest.raises(ConfigError, match="scale") as caught:
        pipeline(name="imagefolder", root=str(folder), **lists(**given))
    assert caught.value.problems[0].where.endswith(at)


def test_a_normalisation_for_pixels_up_to_255_may_be_written(folder):
    made = pipeline(name="imagefolder", root=str(folder), **lists(train=[BARE, OWN]))
    assert made.resolved_transforms["val"][-2:] == [BARE, OWN]


def test_normalisation_of_the_weights_goes_before_that_of_the_dataset():
    section = Dataset(name="digits")
    source = open_source(section, 1, where)
    made = make_pipeline(source, section, seed=1, where=where, mean_std=((0.5,), (0.25,)))
    assert made.resolved_transforms["val"][-1] == {"name": "Normalize", "mean": [0.5], "std": [0.25]}
    gray = make_pipeline(source, section, seed=1, where=where, mean_std=((0.5,) * 3, (0.25,) * 3))
    assert gray.resolved_transforms["val"][-1]["mean"] == list(source.mean)


def test_a_normalisation_of_weights_for_pixels_up_to_255_is_refused_where_it_is_used(folder):
    def made(**given):
        section = Dataset(name="imagefolder", root=str(folder), **given)
        source = open_source(section, 1, where)
        return make_pipeline(source, section, seed=1, where=where, mean_std=((-123.7, 1.0, 1.0), (58.4, 1.0, 1.0)))

    with pytest.raises(ConfigError, match=r"the weights name a mean of -123\.7, 1\.0, 1\.0, and here") as caught:
        made()
    assert caught.value.problems[0].where.endswith("weights")
    assert "divide their mean and std by 255" in caught.value.problems[0].hint
    assert made(**lists(train=[BARE, OWN])).resolved_transforms["val"][-2:] == [BARE, OWN]


@pytest.mark.parametrize(
    ("given", "what", "place"),
    [
        (
            {"train": [{"name": "RandomCrop", "size": 40}]},
            "RandomCrop fails on .*png.*40x40 does not fit into 16x16",
            "train.0",
        ),
        (
            {"train": ["ToImage", {"name": "Normalize", "mean": [0.5], "std": [0.5]}]},
            "1 means for images of 3",
            "train.1",
        ),
        ({"train": ["RandomHorizontalFlip", "FiveCrop"]}, "FiveCrop cannot be used", "train.1"),
        ({"val": ["RandomHorizontalFlip"]}, "evaluation must not be random", "val.0"),
        (
            {"train": [OWN, {"name": "ToDtype", "dtype": "float64"}]},
            "must end with float32 images, not torch.f",
            "train",
        ),
    ],
)
def test_a_list_that_cannot_work_is_refused_before_training(folder, given, what, place):
    with pytest.raises(ConfigError, match=what) as caught:
        pipeline(name="imagefolder", root=str(folder), **lists(**given))
    assert caught.value.problems[0].where == f"cfg.yaml dataset.transforms.{place}"


def test_images_that_stay_of_different_sizes_are_refused_with_the_fix(tmp_path):
    with pytest.raises(ConfigError, match=r"images of different sizes, which make no batch[\s\S]*CenterCrop"):
        pipeline(**mixed(tmp_path), **lists(train=["RandomHorizontalFlip"]))
