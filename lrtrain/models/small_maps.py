"""Convolutions whose output is a few pixels, as matrix products.

At the end of a network made for larger images the maps are 2 x 2 or a single pixel, and most taps of a 3 x 3 kernel
lie on padding. oneDNN multiplies those too, and is slower there than elsewhere: without bf16 it spends 60 % of a
training step of resnet18 at 32 px in the last five convolutions. Here only the taps that meet a pixel are multiplied,
by one matrix product for each pixel of the output, which makes that step three times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

# In pixels. Beyond them oneDNN was as fast or faster, measured for kernels of 3 x 3 and 5 x 5 on two cores.
_LARGEST_INPUT = 16
_LARGEST_OUTPUT = 4


def multiply_small_maps(network: nn.Module) -> None:
    """Let the convolutions of a network on the CPU be matrix products wherever their maps are small.

    Parameters and their names stay as they are. Subclasses of torch's class, groups, dilation and other padding than
    zeros are left alone.
    """
    for layer in network.modules():
        if type(layer) is nn.Conv2d and _is_plain(layer):
            layer.__class__ = SmallMapConv2d


def _is_plain(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


class SmallMapConv2d(nn.Conv2d):
    """torch's convolution, by matrix products where input and output are a few pixels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.ndim != 4 or not self._is_small(input.shape[2], input.shape[3]):
            return conv2d(input, weight, bias, self.stride, self.padding)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        product: Tensor = _Product.apply(input, weight, self.stride, self.padding)
        return product if bias is None else product + bias.view(-1, 1, 1)

    def _is_small(self, height: int, width: int) -> bool:
        if height * width > _LARGEST_INPUT:
            return False
        assert not isinstance(self.padding, str)  # _is_plain
        down, across = map(_outputs, (height, width), self.kernel_size, self.stride, self.padding)
        return down > 0 and across > 0 and down * across <= _LARGEST_OUTPUT


def _outputs(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _views(size: int, kernel: int, stride: int, padding: int) -> list[tuple[slice, slice]]:
    """For each output along one side: which pixels it sees, and which taps see them."""
    views = []
    for place in range(_outputs(size, kernel, stride, padding)):
        first = place * stride - padding
        start = max(first, 0)
        stop = max(min(first + kernel, size), start)
        views.append((slice(start, stop), slice(start - first, stop - first)))
    return views


class _Product(torch.autograd.Function):
    """`conv2d(input, weight)` for an input of (n, c, h, w) and a weight of (o, c, kh, kw), both of one dtype."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        images, kernels = input.permute(0, 2, 3, 1).contiguous(), weight.permute(0, 2, 3, 1)
        down = _views(images.shape[1], kernels.shape[1], stride[0], padding[0])
        across = _views(images.shape[2], kernels.shape[2], stride[1], padding[1])
        if len(down) * len(across) > 1:  # taps are read several times, and a row of channels is quick to read
            kernels = kernels.contiguous()
        output = images.new_empty(len(images), len(down), len(across), len(kernels))
        for i, (rows, kernel_rows) in enumerate(down):
            for j, (columns, kernel_columns) in enumerate(across):
                seen, taps = images[:, rows, columns].flatten(1), kernels[:, kernel_rows, kernel_columns].flatten(1)
                output[:, i, j] = seen @ taps.t()
        ctx.save_for_backward(images, kernels)
        ctx.down, ctx.across = down, across
        return output.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        images, kernels = ctx.saved_tensors
        of_output = grads[0].permute(0, 2, 3, 1).contiguous()
        of_images = torch.zeros_like(images) if ctx.needs_input_grad[0] else None
        of_kernels = torch.zeros_like(kernels) if ctx.needs_input_grad[1] else None
        for i, (rows, kernel_rows) in enumerate(ctx.down):
            for j, (columns, kernel_columns) in enumerate(ctx.across):
                here = of_output[:, i, j]
                seen, taps = images[:, rows, columns], kernels[:, kernel_rows, kernel_columns]
                if of_images is not None:
                    of_images[:, rows, columns].add_((here @ taps.flatten(1)).view(seen.shape))
                if of_kernels is not None:
                    of_kernels[:, kernel_rows, kernel_columns].add_((here.t() @ seen.flatten(1)).view(taps.shape))
        return (
            None if of_images is None else of_images.permute(0, 3, 1, 2),
            None if of_kernels is None else of_kernels.permute(0, 3, 1, 2),
            None,
            None,
        )
