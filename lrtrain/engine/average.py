"""The exponential moving average of the weights, torch's own, without the wait that its counter costs on a GPU."""

from __future__ import annotations

import copy
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
    So are the buffers named `constant`, and those with `persistent=False`: of infinities the average is NaN. `changed`
    is called where the model has tensors of other names, shapes or types than the average, which takes such buffers
    over: of positions, for example.
    """
    theirs, ours = _tensors(model), _tensors(average.module)
    if [(name, t.shape, t.dtype) for name, t in ours] != [(name, t.shape, t.dtype) for name, t in theirs]:
        changed()
        _take_caches(average.module, model)
        ours = _tensors(average.module)
    if average.multi_avg_fn is None:
        average.update_parameters(model)
        return
    first = not int(average.n_averaged)
    by_type: dict[tuple[torch.dtype, bool], tuple[list[Tensor], list[Tensor]]] = {}
    known = dict(ours)
    parts = average.module.named_modules()
    short_lived = {f"{path}.{name}".lstrip(".") for path, part in parts for name in part._non_persistent_buffers_set}
    for name, new in theirs:
        own = known[name]
        moves = (own.dtype.is_floating_point or own.dtype.is_complex) and name not in constant
        moves = moves and not first and name not in short_lived
        moves = moves and own.layout == torch.strided  # torch averages no sparse ones
        averaged, current = by_type.setdefault((own.dtype, moves), ([], []))
        averaged.append(own.detach())
        current.append(new.detach())
    for (_, moves), (averaged, current) in by_type.items():
        if moves:
            average.multi_avg_fn(averaged, current, average.n_averaged)
        else:
            torch._foreach_copy_(averaged, current)
    average.n_averaged += 1


def _take_caches(average: nn.Module, model: nn.Module) -> None:
    made: dict[int, Tensor] = {}  # a table that several layers share is one here, too
    for path, other in model.named_modules():
        part = dict(average.named_modules()).get(path)
        if part is None:  # it may have made a layer of tables
            owner, _, last = path.rpartition(".")
            average.get_submodule(owner)._modules[last] = copy.deepcopy(other)
            continue
        part._non_persistent_buffers_set |= other._non_persistent_buffers_set
        for name, new in other._buffers.items():
            old = part._buffers.get(name)
            if old is None or new is None or (old.shape, old.dtype) != (new.shape, new.dtype):
                part._buffers[name] = None if new is None else made.setdefault(id(new), new.detach().clone())


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
