"""Convolutions whose output is a few pixels, as matrix products.

At the end of a network made for larger images the maps are 2 x 2 or a single pixel, and most taps of a 3 x 3 kernel
lie on padding. oneDNN multiplies those too, and is slower there than elsewhere: without bf16 it spends 60 % of a
training step of resnet18 at 32 px in the last five convolutions. Here only the taps that meet a pixel are multiplied,
by one matrix product for each pixel of the output, which makes that step three times as fast.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

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


class _Run(NamedTuple):
    """Neighbouring outputs along one side that see the same pixels, each by taps of its own."""

    outputs: slice
    pixels: slice
    taps: list[slice]


def _runs(size: int, kernel: int, stride: int, padding: int) -> list[_Run]:
    """The outputs along one side, in their order."""
    runs: list[_Run] = []
    for place in range(_outputs(size, kernel, stride, padding)):
        first = place * stride - padding
        start = max(first, 0)
        pixels = slice(start, max(min(first + kernel, size), start))
        taps = slice(start - first, pixels.stop - first)
        if runs and runs[-1].pixels == pixels:
            begun = runs.pop()
            runs.append(_Run(slice(begun.outputs.start, place + 1), pixels, [*begun.taps, taps]))
        else:
            runs.append(_Run(slice(place, place + 1), pixels, [taps]))
    return runs


class _Product(torch.autograd.Function):
    """`conv2d(input, weight)` for an input of (n, c, h, w) and a weight of (o, c, kh, kw), both of one dtype.

    Outputs that see the same pixels are one product: (n, pixels * c) by (pixels * c, outputs * o).
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        images, kernels = input.permute(0, 2, 3, 1).contiguous(), weight.permute(0, 2, 3, 1)
        down, across = map(_runs, images.shape[1:3], kernels.shape[1:3], stride, padding)
        height, width = down[-1].outputs.stop, across[-1].outputs.stop
        if height * width > 1:  # taps are read several times, and a row of channels is quick to read
            kernels = kernels.contiguous()
        # No view, which what follows could not change in place.
        size, layout = (len(images), len(kernels), height, width), torch.channels_last
        output = torch.empty(size, dtype=images.dtype, device=images.device, memory_format=layout)
        pixels = output.permute(0, 2, 3, 1)
        factors = []
        for rows, columns in product(down, across):
            seen = images[:, rows.pixels, columns.pixels].flatten(1)
            taps = torch.stack([kernels[:, i, j] for i, j in product(rows.taps, columns.taps)]).flatten(2).flatten(0, 1)
            here = pixels[:, rows.outputs, columns.outputs]
            here.copy_((seen @ taps.t()).view(here.shape))
            factors += [seen, taps]
        ctx.save_for_backward(weight, *factors)
        ctx.down, ctx.across, ctx.shape = down, across, images.shape
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, *factors = ctx.saved_tensors
        of_output = grads[0].permute(0, 2, 3, 1)
        of_images = weight.new_zeros(ctx.shape) if ctx.needs_input_grad[0] else None
        of_kernels = _zeros_by_tap(weight, of_output) if ctx.needs_input_grad[1] else None
        for rows, columns in product(ctx.down, ctx.across):
            seen, taps, *factors = factors
            here = of_output[:, rows.outputs, columns.outputs].flatten(1)
            if of_images is not None:
                there = of_images[:, rows.pixels, columns.pixels]
                there.add_((here @ taps).view(there.shape))
            if of_kernels is not None:
                of_taps = (here.t() @ seen).unflatten(0, (-1, len(weight)))
                for part, (i, j) in zip(of_taps, product(rows.taps, columns.taps), strict=True):
                    those = of_kernels[:, i, j]
                    those.add_(part.view(those.shape))
        return (
            None if of_images is None else of_images.permute(0, 3, 1, 2),
            None if of_kernels is None else of_kernels.permute(0, 3, 1, 2),
            None,
            None,
        )


def _zeros_by_tap(weight: Tensor, of_output: Tensor) -> Tensor:
    """(o, kh, kw, c): in the weight's own layout for a single output, else in this one, as several are added to it."""
    if of_output.shape[1:3].numel() == 1:
        return torch.zeros_like(weight).permute(0, 2, 3, 1)
    return weight.new_zeros(weight.permute(0, 2, 3, 1).shape)
