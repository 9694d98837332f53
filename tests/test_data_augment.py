"""Batched transforms, held against torchvision's functions for the same drawn parameters."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lrtrain import lookup
from lrtrain.data.augment import batch_op
from lrtrain.data.transforms import Moment, build_steps, stages
from lrtrain.errors import ConfigError
from lrtrain.random import key, uniforms

IMAGES = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (16, 3, 12, 10), dtype=np.uint8))
BATCHED = ("Normalize", "RandomCrop", "RandomHorizontalFlip", "RandomVerticalFlip", "ToDtype")


def draws(op, seed=1, n=16):
    return uniforms(key(seed, "test"), np.arange(n), op.draws)


def op_for(name, **arguments):
    return batch_op(name, lookup.find("transform", name)(**arguments))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(1, 12),
    width=st.integers(1, 10),
    padding=st.sampled_from([None, 2, [1, 3], [1, 2, 3, 0]]),
    fill=st.sampled_from([0, 7, [1, 2, 3]]),
    mode=st.sampled_from(["constant", "reflect", "edge", "symmetric"]),
    as_float=st.booleans(),
)
def test_a_batched_crop_equals_torchvisions_pad_and_crop(seed, height, width, padding, fill, mode, as_float):
    images = IMAGES.float() if as_float else IMAGES
    fill = fill if mode == "constant" else 0  # torchvision takes one fill per channel for constant padding only
    op = op_for("RandomCrop", size=(height, width), padding=padding, fill=fill, padding_mode=mode)
    padded = images if padding is None else F.pad(images, padding, fill, mode)
    uniform = draws(op, seed)
    corners = op.corners(uniform, *padded.shape[-2:])
    expected = [F.crop(image, *corner, height, width) for image, corner in zip(padded, corners.tolist(), strict=True)]
    assert torch.equal(op(images, uniform), torch.stack(expected))


def test_crop_offsets_are_uniform():
    op = op_for("RandomCrop", size=32, padding=4)
    corners = op.corners(draws(op, n=9 * 9 * 200), 40, 40)
    counts = np.bincount(corners[:, 0] * 9 + corners[:, 1], minlength=81)
    assert len(counts) == 81
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert 45 < chi_square < 125  # 80 degrees of freedom: p = 0.0005 on either side


def test_a_crop_larger_than_the_image_is_refused_with_both_sizes():
    op = op_for("RandomCrop", size=40)
    with pytest.raises(ValueError, match=r"40x40 does not fit into 12x10"):
        op(IMAGES, draws(op))


@pytest.mark.parametrize(
    ("name", "flip"), [("RandomHorizontalFlip", F.horizontal_flip), ("RandomVerticalFlip", F.vertical_flip)]
)
def test_a_batched_flip_mirrors_the_samples_whose_draw_is_below_p(name, flip):
    op = op_for(name, p=0.3)
    uniform = draws(op)
    mirrored = uniform[:, 0] < 0.3
    assert 0 < mirrored.sum() < len(IMAGES)
    expected = [flip(image) if m else image for image, m in zip(IMAGES, mirrored, strict=True)]
    assert torch.equal(op(IMAGES, uniform), torch.stack(expected))


@pytest.mark.parametrize(("p", "mirrored"), [(0.0, False), (1.0, True)])
def test_a_flip_at_certain_odds_is_certain(p, mirrored):
    op = op_for("RandomHorizontalFlip", p=p)
    assert torch.equal(op(IMAGES, draws(op)), IMAGES.flip(-1) if mirrored else IMAGES)


def test_batched_normalisation_equals_torchvisions():
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
    op = op_for("Normalize", mean=mean, std=std)
    scaled = F.to_dtype(IMAGES, torch.float32, scale=True)
    expected = F.normalize(scaled, mean, std)
    torch.testing.assert_close(op(IMAGES, draws(op)), expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(op(scaled, draws(op)), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ColorJitter", {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}),
        ("Normalize", {"mean": [0.4] * 3, "std": [0.2] * 3}),
        ("RandAugment", {}),
        ("RandomCrop", {"size": 8, "padding": 2}),
        ("RandomErasing", {"p": 1.0}),
        ("RandomHorizontalFlip", {}),
        ("RandomResizedCrop", {"size": 8}),
        ("RandomVerticalFlip", {}),
        ("TrivialAugmentWide", {}),
    ],
)
@pytest.mark.parametrize("as_float", [True, False])
def test_one_channels_memory_seen_as_three_is_transformed_as_three_channels_and_left(name, arguments, as_float):
    images = (IMAGES[:, :1].float() / 255 if as_float else IMAGES[:, :1]).expand(-1, 3, -1, -1)  # as Grayscale makes
    before = images.clone()
    op = op_for(name, **arguments)
    assert op is not None
    assert torch.equal(op(images, draws(op)), op(before.clone(), draws(op)))
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16, torch.int32])
def test_whole_numbers_of_any_type_are_normalised_on_their_own_scale(dtype):
    op = op_for("Normalize", mean=[0.5] * 3, std=[0.5] * 3)
    whole = F.to_dtype(IMAGES, dtype, scale=True)
    expected = F.normalize(F.to_dtype(whole, torch.float32, scale=True), [0.5] * 3, [0.5] * 3)
    torch.testing.assert_close(op(whole, draws(op)), expected, rtol=1e-5, atol=2e-6)


def test_counts_are_no_pixels():
    op = op_for("Normalize", mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ValueError, match="pixels of int64 have no scale; uint8 and float32 have"):
        op(IMAGES.long(), draws(op))


def test_batched_conversion_equals_torchvisions():
    op = op_for("ToDtype", dtype=torch.float32, scale=True)
    expected = [F.to_dtype(image, torch.float32, scale=True) for image in IMAGES]
    assert torch.equal(op(IMAGES, draws(op)), torch.stack(expected))


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomCrop(4, pad_if_needed=True),
        v2.ToDtype(torch.float32),
        v2.ToDtype(torch.float64, scale=True),
        v2.RandomInvert(),
    ],
)
def test_options_without_a_batched_op_are_left_to_torchvision(transform):
    assert batch_op(type(transform).__name__, transform) is None


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sample_gets_the_same_bits_alone_and_in_a_batch(name, layout):
    arguments = {
        "Normalize": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1]},
        "RandomCrop": {"size": 8, "padding": 2},
        "ToDtype": {"dtype": torch.float32, "scale": True},
    }.get(name, {})
    op = op_for(name, **arguments)
    uniform = draws(op)
    batch = op(IMAGES.contiguous(memory_format=layout), uniform)
    for i in range(len(IMAGES)):
        assert torch.equal(op(IMAGES[i : i + 1], uniform[i : i + 1])[0], batch[i])


def test_what_is_drawn_for_a_sample_differs_between_epochs_seeds_and_ops():
    index = np.arange(50)
    base = Moment(1, 0).uniforms(0, index, 2)
    assert np.array_equal(base, Moment(1, 0).uniforms(0, index, 2))
    for moment, position in ((Moment(1, 1), 0), (Moment(2, 0), 0), (Moment(1, 0), 1)):
        assert not np.isclose(base, moment.uniforms(position, index, 2), atol=1e-6).any()


def test_what_is_drawn_for_a_sample_does_not_depend_on_its_batch():
    moment = Moment(1, 0)
    whole = moment.uniforms(0, np.arange(50), 2)
    assert np.array_equal(moment.uniforms(0, np.array([7, 49, 3]), 2), whole[[7, 49, 3]])


def three_draws():
    return torch.rand(1).item(), np.random.rand(), random.random()


def test_a_seeded_sample_sets_all_three_generators_and_puts_them_back():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = three_draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    inside = []
    first = (Moment(1, 0), 5)
    for moment, index in (first, first, (Moment(1, 0), 6), (Moment(1, 1), 5), (Moment(2, 0), 5)):
        with moment.seeded(index):
            inside.append(three_draws())
    assert inside[0] == inside[1]
    assert all(len({draw[i] for draw in inside}) == 4 for i in range(3))
    assert three_draws() == expected


def staged(*entries, size):
    steps = build_steps([{"name": e} if isinstance(e, str) else e for e in entries], [""] * len(entries))
    parts = stages(steps, size)
    return [[step.name for step in part] for part in (parts.once, parts.per_sample, parts.per_batch)]


CROP, FLIP = {"name": "RandomCrop", "size": 8}, "RandomHorizontalFlip"
TO_FLOAT = {"name": "ToDtype", "dtype": "float32", "scale": True}
NORMALIZE = {"name": "Normalize", "mean": [0.5], "std": [0.5]}


def test_a_list_is_parted_into_its_deterministic_beginning_and_its_batched_end():
    assert staged({"name": "Resize", "size": 10}, CROP, FLIP, TO_FLOAT, NORMALIZE, size=(12, 12)) == [
        ["Resize"],
        [],
        ["RandomCrop", FLIP, "Normalize"],
    ]


def test_ops_before_one_that_cannot_be_batched_run_per_sample():
    assert staged(CROP, FLIP, TO_FLOAT, NORMALIZE, "RandomInvert", size=(12, 12)) == [
        [],
        ["RandomCrop", FLIP, "Normalize", "RandomInvert"],
        [],
    ]


def test_only_images_of_one_size_are_batched():
    assert staged(FLIP, CROP, FLIP, TO_FLOAT, size=None) == [[], [FLIP, "RandomCrop"], [FLIP, "ToDtype"]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("longer", [False, True])
def test_a_list_gives_the_same_bits_per_sample_and_per_batch(layout, longer):
    normalize = {"name": "Normalize", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1]}
    jitter = {"name": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    auto = [{"name": "RandAugment"}, {"name": "TrivialAugmentWide"}, jitter]
    entries = [CROP, {"name": FLIP}, {"name": "RandomVerticalFlip"}, TO_FLOAT, normalize]
    if longer:
        crop = {"name": "RandomResizedCrop", "size": [9, 11]}
        entries = [crop, *auto, *entries, {"name": "RandomErasing", "p": 0.8}]
    steps = build_steps(entries, [""] * len(entries))
    index, moment = np.array([5, 900, 3, 44]), Moment(1, 2)
    batch = stages(steps, (12, 10)).to_batch(IMAGES[:4].contiguous(memory_format=layout), index, moment)
    (never,) = build_steps([{"name": "RandomInvert", "p": 0}], [""])
    first, last = stages(steps, (12, 10)), stages([*steps, never], None)
    assert not first.per_sample
    assert not last.per_batch
    for image, i, expected in zip(IMAGES, index.tolist(), batch, strict=False):
        assert torch.equal(last.to_sample(image, i, moment), expected)


def test_a_nested_list_of_transforms_is_built():
    entry = {"name": "RandomApply", "transforms": [{"name": "ColorJitter", "brightness": 0.5}], "p": 0.5}
    assert staged(entry, size=(12, 12)) == [[], ["RandomApply"], []]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"name": "RandomCrop"}, "RandomCrop does not take these arguments.*size"),
        ({"name": "RandomCrop", "size": "big"}, "RandomCrop does not take these arguments"),
        ({"name": "Resize", "size": 8, "interpolation": "sharp"}, "interpolation must be one of nearest.*'sharp'"),
        ({"name": "ToDtype", "dtype": "float31"}, "dtype must be a torch dtype.*'float31'"),
        ({"name": "MixUp", "num_classes": 2}, "MixUp cannot be used in a list"),
        ({"name": "RandomCorp"}, "no transform 'RandomCorp'"),
    ],
)
def test_a_transform_that_cannot_be_built_is_refused_where_it_stands(entry, what):
    with pytest.raises(ConfigError, match=what) as caught:
        build_steps([entry], ["cfg.yaml:9"])
    assert caught.value.problems[0].where == "cfg.yaml:9"
