"""The exponential moving average of the weights, torch's own, without the wait that its counter costs on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@torch.no_grad()
def update(average: AveragedModel, model: nn.Module) -> None:
    """What `average.update_parameters(model)` does, which copies the counter to the GPU and waits for it.

    Tensors of whole numbers, such as indices, are the model's own: an average of equal ones is truncated to another.
    """
    if average.multi_avg_fn is None or not int(average.n_averaged):
        average.update_parameters(model)
        return
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for own, new in zip(_tensors(average.module), _tensors(model), strict=True):
        averaged, current = by_type.setdefault(own.dtype, ([], []))
        averaged.append(own.detach())
        current.append(new.detach())
    for dtype, (averaged, current) in by_type.items():
        if dtype.is_floating_point or dtype.is_complex:
            average.multi_avg_fn(averaged, current, average.n_averaged)
        else:
            torch._foreach_copy_(averaged, current)
    average.n_averaged += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
