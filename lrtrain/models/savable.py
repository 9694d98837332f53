"""Whether a checkpoint can hold a network, and a run go on from it: asked of it as it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lrtrain.config import schema
from lrtrain.errors import CheckpointError, ConfigError, LrtrainError, about
from lrtrain.models.loading import load_unchanged, same_bits
from lrtrain.tensor_header import header_of

Where = Callable[..., str]


def load_itself(module: nn.Module, model: schema.Model, where: Where) -> None:
    """Load a network with its own state, as every resumed run will: what it does then belongs to one from nothing, too.

    Raises:
        ConfigError: it leaves out what it trains, or is another one afterwards.
    """
    state = module.state_dict()
    given = {name: tensor.detach().clone() for name, tensor in state.items()}
    trained = [(name, parameter, parameter.detach().clone()) for name, parameter in module.named_parameters()]
    at = where("model", "name")
    places = {tensor.data_ptr() for tensor in state.values()}
    for name, parameter in module.named_parameters():
        known = name in state or parameter.data_ptr() in places
        if parameter.requires_grad and not known and not _is_saved(module, parameter, given):
            what = f"{model.name} trains {name}, and its state_dict() leaves it out"
            raise ConfigError(what, at, "let state_dict() give it, or freeze it: requires_grad_(False)")
    try:
        with about(at):
            load_unchanged(module, state, given)
            held = dict(module.named_parameters())
            for name, parameter, was in trained:
                if held.get(name) is not parameter:
                    what = f"the model has another {name!r} after it was loaded, which the optimizer would not train"
                    raise ConfigError(what, hint="let load_state_dict() write into it, in its shape and type")
                if not same_bits(parameter, was):
                    what = f"the model's {name!r} is another one after it was saved and loaded"
                    raise ConfigError(what, hint="let state_dict() give it in full: runs go on from that")
    except LrtrainError:
        raise
    except Exception as error:
        what = f"{model.name} cannot load what its own state_dict() gives: {' '.join(str(error).split())[:300]}"
        raise ConfigError(what, at, "load_state_dict() must take it: runs go on from that") from error


def _is_saved(module: nn.Module, parameter: nn.Parameter, given: Mapping[str, torch.Tensor]) -> bool:
    """Whether a parameter is part of what a network saves, by whatever name and in whatever form."""
    with torch.no_grad():
        was = parameter.clone()
        parameter.add_(1)
        changed = any(not same_bits(given[name], tensor) for name, tensor in module.state_dict().items())
        parameter.copy_(was)
    return changed


def refuse_unsavable(module: nn.Module, model: schema.Model, where: Where) -> None:
    """Refuse what no checkpoint could hold, or would hold otherwise than the network computes with it.

    Raises:
        ConfigError: names the tensor and the way out.
    """
    held = dict((*module.named_parameters(), *module.named_buffers()))
    for name, tensor in held.items():
        if tensor.is_meta and torch.get_default_device().type != "meta":
            what = f"{model.name} has no memory for {name}: it is on the meta device"
            raise ConfigError(what, where("model", "name"), 'make it on the CPU: torch.device("cpu")')
        if is_lazy(tensor):
            raise ConfigError(
                f"{model.name} has no size yet for {name}: its layer is lazy, and waits for the first images",
                where("model", "name"),
                "give the layer its size, or pass zeros of the images' shape through the network where it is made",
            )
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
            what = f"{model.name} has sparse gradients in {name}, which clipping, averages and checkpoints do not take"
            raise ConfigError(what, where("model", "name"), "leave `sparse=True` out")
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"{model.name} keeps a {type(value).__name__} as {name}; a checkpoint holds tensors alone",
                where("model", "name"),
                "keep it in a buffer (`register_buffer`) in place of `get_extra_state`",
            )
        own = held.get(name, value)
        if (own.dtype, own.shape) != (value.dtype, value.shape):
            kinds = [f"{str(kind.dtype).removeprefix('torch.')} {tuple(kind.shape)}" for kind in (own, value)]
            what = f"{model.name} computes with {name} as {kinds[0]}, and its state_dict() gives it as {kinds[1]}"
            raise ConfigError(what, where("model", "name"), "let state_dict() give it as it is: runs go on from that")
    try:
        header_of(state)
    except CheckpointError as error:
        at = where("model", "name")
        raise ConfigError(replace(problem, where=at) for problem in error.problems) from error


def give_own_memory(module: nn.Module) -> None:
    """Make whole what is expanded, or a view such as `conj()`: torch cannot write into numbers that share a place."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.layout != torch.strided:
            continue
        expanded = any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if expanded or tensor.is_conj() or tensor.is_neg():
            whole = tensor.detach().resolve_conj().resolve_neg()
            tensor.data = whole.clone(memory_format=torch.contiguous_format)
