"""The exponential moving average of the weights, torch's own, without the wait that its counter costs on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@torch.no_grad()
def update(
    average: AveragedModel,
    model: nn.Module,
    constant: Collection[str] = (),
    changed: Callable[[], None] = lambda: None,
) -> None:
    """What `average.update_parameters(model)` does, which copies the counter to the GPU and waits for it.

    Tensors of whole numbers, such as indices, are the model's own: an average of equal ones is truncated to another.
    So are the buffers named `constant`: of infinities the average is NaN. Those with `persistent=False` are left alone:
    they are constants, or tables that both make as they need them. `changed` is called where others differ in shape.
    """
    if average.multi_avg_fn is None:
        average.update_parameters(model)
        return
    theirs, ours = _tensors(model), dict(_tensors(average.module))
    if any(name not in ours or (new.shape, new.dtype) != (ours[name].shape, ours[name].dtype) for name, new in theirs):
        changed()
    first = not int(average.n_averaged)
    by_type: dict[tuple[torch.dtype, bool], tuple[list[Tensor], list[Tensor]]] = {}
    for name, new in theirs:
        own = ours[name]
        moves = (own.dtype.is_floating_point or own.dtype.is_complex) and name not in constant
        moves = moves and not first and own.layout == torch.strided  # torch averages no sparse ones
        averaged, current = by_type.setdefault((own.dtype, moves), ([], []))
        averaged.append(own.detach())
        current.append(new.detach())
    for (_, moves), (averaged, current) in by_type.items():
        if moves:
            average.multi_avg_fn(averaged, current, average.n_averaged)
        else:
            torch._foreach_copy_(averaged, current)
    average.n_averaged += 1


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    parts = module.named_modules(remove_duplicate=False)
    unsaved = {f"{path}.{name}".lstrip(".") for path, part in parts for name in part._non_persistent_buffers_set}
    # What has two names, of which one is not saved, is saved; and it is averaged once.
    named = [(name, buffer) for name, buffer in module.named_buffers(remove_duplicate=False) if name not in unsaved]
    once = {id(buffer): (name, buffer) for name, buffer in reversed(named)}
    return [*module.named_parameters(), *reversed(once.values())]
