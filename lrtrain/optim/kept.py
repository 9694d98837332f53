"""What an optimizer keeps between steps, as a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lrtrain.errors import CheckpointError

_HINT = "use an optimizer that keeps tensors and numbers in `state[parameter]`, as torch's own do"


def kept(optimizer: Optimizer, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain values of an optimizer's `state`, by `parameter/key`.

    Args:
        optimizer: as any step has left it.
        names: of its parameters, in its order.

    Raises:
        CheckpointError: it keeps something else, or by another key, which a checkpoint cannot hold.
    """
    parameters = parameters_of(optimizer)
    known = set(map(id, parameters))
    for parameter, own in optimizer.state.items():
        if id(parameter) not in known or not isinstance(own, Mapping):
            where = "for a parameter" if id(parameter) in known else f"as state[{str(parameter)[:40]!r}]"
            raise _refused(optimizer, own, where)
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(key, str) or "/" in key:
                raise _refused(optimizer, value, f"as {key!r}, a key that is not text or has a '/'")
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            elif value is None or isinstance(value, bool | int | str) or _finite(value):
                scalars[f"{name}/{key}"] = value
            else:
                raise _refused(optimizer, value, f"as {key!r}")
    return tensors, scalars


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All groups' parameters, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _refused(optimizer: Optimizer, value: object, where: str) -> CheckpointError:
    what = f"number {value}" if isinstance(value, float) else type(value).__name__
    return CheckpointError(
        f"{type(optimizer).__name__} keeps a {what} {where}, which a checkpoint cannot hold", hint=_HINT
    )
