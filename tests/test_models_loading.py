"""Weights into a network: what fits, what a head is, and what own networks do as they are loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lrtrain.errors import CheckpointError
from lrtrain.models.loading import load_into
from lrtrain.models.small_cnn import small_cnn


def state_of(num_classes: int, in_channels: int = 3) -> dict[str, Tensor]:
    return small_cnn(num_classes, in_channels, 4).state_dict()


@given(old=st.integers(1, 12), new=st.integers(1, 12), gray=st.booleans())
@settings(max_examples=25, deadline=None)
def test_all_but_a_head_of_another_size_arrives(old: int, new: int, gray: bool) -> None:
    state, module = state_of(old), small_cnn(new, 1 if gray else 3, 4)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    loaded = load_into(module, state, new, "a file")
    assert loaded.head == (() if old == new else ("fc.weight", "fc.bias"))
    assert loaded.notes[-1] == (
        f"head: {new} classes, kept as in a file" if old == new else f"head fc: {old} -> {new} classes, new"
    )
    expected = state | {name: own[name] for name in loaded.head}
    if gray:
        expected["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_a_head_that_a_file_of_a_backbone_lacks_is_new() -> None:
    state, module = {k: v for k, v in state_of(9).items() if not k.startswith("fc.")}, small_cnn(7, 3, 4)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    loaded = load_into(module, state, 7, "a file")
    assert (loaded.head, loaded.notes) == (("fc.weight", "fc.bias"), ("head fc: not in the file, new",))
    expected = state | {name: own[name] for name in loaded.head}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
    for lacks in (("fc.weight",), ("conv2.weight",), ("fc.", "conv2.")):  # half a head, and what else has eight rows
        state = {k: v for k, v in state_of(9).items() if not k.startswith(lacks)}
        with pytest.raises(CheckpointError, match="missing are"):
            load_into(small_cnn(8, 3, 4), state, 8, "a file")


def test_a_head_that_shares_its_weights_with_what_the_file_has_is_not_new() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 7, bias=False), nn.Linear(4, 7))
    module[2].weight = module[1].weight
    state = {"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4), "1.weight": torch.ones(7, 4)}
    with pytest.raises(CheckpointError, match=r"missing are 2\.bias"):
        load_into(module, state, 7, "a file")


def test_a_prefix_that_no_name_should_have_is_named() -> None:
    state = {f"encoder_q.{name}": tensor for name, tensor in state_of(9).items()} | {"queue": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"begin with 'encoder_q\.' alone"):
        load_into(small_cnn(7, 3, 4), state, 7, "a file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv2.weight": None}, r"missing are conv2\.weight"),
        ({"extra.weight": torch.zeros(1)}, r"left over are extra\.weight"),
        ({"conv2.weight": torch.zeros(8, 5, 3, 3)}, r"conv2\.weight is 8x5x3x3 and must be 8x4x3x3"),
        ({"conv2.weight": torch.zeros(8, 4, 3, 3, dtype=torch.int8)}, "8x4x3x3 int8"),
        ({"bn1.bias": torch.zeros(5)}, r"bn1\.bias is 5 and must be 4"),
        ({"fc.weight": torch.zeros(9, 17), "fc.bias": torch.zeros(9)}, r"fc\.weight is 9x17 and must be 7x16"),
    ],
)
def test_any_other_mismatch_is_refused_by_name_and_changes_nothing(
    change: dict[str, Tensor | None], message: str
) -> None:
    state = {k: v for k, v in (state_of(9) | change).items() if v is not None}
    module = small_cnn(7, 3, 4)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_into(module, state, 7, "a file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_files_older_than_batch_counters_load() -> None:
    state = {name: tensor for name, tensor in state_of(7).items() if "num_batches_tracked" not in name}
    assert load_into(small_cnn(7, 3, 4), state, 7, "a file").head == ()


def test_every_convolution_that_sees_gray_images_takes_weights_for_colour() -> None:
    SpaceToDepth: Any = pytest.importorskip("timm.layers").SpaceToDepth

    class Branches(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(channels, 4, 1)
            self.space = SpaceToDepth(4)
            self.deep = nn.Conv2d(16 * channels, 4, 1)
            self.depthwise = nn.Conv2d(4, 4, 3, groups=4)

        def forward(self, images: Tensor) -> Tensor:
            seen = self.wide(images) + self.narrow(images), self.deep(self.space(images))
            return seen[0].mean((2, 3)) + seen[1].mean((2, 3))

    colour, gray = Branches(3), Branches(1)
    loaded = load_into(gray, colour.state_dict(), 7, "w.pth")
    assert loaded.notes[:3] == (
        "first convolution wide: 3 -> 1 channels, weights summed",
        "convolution narrow: 3 -> 1 channels, weights summed",
        "convolution deep: 48 -> 16 channels, weights summed",
    )
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(gray(images), colour(images.expand(-1, 3, -1, -1)))
    # Elsewhere sixteen pixels of one colour may be side by side.
    other = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3)).state_dict()
    with pytest.raises(CheckpointError, match="shapes differ"):
        load_into(nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 8, 3)), other, 7, "w.pth")


def test_no_tensor_of_a_file_takes_the_place_of_another() -> None:
    one = nn.Module()
    one.module = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"have two tensors for 'module\.weight'"):
        load_into(one, {**one.state_dict(), "weight": torch.ones(2, 2)}, 7, "w.pth")
    two = nn.Module()
    two.module = one
    state = {name.removeprefix("module.module."): torch.ones_like(value) for name, value in two.state_dict().items()}
    load_into(two, state, 7, "w.pth")
    assert torch.equal(one.module.weight, torch.ones(2, 2))


def test_a_network_that_answers_with_copies_of_its_state_is_loaded_too() -> None:
    class Own(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {name: value.clone() for name, value in super().state_dict(*args, **kwargs).items()}

    own = Own(2, 2)
    load_into(own, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, 2, "w.pth")
    assert torch.equal(own.weight, torch.ones(2, 2))


def test_what_a_network_computes_from_its_weights_as_it_is_loaded_is_computed() -> None:
    class Own(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("norm", torch.zeros(()), persistent=False)
            self.register_load_state_dict_post_hook(Own.loaded)

        def loaded(self, _: object) -> None:
            self.norm.copy_(self.weight.detach().norm())

    own = Own()
    load_into(own, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, 2, "w.pth")
    assert own.norm == 2


def test_a_frozen_batch_norm_takes_the_weights_of_one_that_counts() -> None:
    trained, frozen = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(FrozenBatchNorm2d(3))
    trained(torch.randn(8, 3, 4, 4))
    load_into(frozen, trained.state_dict(), 2, "w.pth")
    images = torch.randn(2, 3, 4, 4)
    assert torch.allclose(frozen(images), trained.eval()(images), atol=1e-6)


def test_a_network_that_names_its_tensors_as_no_module_of_its_own_is_loaded() -> None:
    class Own(nn.Sequential):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {f"head.{name}": value for name, value in super().state_dict(*args, **kwargs).items()}

        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict({name[5:]: value for name, value in state.items()}, *args, **kwargs)

    own, other = Own(nn.Linear(2, 5)), Own(nn.Linear(2, 7))
    assert load_into(own, other.state_dict(), 5, "w.pth").head == ("head.0.weight", "head.0.bias")
    same = Own(nn.Linear(2, 5))
    load_into(own, same.state_dict(), 5, "w.pth")
    assert torch.equal(own[0].weight, same[0].weight)


def test_a_head_of_two_names_is_replaced_where_the_file_has_one() -> None:
    def made(classes: int) -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, classes))
        module.head = module[1]
        return module

    state = {name: value for name, value in made(10).state_dict().items() if not name.startswith("head")}
    assert load_into(made(5), state, 5, "w.pth").head == ("1.weight", "1.bias")


@pytest.mark.parametrize("layer", ["conv1", "conv2", "bn2"])
def test_a_layer_in_the_middle_with_as_many_outputs_as_classes_is_no_head(layer: str) -> None:
    module = small_cnn(8, 1, 8)  # the first two convolutions have 8 outputs
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    size = {"conv1": 8, "conv2": 16, "bn2": 16}[layer]
    module = small_cnn(size, 1, 8)
    state |= {k: v for k, v in module.state_dict().items() if k.startswith("fc.")}
    state |= {name: tensor[:3] for name, tensor in state.items() if name.startswith(layer) and tensor.dim()}
    if layer == "conv2":  # it might be one; but its tensors are of several sizes
        module.conv2.bias = nn.Parameter(torch.zeros(size))
        state["conv2.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=rf"shapes differ: {layer}\."):
        load_into(module, state, size, "a file")


def test_a_first_convolution_of_whole_numbers_is_refused_for_gray_images_too() -> None:
    state = state_of(7)
    first = next(iter(state))
    assert state[first].dim() == 4
    with pytest.raises(CheckpointError, match=f"{first} is .* int8"):
        load_into(small_cnn(7, 1, 4), state | {first: state[first].to(torch.int8)}, 7, "a file")


def test_colours_are_summed_in_float32() -> None:
    module = small_cnn(7, 1, 4)
    state = {name: tensor.half() for name, tensor in small_cnn(7, 3, 4).state_dict().items()}
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], 3e4)
    load_into(module, state, 7, "a file")
    assert torch.equal(module.conv1.weight, torch.full_like(module.conv1.weight, 9e4))
