"""Whether a checkpoint's tensors are those of this run, by their headers: found before anything is allocated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.checkpoint.format import Checkpoint
from lrtrain.checkpoint.manifest import COPY
from lrtrain.config.schema import RunConfig
from lrtrain.errors import CheckpointError, quoted
from lrtrain.lookup import is_path
from lrtrain.models.build import build_model
from lrtrain.models.weights import NEVER_NEGATIVE
from lrtrain.tensor_header import Described, described


def refuse_other_module(module: nn.Module, checkpoint: Checkpoint, part: str) -> None:
    """Refuse a part that does not have exactly a module's tensors.

    Raises:
        CheckpointError: names the first that differs, as it is in both.
    """
    _refuse_differences(described(module.state_dict()), checkpoint.described(part), checkpoint, part, "another model")


def refuse_larger(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuse a network with many more weights than a checkpoint holds before it takes memory; one's own is not built.

    Raises:
        CheckpointError: says both numbers.
    """
    if is_path(config.model.name):
        return
    held = sum(math.prod(kind.shape) for kind in checkpoint.described("model").values())
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            built = build_model(config.model, len(checkpoint.manifest["classes"]), 3, config.seed, config.where, False)
    except Exception:  # the real one will tell
        return
    if (wanted := sum(tensor.numel() for tensor in built.module.state_dict().values())) > 2 * held + _FEW:
        what = f"the checkpoint is of another model: it has {held:,} weights and biases, and this one {wanted:,}"
        raise CheckpointError(what, str(checkpoint.path), _CONFIG)


def refuse_other_optimizer(
    optimizer: Optimizer, names: tuple[str, ...], momenta: Sequence[float | None], checkpoint: Checkpoint
) -> None:
    """Refuse state that this optimizer would not keep for these parameters.

    What one of torch's optimizers keeps it says itself, on a parameter of a few numbers. A parameter that has not
    trained yet has no state; other people's optimizers may keep what they like.

    Args:
        optimizer: of this run, as any step has left it.
        names: of its parameters.
        momenta: of each group as built; a schedule may have cycled it to 0, where SGD would begin to keep nothing.
        checkpoint: holds the state.

    Raises:
        CheckpointError: names the first that differs, as it is and as it should be.
    """
    found = checkpoint.described("optimizer")
    scalars: Mapping[str, Any] = checkpoint.manifest["optimizer"]
    theirs: dict[str, dict[str, Described | str]] = {}
    kinds: dict[str, Described | str] = {name: type(value).__name__ for name, value in scalars.items()}
    for full, kind in {**kinds, **found}.items():
        name, _, key = full.rpartition("/")
        theirs.setdefault(name, {})[key] = kind
    built = [
        {**group, "momentum": momentum} if "momentum" in group else group
        for group, momentum in zip(optimizer.param_groups, momenta, strict=True)
    ]
    groups = [group for group in built for _ in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if unknown := theirs.keys() - set(names):
        what = f"the checkpoint's optimizer has a parameter {quoted(min(unknown))} that the model has not"
        raise CheckpointError(what, str(checkpoint.path), _CONFIG)
    if len(theirs) != (said := checkpoint.manifest["optimizer_parameters"]):
        what = f"the checkpoint's optimizer keeps something for {len(theirs)} parameters, and its manifest says {said}"
        raise CheckpointError(what, str(checkpoint.path), COPY)
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    known: dict[Any, dict[str, Described | str]] = {}
    for name, group, parameter in zip(names, groups, parameters, strict=True):
        if name in theirs or optimizer.state.get(parameter):
            like = (id(group), parameter.dtype, parameter.ndim)
            if like not in known:
                known[like] = _kept_for(optimizer, group, parameter)
            own = {key: _of_size(value, parameter) for key, value in known[like].items()}
            _refuse_differences(own, theirs.get(name, {}), checkpoint, "optimizer", "another optimizer", f"{name}/")


# Means and sums of squares and of magnitudes, and step sizes.
_NOT_NEGATIVE = frozenset(
    (
        "exp_avg_sq",
        "max_exp_avg_sq",
        "exp_inf",
        "square_avg",
        "acc_delta",
        "sum",
        "row_var",
        "col_var",
        "variance",
        "step_size",
        "mu_product",
        "mu",
        "eta",
    )
)
_CONFIG = "go on with the config that the checkpoint was made with"
_FEW = 2**24  # numbers, for which no memory is missed


def _refuse_differences(
    own: Mapping[str, object],
    theirs: Mapping[str, object],
    checkpoint: Checkpoint,
    part: str,
    of: str,
    prefix: str = "",
) -> None:
    differ = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
    if differ:
        first = differ[0]
        raise CheckpointError(
            f"the checkpoint is of {of}: {len(differ)} of its tensors differ, first {quoted(prefix + first)}: "
            f"{theirs.get(first, 'missing')} in the checkpoint, {own.get(first, 'missing')} in this run",
            str(checkpoint.path / f"{part}.safetensors"),
            _CONFIG,
        )


def _kept_for(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Described | str]:
    """What the optimizer keeps for a parameter of that many dimensions, whose sizes are 2, 3, 4 ... here."""
    small = torch.zeros(tuple(range(2, 2 + parameter.ndim)), dtype=parameter.dtype, requires_grad=True)
    small.grad = torch.ones_like(small)
    slow = {key: False for key in ("foreach", "fused", "capturable") if key in group}
    options = {key: value for key, value in group.items() if key != "params"} | slow | {"lr": float(group["lr"])}
    make: Callable[..., Optimizer] = type(optimizer)
    one = make([{**options, "params": [small]}])
    one.step()
    state: Mapping[str, Any] = one.state[small]
    return {
        key: Described(value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
        for key, value in state.items()
    }


def _of_size(kept: Described | str, parameter: Tensor) -> Described | str:
    """The small parameter's sizes replaced by the real one's: 2 is the first, 3 the second."""
    if isinstance(kept, str):
        return kept
    return Described(kept.dtype, tuple(side if side < 2 else parameter.shape[side - 2] for side in kept.shape))


def refuse_odd_state(state: Mapping[str, Any], optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Refuse what one of torch's optimizers never keeps: steps that were not taken, squares below 0.

    Args:
        state: tensors and numbers by `parameter/key`.
        optimizer: what the state is for.
        checkpoint: where it comes from.

    Raises:
        CheckpointError: names the first.
    """
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    for full, value in state.items():
        key = full.rpartition("/")[2]
        if not isinstance(value, Tensor | int | float) or (key != "step" and key not in _NOT_NEGATIVE):
            continue
        numbers = torch.as_tensor(value)
        low, high = (float(end) for end in torch.aminmax(numbers.float())) if numbers.numel() else (0.0, 0.0)
        most = {"step": float(checkpoint.step), "mu_product": 1.0, "mu": 1.0}.get(key, float("inf"))
        if low < 0 or high > most or (key == "step" and not low.is_integer()):
            words = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            raise CheckpointError(
                f"the checkpoint's optimizer has {quoted(full)} {words}, which no training of {checkpoint.step} steps "
                "arrives at",
                str(checkpoint.path / "optimizer.safetensors"),
                f"remove {checkpoint.path.name}: then the one before it is used",
            )


def refuse_not_finite(tensors: Mapping[str, Tensor], checkpoint: Checkpoint, part: str) -> None:
    """Refuse values that training cannot go on from.

    Raises:
        CheckpointError: names the first tensor with infinities or NaN, or a variance or count of BatchNorm below 0.
    """
    for name, tensor in tensors.items():
        below = NEVER_NEGATIVE.get(name.rpartition(".")[2])
        if below is not None and bool((tensor < 0).any()):
            raise CheckpointError(
                f"the checkpoint's {part} holds a {below} below 0, in {quoted(name)}",
                str(checkpoint.path / f"{part}.safetensors"),
                f"remove {checkpoint.path.name}: then the one before it is used",
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(
                f"the checkpoint's {part} holds values that are not finite, first in {quoted(name)}",
                str(checkpoint.path / f"{part}.safetensors"),
                f"remove {checkpoint.path.name}: then the one before it is used",
            )
