"""Values that are not finite: by design in a mask, and elsewhere what no training goes on from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def infinite_buffers(module: nn.Module) -> frozenset[str]:
    """The names of the buffers that hold infinities as the model is built, such as a mask of attention: by design.

    Parameters that are frozen where they are made are as good as buffers.
    """
    named = module.named_parameters(remove_duplicate=False)  # layers may share one: state_dict() has all its names
    frozen = [(name, parameter) for name, parameter in named if not parameter.requires_grad]
    held = (*module.named_buffers(remove_duplicate=False), *frozen)
    return frozenset(name for name, one in held if first_bad_tensor([(name, one)]))


def first_bad_tensor(tensors: Sequence[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    floats = [
        (name, tensor.detach())
        for name, tensor in tensors
        if tensor.is_floating_point() and tensor.numel() and tensor.layout == torch.strided and not tensor.is_meta
    ]
    return next((name for name, tensor in floats if not bool(tensor.float().isfinite().all())), None)
