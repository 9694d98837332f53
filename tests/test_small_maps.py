"""Convolutions on maps of a few pixels, which are matrix products here: the same numbers as torch's convolution."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18

from lrtrain.models import small_maps
from lrtrain.models.small_maps import SmallMapConv2d, multiply_small_maps


def _ours(layer: nn.Conv2d) -> nn.Conv2d:
    ours = copy.deepcopy(layer)
    multiply_small_maps(ours)
    assert type(ours) is SmallMapConv2d
    return ours


def _passed(layer: nn.Conv2d, images: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Output and the gradients of images, weight and bias, for one gradient of the output."""
    images = images.detach().clone().requires_grad_()
    out = layer(images)
    torch.manual_seed(seed)
    out.backward(torch.randn(out.shape).bfloat16().to(out.dtype))
    return [out, images.grad, *(parameter.grad for parameter in layer.parameters())]


@settings(deadline=None, max_examples=200)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_output_and_gradients_are_those_of_torchs_convolution(
    size: Any, kernel: Any, stride: Any, padding: Any, rows: int, bias: bool, last: bool, weight_last: bool
) -> None:
    layer = nn.Conv2d(3, 4, kernel, stride, padding, bias=bias, dtype=torch.float64)
    images = torch.randn(rows, 3, *size, dtype=torch.float64)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    if weight_last:
        layer.to(memory_format=torch.channels_last)
    if any(side + 2 * pad < taps for side, taps, pad in zip(size, kernel, padding, strict=True)):
        return
    ours = _ours(layer)
    for expected, got in zip(_passed(layer, images), _passed(ours, images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def _products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the inputs that are multiplied from now on."""
    shapes: list[torch.Size] = []
    apply = small_maps._Product.apply

    def counted(images: torch.Tensor, *args: Any) -> Any:
        shapes.append(images.shape)
        return apply(images, *args)

    monkeypatch.setattr(small_maps._Product, "apply", counted)
    return shapes


def test_the_last_layers_of_resnet18_at_32_px_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    network = resnet18(num_classes=10)
    names = list(network.state_dict())
    multiply_small_maps(network)
    shapes = _products(monkeypatch)
    network(torch.randn(2, 3, 32, 32))
    assert list(network.state_dict()) == names
    assert shapes == [
        (2, 128, 4, 4),  # layer3: conv1 and conv2 of its first block, the downsampling, the second block
        (2, 256, 2, 2),
        (2, 128, 4, 4),
        *2 * [(2, 256, 2, 2)],
        (2, 256, 2, 2),  # layer4, likewise
        (2, 512, 1, 1),
        (2, 256, 2, 2),
        *2 * [(2, 512, 1, 1)],
    ]
    shapes.clear()
    network(torch.randn(1, 3, 224, 224))
    assert shapes == []


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same"),
        type("Own", (nn.Conv2d,), {})(4, 4, 3, padding=1),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
    ],
    ids=["groups", "dilation", "circular", "same", "subclass", "transposed"],
)
def test_others_stay_torchs(layer: nn.Module) -> None:
    cls = type(layer)
    multiply_small_maps(nn.Sequential(layer))
    assert type(layer) is cls


def test_under_autocast_it_multiplies_in_bf16_as_exactly_as_torch() -> None:
    layer = nn.Conv2d(64, 48, 3, padding=1)
    images = torch.randn(16, 64, 2, 2)
    exact = _passed(copy.deepcopy(layer).double(), images.double())
    with torch.autocast("cpu", torch.bfloat16):
        torchs, got = (_passed(each, images) for each in (layer, _ours(layer)))
    assert [part.dtype for part in got] == [part.dtype for part in torchs] == [torch.bfloat16, *3 * [torch.float32]]
    for ours, other, right in zip(got, torchs, exact, strict=True):
        assert (ours - right).norm() <= 1.5 * (other - right).norm()


def test_frozen_parts_cost_no_gradient() -> None:
    layer = _ours(nn.Conv2d(4, 4, 3, padding=1))
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 4, 2, 2, requires_grad=True)
    layer(images).sum().backward()
    assert layer.weight.grad is None
    assert images.grad is not None
    layer.weight.requires_grad_(True)
    layer(torch.randn(2, 4, 2, 2)).sum().backward()
    assert layer.weight.grad is not None


def test_one_image_without_a_batch_is_torchs_matter() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    image = torch.randn(4, 2, 2)
    assert torch.equal(_ours(layer)(image), layer(image))


def test_what_follows_may_change_the_output_in_place() -> None:
    """As a block of a pre-activation ResNet adds its shortcut."""
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    ours = copy.deepcopy(plain)
    multiply_small_maps(ours)
    gradients = []
    for layer in (plain, ours):
        images = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
        output = layer(images)
        output += images
        output.relu_().sum().backward()
        gradients.append((output.detach(), images.grad, layer.weight.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiled_network_multiplies_them_too() -> None:
    torch._dynamo.reset()  # of sizes that it saw in other tests it would take these to be variables
    layer = _ours(nn.Conv2d(4, 4, 3, padding=1))
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    for size in (2, 1):
        images = torch.randn(2, 4, size, size)
        for got, expected in zip(_passed(compiled, images), _passed(layer, images), strict=True):
            assert torch.equal(got, expected)
        layer.zero_grad()
        compiled.zero_grad()
