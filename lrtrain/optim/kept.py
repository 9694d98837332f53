"""What an optimizer keeps between steps, as a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
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


def put_back(
    optimizer: Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Give an optimizer what another one `kept`."""
    parameters = parameters_of(optimizer)
    position = {name: i for i, name in enumerate(names)}
    saved: dict[int, dict[str, Any]] = {}
    for full, value in (*tensors.items(), *scalars.items()):
        name, _, key = full.rpartition("/")
        parameter = parameters[position[name]]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # The parameter's memory format too: sums over another layout round differently.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        saved.setdefault(position[name], {})[key] = value
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    # It casts all but `step` to the parameter's type, where an optimizer may keep another.
    for i, values in saved.items():
        own = optimizer.state[parameters[i]]
        for key, value in values.items():
            if isinstance(value, Tensor) and isinstance(cast := own.get(key), Tensor) and cast.dtype != value.dtype:
                own[key] = value.to(cast.device)


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
