"""A network is loaded by its own code, which must leave what it is given as it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrtrain.errors import ConfigError


def load_unchanged(module: nn.Module, state: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Load a state dict; hooks of an own network may do more, but not change that.

    Args:
        module: is loaded.
        state: what its `load_state_dict` takes.
        given: those tensors of it that may not change, in memory of their own.

    Raises:
        ConfigError: one has changed.
    """
    module.load_state_dict(state)
    for name, tensor in module.state_dict().items():
        if name in given and not same_bits(given[name], tensor):
            raise ConfigError(
                f"the model changes its {name!r} as it is loaded, and a run would not go on as it was saved",
                hint="let load_state_dict() and its hooks leave it as it is; change it in forward()",
            )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, on whatever devices; as bits, since NaN is not equal to itself."""
    bits = (tensor.detach().cpu().resolve_conj().resolve_neg().flatten().view(torch.uint8) for tensor in (one, other))
    return one.dtype == other.dtype and torch.equal(*bits)
