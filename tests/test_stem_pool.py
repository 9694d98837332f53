"""Max-pooling before ReLU in a resnet's stem: the same numbers, bit for bit, and the same names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import ResNet, densenet121, resnet18

from lrtrain.models.stem_pool import pool_before_relu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_gradients_and_statistics_are_the_same_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = resnet18(num_classes=5).to(dtype)
    ours = copy.deepcopy(network)
    pool_before_relu(ours)
    assert isinstance(ours.relu, nn.Identity)
    images, labels = torch.randn(6, 3, 40, 33).to(dtype), torch.arange(6) % 5
    images[0] = 0.5  # whole windows of one value, of which one gets the gradient
    images[1, :, :9] = float("nan")
    for pixels in (images[2:], images[[0, 2, 3]], images):
        outputs = []
        for each in (network, ours):
            each.zero_grad()
            outputs.append(each(pixels))
            nn.functional.cross_entropy(outputs[-1].float(), labels[: len(pixels)]).backward()
        torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0, equal_nan=True)
        for (name, expected), (_, got) in zip(network.named_parameters(), ours.named_parameters(), strict=True):
            torch.testing.assert_close(got.grad, expected.grad, rtol=0, atol=0, equal_nan=True, msg=name)
    assert ours.state_dict().keys() == network.state_dict().keys()


def test_other_networks_are_left_alone() -> None:
    class Own(ResNet):
        pass

    from torchvision.models.resnet import BasicBlock

    for network in (Own(BasicBlock, [1, 1, 1, 1]), densenet121(num_classes=2)):
        before = str(network)
        pool_before_relu(network)
        assert str(network) == before
    small = resnet18(num_classes=2)
    small.maxpool = nn.Identity()
    pool_before_relu(small)
    assert isinstance(small.relu, nn.ReLU)
