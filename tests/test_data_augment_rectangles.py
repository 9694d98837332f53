"""RandomErasing and RandomResizedCrop on batches, held against torchvision sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lrtrain.data.augment import batch_op
from lrtrain.data.transforms import Moment, build_steps, stages
from lrtrain.random import key, uniforms

B, H, W = 20, 24, 17
IMAGES = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (B, 3, H, W), dtype=np.uint8))
MODES = [v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC, v2.InterpolationMode.NEAREST]


def draws(op, seed=1, n=B):
    return uniforms(key(seed, "test"), np.arange(n), op.draws)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    p=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([(0.02, 0.33), (0.0, 0.01), (0.3, 1.0), (1.0, 1.0)]),
    value=st.sampled_from([0, 3.7, [1, 2.5, 200]]),
    as_float=st.booleans(),
)
def test_batched_erasing_equals_torchvisions(seed, p, scale, value, as_float):
    images = IMAGES.float() if as_float else IMAGES
    transform = v2.RandomErasing(p=p, scale=scale, value=value, inplace=True)
    op = batch_op("RandomErasing", transform)
    uniform = draws(op, seed)
    v = torch.tensor(transform.value)[:, None, None]
    found = op.rectangles(uniform, H, W).tolist()
    expected = [F.erase(image, *rectangle, v) for image, rectangle in zip(images, found, strict=True)]
    before = images.clone()
    assert torch.equal(op(images, uniform), torch.stack(expected))
    assert torch.equal(images, before)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([(8, 8), (31, 12), (24, 17)]),
    scale=st.sampled_from([(0.08, 1.0), (0.001, 0.01), (1.0, 1.0)]),
    interpolation=st.sampled_from(MODES),
    antialias=st.booleans(),
    as_float=st.booleans(),
)
def test_a_batched_resized_crop_equals_torchvisions(seed, size, scale, interpolation, antialias, as_float):
    images = IMAGES.float() if as_float else IMAGES
    options = {"interpolation": interpolation, "antialias": antialias}
    op = batch_op("RandomResizedCrop", v2.RandomResizedCrop(size, scale=scale, **options))
    uniform = draws(op, seed)
    windows = op.windows(uniform, H, W).tolist()
    expected = [F.resized_crop(image, *w, list(size), **options) for image, w in zip(images, windows, strict=True)]
    assert torch.equal(op(images, uniform), torch.stack(expected))


def theirs(transform, names, n, height, width):
    torch.manual_seed(1)
    image = torch.zeros(3, height, width)
    found = [transform.make_params([image]) for _ in range(n)]
    return np.array([[0] * 4 if p.get("v", 0) is None else [p[name] for name in names] for p in found])


def check_same_distribution(found, wanted):
    """Two-sample Kolmogorov-Smirnov on each column, on areas, on shapes and on the far sides."""
    for make in (lambda r: r, lambda r: r[:, 2:3] * r[:, 3:], lambda r: r[:, 2:3] / np.maximum(r[:, 3:], 1)):
        for a, b in zip(make(found).T, make(wanted).T, strict=True):
            at = np.unique(np.concatenate([a, b]))
            gap = np.searchsorted(np.sort(a), at, "right") / len(a) - np.searchsorted(np.sort(b), at, "right") / len(b)
            assert abs(gap).max() < 1.95 * (2 / len(a)) ** 0.5  # p = 0.001


# Of long images many tries do not fit, of the last none.
SIZES = [(24, 17), (40, 40), (20, 90), (90, 20), (2, 64), (64, 2)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("options", [{}, {"scale": (0.3, 0.9), "ratio": (0.5, 4)}])
def test_rectangles_are_drawn_as_torchvision_draws_them(height, width, options):
    transform = v2.RandomErasing(p=1, **options)
    op = batch_op("RandomErasing", transform)
    found = op.rectangles(draws(op, n=4000), height, width)
    check_same_distribution(found, theirs(transform, "ijhw", 4000, height, width))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("options", [{}, {"scale": (0.3, 0.9), "ratio": (0.5, 4)}])
def test_windows_are_drawn_as_torchvision_draws_them(height, width, options):
    transform = v2.RandomResizedCrop(8, **options)
    op = batch_op("RandomResizedCrop", transform)
    found = op.windows(draws(op, n=4000), height, width)
    check_same_distribution(found, theirs(transform, ("top", "left", "height", "width"), 4000, height, width))


@pytest.mark.parametrize("op", [batch_op("RandomErasing", v2.RandomErasing(p=1))])
def test_place_and_size_of_a_rectangle_are_independent(op):
    rectangles = op.rectangles(draws(op, n=4000), 400, 400)
    places = rectangles[:, :2] / (400 - rectangles[:, 2:] + 1)
    correlation = np.corrcoef(np.column_stack([places, rectangles[:, 2] * rectangles[:, 3]]), rowvar=False)
    assert abs(correlation - np.eye(3)).max() < 4 / 4000**0.5


def test_samples_are_erased_at_odds_of_p():
    op = batch_op("RandomErasing", v2.RandomErasing(p=0.3))
    erased = op.rectangles(draws(op, n=4000), 32, 32)[:, 2] > 0
    assert abs(erased.mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_erasing_with_noise_is_left_to_torchvision():
    assert batch_op("RandomErasing", v2.RandomErasing(value="random")) is None


def test_values_for_another_number_of_channels_are_refused():
    op = batch_op("RandomErasing", v2.RandomErasing(value=[1, 2]))
    with pytest.raises(ValueError, match="2 values for images of 3 channels"):
        op(IMAGES, draws(op))


@pytest.mark.parametrize("transform", [v2.RandomErasing(p=0.7), v2.RandomResizedCrop((13, 30))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("as_float", [False, True])
def test_a_sample_gets_the_same_bits_alone_and_in_a_batch(transform, layout, as_float):
    images = (IMAGES.float() / 255 if as_float else IMAGES).contiguous(memory_format=layout)
    op = batch_op(type(transform).__name__, transform)
    uniform = draws(op, 5)
    batch = op(images, uniform)
    for i in range(B):
        assert torch.equal(op(images[i : i + 1].contiguous(), uniform[i : i + 1])[0], batch[i])


def test_a_part_of_a_photo_is_drawn_for_its_own_height_and_width():
    (step,) = build_steps([{"name": "RandomResizedCrop", "size": 8}], [""])
    assert stages([step], None).per_sample == (step,)
    assert stages([step], (90, 60)).per_batch == (step,)
    moment = Moment(1, 0)
    uniform = moment.uniforms(0, np.array([4]), step.batched.draws)
    for height, width in ((90, 60), (60, 90)):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        (window,) = step.batched.windows(uniform, height, width).tolist()
        assert torch.equal(step.to_sample(image, 4, moment), F.resized_crop(image, *window, [8, 8], antialias=True))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),  # torch's own is wrong where one pixel is wide
    whole=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    mode=st.sampled_from(MODES[:2]),
    as_float=st.booleans(),
)
def test_parts_resized_together_are_those_resized_alone(seed, size, whole, mode, as_float):
    op = batch_op("RandomResizedCrop", v2.RandomResizedCrop(size, interpolation=mode))
    noise = np.random.default_rng(seed)
    images = torch.from_numpy(noise.integers(0, 256, (5, 3, *whole), dtype=np.uint8))
    windows = op.windows(noise.random((5, op.draws)), *whole)
    # In float32: on the CPU torch resizes uint8 with weights of 8 to 16 bits.
    alone = torch.stack(
        [F.resized_crop(x.float(), *at, list(size), mode, True) for x, at in zip(images, windows.tolist(), strict=True)]
    )
    together = op.together(images.float() if as_float else images, windows)
    if as_float:
        assert together.dtype == torch.float32
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=2e-2)
    else:
        assert together.dtype == torch.uint8
        assert (together.float() - alone.clamp(0, 255)).abs().max() < 0.52
