"""torch's optimizer over named groups."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrtrain import lookup
from lrtrain.config import schema
from lrtrain.errors import CheckpointError, ConfigError, about, out_of_memory
from lrtrain.optim.groups import ParamGroup, Where, plain_args
from lrtrain.optim.kept import kept, parameters_of
from lrtrain.optim.resumable import goes_on_otherwise
from lrtrain.random import put_back
from lrtrain.tensor_header import header_of

# Classes with a fused kernel, by device; torch's own default is a slower loop on the CPU.
_FUSED: dict[str, tuple[type[torch.optim.Optimizer], ...]] = {
    "cpu": (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad),
    "cuda": (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW),
}


def build_optimizer(
    groups: Sequence[ParamGroup], optimizer: schema.Optimizer, device: torch.device, where: Where, scaled: bool = False
) -> torch.optim.Optimizer:
    """Build the config's optimizer with one torch parameter group per group, in the same order.

    `fused` is on where torch has such a kernel for the device, unless the config says `fused` or `foreach`, and off
    where a gradient scaler may skip steps (`scaled`): skipped the first time, torch 2.14's fused SGD leaves its
    momentum as uninitialised memory, which the next step then trains with.

    Raises:
        ConfigError: the name leads nowhere, the optimizer refuses its arguments or parameters, has other groups, or
            keeps what no checkpoint holds.
    """
    with about(where("optimizer", "name")):
        cls = lookup.find("optimizer", optimizer.name)
    _refuse_kernels_for_muon(cls, groups, where)
    args = plain_args(optimizer.args)
    if scaled and args.get("fused"):
        what = "fused: true and precision fp16 do not go together: a skipped first step leaves uninitialised momentum"
        raise ConfigError(what, where("optimizer", "fused"), "leave fused out, or use bf16")
    half = next(
        (f"{g.name!r}" for g in groups if any(p.dtype == torch.float16 and p.requires_grad for p in g.parameters)), None
    )
    if scaled and half:
        what = f"precision fp16 scales the gradients of float32 weights, and those of group {half} are float16"
        raise ConfigError(what, where("precision"), "leave half() out of the model: it computes in float16 anyway")
    if not scaled and _can_fuse(cls, groups, device) and not {"fused", "foreach", "differentiable"} & args.keys():
        args["fused"] = True
    args = {"lr": optimizer.lr, **args}
    parameters = [{"params": list(group.parameters), "lr": group.lr, **group.options} for group in groups]
    built = _construct(cls, parameters, optimizer.name, args, where("optimizer"))
    _try_step(cls, groups, args, device, optimizer.name, where("optimizer"))
    if lookup.is_path(optimizer.name):
        _refuse_unresumable(cls, groups, args, optimizer.name, where("optimizer"))
    for group in groups:
        if group.options:
            _check_options(cls, built, group, optimizer.name, args, where("optimizer", "groups"))
    return built


_CYCLED = ("momentum", "betas")
_TRIED = 10  # steps
_KEEP = "use an optimizer that keeps what changes in `state`, as torch's own do"


def momentum_of(group: Mapping[str, Any]) -> float | None:
    """A torch parameter group's momentum or first beta, which schedulers may cycle; None without.

    >>> momentum_of({"betas": (0.9, 0.999)})
    0.9
    """
    if "momentum" in group:
        return float(group["momentum"])
    return float(group["betas"][0]) if "betas" in group else None


def declared_momentum(optimizer: schema.Optimizer, where: Where) -> float | None:
    """`momentum_of` the groups of one of torch's optimizers, read from its signature without building it.

    Raises:
        ConfigError: the config's momentum or betas is no number.
    """
    known = lookup.arguments("optimizer", optimizer.name)
    assert known is not None
    declared = {name: ast.literal_eval(known.defaults[name] or "None") for name in _CYCLED if name in known.defaults}
    given = {name: value for name, value in plain_args(optimizer.args).items() if name in _CYCLED}
    try:
        return momentum_of(declared | given)
    except (TypeError, ValueError, LookupError) as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise ConfigError(f"{optimizer.name} cannot be built with {shown}: {error}", where("optimizer")) from error


def _construct(
    cls: Any, parameters: list[dict[str, Any]], name: str, args: dict[str, Any], at: str
) -> torch.optim.Optimizer:
    given = [set(map(id, group["params"])) for group in parameters]
    try:
        built = cls(parameters, **args)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        if out_of_memory(error):
            raise
        shown = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise ConfigError(f"{name} cannot be built with {shown}: {error}", at) from error
    if not isinstance(built, torch.optim.Optimizer):
        raise ConfigError(f"{name} must be a torch.optim.Optimizer, not {type(built).__name__}", at)
    if given != [set(map(id, group["params"])) for group in built.param_groups]:  # LRs are set by a group's place
        what = f"{name} has other param_groups than the {len(given)} that it is given"
        raise ConfigError(what, at, "let it keep them as they are, and write the groups that it needs in the config")
    return built


def _try_step(
    cls: Any, groups: Sequence[ParamGroup], args: dict[str, Any], device: torch.device, name: str, at: str
) -> None:
    """Make some steps with stand-ins of two rows and columns: several arguments are looked at by the step alone.

    So it is with what an optimizer keeps, where a checkpoint cannot hold it or does not look for it. Some begin to
    count after a few.
    """
    with put_back():
        weights = [torch.nn.Parameter(torch.zeros(2, 2, device=device)) for _ in groups]
        for parameter in weights:
            parameter.grad = torch.ones_like(parameter)
        parameters = [
            {"params": [parameter], "lr": group.lr, **group.options}
            for parameter, group in zip(weights, groups, strict=True)
        ]
        try:
            stand_in = cls(parameters, **args)
            before = _beside_state(stand_in)
            with torch.no_grad():
                for _ in range(_TRIED):  # without the hooks that count a training's steps
                    inspect.unwrap(type(stand_in).step)(stand_in)
            after = _beside_state(stand_in)
        except Exception as error:  # of a class that may be anybody's
            if out_of_memory(error):
                raise
            given = ", ".join(f"{key}={value!r}" for key, value in args.items())
            raise ConfigError(f"{name} cannot make a step with {given}: {error}", at) from error
    if moved := [key for key, value in after.items() if before.get(key) != value]:
        what = f"{name} changes {moved[0]!r} of its own or of its param_groups, which a checkpoint does not hold"
        raise ConfigError(what, at, _KEEP)
    try:
        tensors, _ = kept(stand_in, [group.name for group in groups])
        header_of(
            {
                f"{parameter}/{key}": value
                for group, weight in zip(groups, weights, strict=True)
                for key, value in stand_in.state.get(weight, {}).items()
                if isinstance(value, Tensor)
                for parameter in group.parameter_names
            }
        )
        _refuse_unlike(name, tensors, weights)
    except CheckpointError as error:
        raise ConfigError([replace(problem, where=at) for problem in error.problems]) from error


def _refuse_unresumable(cls: Any, groups: Sequence[ParamGroup], args: dict[str, Any], name: str, at: str) -> None:
    """Refuse an optimizer that does not go on from a checkpoint as if nothing had happened."""
    try:
        found = goes_on_otherwise(lambda parameters: cls(parameters, **args), groups)
    except CheckpointError as error:
        raise ConfigError([replace(problem, where=at) for problem in error.problems]) from error
    if found is not None:
        raise ConfigError(f"{name} does not go on from a checkpoint as if nothing had happened: {found}", at, _KEEP)


def _refuse_unlike(optimizer: str, tensors: Mapping[str, Tensor], weights: Sequence[Tensor]) -> None:
    """Refuse state that would come back from a checkpoint other than it was, or not at all.

    Raises:
        CheckpointError: values that are not finite, or tensors that share their memory: each would get its own.
    """
    places = {weight.untyped_storage().data_ptr() for weight in weights}
    for full, tensor in tensors.items():
        key, place = full.rpartition("/")[2], tensor.untyped_storage().data_ptr()
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            what = f"{optimizer} keeps values that are not finite as {key!r}, and no run goes on from such a checkpoint"
            raise CheckpointError(what, hint="take torch.finfo(torch.float32).max in place of inf")
        if tensor.numel() and place in places:
            what = f"{optimizer} keeps as {key!r} memory that a parameter or another tensor of its state has too"
            raise CheckpointError(what, hint="keep a clone(): from a checkpoint each tensor comes with its own memory")
        places.add(place)


def _beside_state(optimizer: torch.optim.Optimizer) -> dict[str, float | str]:
    """The numbers and tensors that an optimizer has of its own and in its groups, but for those in `state`."""
    parameters, states = parameters_of(optimizer), optimizer.state.values()
    kept_there = [value for own in states if isinstance(own, Mapping) for value in own.values()]
    elsewhere = [optimizer.state, *states, *kept_there, *parameters, *(parameter.grad for parameter in parameters)]
    apart = {id(value) for value in elsewhere if isinstance(value, Tensor | Mapping)}
    held = {key: value for key, value in vars(optimizer).items() if key != "param_groups"}
    for i, group in enumerate(optimizer.param_groups):
        held |= {f"param_groups[{i}].{key}": value for key, value in group.items()}
    return {name: found for key, value in held.items() for name, found in _found(key, value, apart)}


def _found(name: str, value: Any, apart: Set[int]) -> Iterator[tuple[str, float | str]]:
    """The numbers and tensors in a value, but for the tensors and dicts with the ids that are `apart`."""
    if isinstance(value, torch.optim.Optimizer):
        value = value.state
    if id(value) in apart:
        return
    if isinstance(value, Tensor):
        yield name, repr(value.tolist())
    elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # no NaN
        yield name, float(value)
    elif isinstance(value, Mapping):
        for i, (key, part) in enumerate(value.items()):
            yield from _found(f"{name}[{repr(key) if isinstance(key, str) else i}]", part, apart)
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            if not isinstance(part, int | float):  # numbers in lists are such as RAdam's table, which it fills again
                yield from _found(f"{name}[{i}]", part, apart)


def _can_fuse(cls: Any, groups: Sequence[ParamGroup], device: torch.device) -> bool:
    return cls in _FUSED.get(device.type, ()) and all(
        parameter.is_floating_point() for group in groups for parameter in group.parameters
    )


def _refuse_kernels_for_muon(cls: Any, groups: Sequence[ParamGroup], where: Where) -> None:
    if cls is not torch.optim.Muon:
        return
    pairs = [pair for group in groups for pair in zip(group.parameter_names, group.parameters, strict=True)]
    others = [f"{name} has {p.ndim}" for name, p in pairs if p.ndim != 2]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ConfigError(
            "Muon takes parameters of two dimensions only, the matrices of linear layers; "
            f"{', '.join(others[:3])}{more}",
            where("optimizer", "name"),
            "take SGD or AdamW; Muon alone cannot train convolutions, norms and biases",
        )


def _check_options(
    cls: Any, built: torch.optim.Optimizer, group: ParamGroup, name: str, args: dict[str, Any], at: str
) -> None:
    """Hold a group's own arguments against the constructor: in a group torch takes any name and any value."""
    for option in group.options:
        if option not in built.defaults:
            guess = lookup.closest(option, list(built.defaults))
            hint = (f"did you mean {guess!r}? " if guess else "") + f"takes {', '.join(built.defaults)}"
            raise ConfigError(f"{name} has no argument {option!r}, given by group {group.name!r}", at, hint)
    _construct(cls, [{"params": list(group.parameters)}], name, {**args, **group.options}, at)
