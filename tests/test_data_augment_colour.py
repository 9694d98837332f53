"""ColorJitter, TrivialAugmentWide and RandAugment on batches, held against torchvision sample by sample."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lrtrain.data.augment import batch_op, colour
from lrtrain.random import key, uniforms

B, H, W = 24, 16, 32
AUTO = (v2.TrivialAugmentWide, v2.RandAugment)


def pictures(channels=3, seed=1):
    """Noise, half of it smooth and of few colours, where rounding decides more often."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (B, channels, H, W), dtype=np.uint8)
    noise[::2] = np.minimum(noise[::2, :1] // 64 * 70 + noise[::2] // 100, 255)
    noise[0] = 7
    return torch.from_numpy(noise)


def draws(op, seed=1, n=B):
    return uniforms(key(seed, "test"), np.arange(n), op.draws)


def equal(actual, expected):
    if actual.dtype == torch.uint8:
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["brightness", "contrast", "saturation", "hue", "sharpness"]),
    channels=st.sampled_from([1, 3]),
    as_float=st.booleans(),
    wide=st.booleans(),
)
def test_a_factor_a_sample_gives_what_torchvision_gives_each_sample(seed, name, channels, as_float, wide):
    images = pictures(channels, seed)
    images = F.to_dtype(images, torch.float32, scale=True) if as_float else images
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 3.0 if wide else 1.0)
    factors = np.random.default_rng(seed).uniform(low, high, B)
    factors[:2] = low, high
    expected = [getattr(F, f"adjust_{name}")(image, f) for image, f in zip(images, factors.tolist(), strict=True)]
    equal(getattr(colour, f"adjust_{name}")(images, factors), torch.stack(expected))


def test_images_stay_as_they_are_where_there_is_no_float64(monkeypatch):
    monkeypatch.setattr(colour, "_wide", lambda images: torch.float32)
    images = F.to_dtype(pictures(1, 1), torch.float32, scale=True)
    before = images.clone()
    made = colour.adjust_contrast(images, np.full(B, 0.5))
    assert torch.equal(images, before)
    torch.testing.assert_close(made, torch.stack([F.adjust_contrast(image, 0.5) for image in images]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize(
    "transform",
    [v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.ColorJitter((0, 3), None, (0.5, 2), 0.5), v2.ColorJitter(contrast=0.9)],
)
def test_batched_jitter_equals_torchvisions(transform, as_float, seed):
    images = pictures(seed=seed)
    images = F.to_dtype(images, torch.float32, scale=True) if as_float else images
    op = batch_op("ColorJitter", transform)
    uniform = draws(op, seed)
    names = ("brightness", "contrast", "saturation", "hue")
    expected = []
    for image, order, factors in zip(images, op.order(uniform).tolist(), op.factors(uniform).tolist(), strict=True):
        given = {
            f"{name}_factor": None if getattr(transform, name) is None else factor
            for name, factor in zip(names, factors, strict=True)
        }
        expected.append(transform.transform(image, {"fn_idx": torch.tensor(order), **given}))
    equal(op(images, uniform), torch.stack(expected))


def test_jitter_draws_factors_and_order_as_torchvision_does():
    transform = v2.ColorJitter((0.2, 1.7), 0.4, 2.0, (-0.1, 0.3))
    op, n = batch_op("ColorJitter", transform), 4000
    uniform = draws(op, n=n)
    torch.manual_seed(1)
    theirs = [transform.make_params([]) for _ in range(n)]
    at = np.linspace(0.05, 0.95, 10)
    for i, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        low, high = getattr(transform, name)
        wanted = np.quantile([p[f"{name}_factor"] for p in theirs], at)
        found = np.quantile(op.factors(uniform)[:, i], at)
        # A quantile of n draws errs by at most 0.5 / sqrt(n) of the range; here are two, at four sigma.
        np.testing.assert_allclose(found, wanted, atol=4 * 0.5 * (2 / n) ** 0.5 * (high - low))
    counts = Counter(map(tuple, op.order(uniform).tolist()))
    assert len(counts) == 24
    chi_square = sum((c - n / 24) ** 2 / (n / 24) for c in counts.values())
    assert 7 < chi_square < 50  # 23 degrees of freedom: p = 0.001 on either side
    drawn = np.column_stack([op.factors(uniform), op.order(uniform)[:, 0]])
    correlation = np.corrcoef(drawn, rowvar=False) - np.eye(5)
    assert abs(correlation).max() < 4 / n**0.5


def test_colours_of_two_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        colour.adjust_brightness(pictures(2), np.ones(B))


def rounds(op, uniform, height=H, width=W):
    found = op.parameters(uniform, height, width)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "transform",
    [
        v2.TrivialAugmentWide(),
        v2.TrivialAugmentWide(num_magnitude_bins=4, interpolation=v2.InterpolationMode.BILINEAR, fill=[9, 50, 200]),
        v2.RandAugment(),
        v2.RandAugment(num_ops=3, magnitude=20, fill=128),
        v2.RandAugment(num_ops=0),
    ],
)
def test_batched_augmentations_equal_torchvisions(transform, seed):
    images = pictures(seed=seed)
    op = batch_op(type(transform).__name__, transform)
    uniform = draws(op, seed)
    expected = list(images)
    for kinds, strengths in rounds(op, uniform):
        expected = [
            transform._apply_image_or_video_transform(image, kind, strength, transform.interpolation, transform._fill)
            for image, kind, strength in zip(expected, kinds.tolist(), strengths.tolist(), strict=True)
        ]
    equal(op(images, uniform), torch.stack(expected))


@pytest.mark.parametrize("kind", v2.TrivialAugmentWide._AUGMENTATION_SPACE)
@pytest.mark.parametrize("as_float", [False, True])
def test_every_kind_of_augmentation_equals_torchvisions(kind, as_float):
    transform = v2.TrivialAugmentWide()
    op = batch_op("TrivialAugmentWide", transform)
    images = F.to_dtype(pictures(), torch.float32, scale=True) if as_float else pictures()
    place = list(transform._AUGMENTATION_SPACE).index(kind)
    uniform = draws(op)
    uniform[:, 0] = (place + uniform[:, 0]) / 14
    kinds, strengths = op.parameters(uniform, H, W)
    assert set(kinds) == {kind}
    expected = [
        transform._apply_image_or_video_transform(image, kind, strength, transform.interpolation, transform._fill)
        for image, strength in zip(images, strengths.tolist(), strict=True)
    ]
    equal(op(images, uniform), torch.stack(expected))


@pytest.mark.parametrize(
    "transform", [v2.TrivialAugmentWide(), v2.RandAugment(magnitude=7), v2.RandAugment(num_ops=1, magnitude=30)]
)
def test_kinds_and_magnitudes_are_drawn_as_torchvision_draws_them(transform, monkeypatch):
    op, n = batch_op(type(transform).__name__, transform), 4000
    ours = [
        Counter(zip(kinds.tolist(), strengths.round(4).tolist(), strict=True))
        for kinds, strengths in rounds(op, draws(op, n=n), 40, 60)
    ]
    seen = []

    def noted(image, kind, strength, **_):
        seen.append((kind, round(strength, 4)))
        return image

    monkeypatch.setattr(transform, "_apply_image_or_video_transform", noted)
    torch.manual_seed(1)
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    for _ in range(n):
        transform(image)
    for i, found in enumerate(ours):
        wanted = Counter(seen[i :: len(ours)])
        # Two samples of n from one distribution: the sum over cells of (a - b)^2 / (a + b) is chi-square.
        cells = [(found[cell], wanted[cell]) for cell in set(found) | set(wanted)]
        chi_square, freedom = sum((a - b) ** 2 / (a + b) for a, b in cells), len(cells) - 1
        assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_rounds_of_randaugment_are_drawn_apart():
    (first, _), (second, _) = rounds(op := batch_op("RandAugment", v2.RandAugment()), draws_of(3000))
    assert op.draws == 4
    assert abs((first == second).mean() - 1 / 14) < 4 * (1 / 14 / 3000) ** 0.5


def draws_of(n):
    return uniforms(key(1, "test"), np.arange(n), 4)


@pytest.mark.parametrize("transform", [t(fill={torch.Tensor: 1}) for t in AUTO])
def test_a_fill_by_type_is_left_to_torchvision(transform):
    assert batch_op(type(transform).__name__, transform) is None


@pytest.mark.parametrize(
    "transform", [v2.ColorJitter(0.9, 0.9, 0.9, 0.5), v2.TrivialAugmentWide(), v2.RandAugment(num_ops=4)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("size", [(16, 32), (13, 11), (97, 101)])
def test_a_sample_gets_the_same_bits_alone_and_in_a_batch(transform, layout, as_float, size):
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.integers(0, 256, (B, 3, *size), dtype=np.uint8)).contiguous(memory_format=layout)
    images = F.to_dtype(images, torch.float32, scale=True) if as_float else images
    before, op = images.clone(), batch_op(type(transform).__name__, transform)
    uniform = draws(op, 5)
    batch = op(images, uniform)
    assert torch.equal(images, before)
    for i in range(B):
        assert torch.equal(op(images[i : i + 1].contiguous(), uniform[i : i + 1])[0], batch[i])
