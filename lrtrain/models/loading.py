"""Weights into a network, whose head may have another number of classes, and a state into one that is the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from lrtrain.errors import CheckpointError, ConfigError, quoted
from lrtrain.models.stems import first_convolution, without_colour
from lrtrain.models.weights import PREFIXES

_DENSENET_2017 = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")
_VIT_2022 = {"linear_1": "0", "linear_2": "3"}  # torchvision's, in whose published files they are called so
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # which answer to channels, not to classes
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a file's tensors: in words, and the parameters that it had no values for."""

    notes: tuple[str, ...]
    head: tuple[str, ...]


def load_unchanged(module: nn.Module, state: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Load a state dict; hooks of an own network may do more, but not change that.

    Parameters stay the objects that an optimizer knows, also where loading puts others in their place.

    Args:
        module: is loaded.
        state: what its `load_state_dict` takes.
        given: those tensors of it that may not change, in memory of their own.

    Raises:
        ConfigError: one has changed.
    """
    known = dict(module.named_parameters(remove_duplicate=False))
    module.load_state_dict(state)
    _put_back(module, known)
    for name, tensor in module.state_dict().items():
        if name in given and not same_bits(given[name], tensor):
            raise ConfigError(
                f"the model changes its {name!r} as it is loaded, and a run would not go on as it was saved",
                hint="let load_state_dict() and its hooks leave it as it is; change it in forward()",
            )


def _put_back(module: nn.Module, known: Mapping[str, nn.Parameter]) -> None:
    for name, new in list(module.named_parameters(remove_duplicate=False)):
        old = known.get(name)
        if old is new or old is None or (old.shape, old.dtype) != (new.shape, new.dtype):
            continue
        with torch.no_grad():
            old.copy_(new)
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, old)  # RNNs keep another list of theirs


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, on whatever devices; as bits, since NaN is not equal to itself."""
    bits = (tensor.detach().cpu().resolve_conj().resolve_neg().flatten().view(torch.uint8) for tensor in (one, other))
    return one.dtype == other.dtype and torch.equal(*bits)


def load_into(module: nn.Module, state: Mapping[str, Tensor], num_classes: int, source: str) -> Loaded:
    """Copy a state dict into a network, all but a head for another number of classes, which stays as it is.

    The head is where a tensor has `num_classes` rows here and another number of such rows in `state`.
    An RGB first convolution is summed over the colours where the network takes gray images.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape.
    """
    given, head, notes = fitted(module, state, num_classes, source)
    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
    # An own network may answer with copies, or compute something from what it is given. Under its own names, and of
    # the version of its layers: MNASNet changes them where that is missing.
    module.load_state_dict(own)
    if not head:
        return Loaded((*notes, f"head: {num_classes} classes, kept as in {source}"), ())
    classes = {_layer(name): tensor.shape[0] for name, tensor in head.items()}
    heads = (f"head {name}: {old} -> {num_classes} classes, new" for name, old in classes.items() if old != num_classes)
    return Loaded((*notes, *heads), tuple(head))


def fitted(
    module: nn.Module, state: Mapping[str, Tensor], num_classes: int, source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    """What `load_into` copies, the head that it leaves as it is, and notes; only shapes and types are looked at.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape.
    """
    own = module.state_dict()
    given = {_renamed(name, own): tensor for name, tensor in state.items()}
    if len(given) < len(state):
        names = [name for name in state if name not in given]
        what = f"the weights of {source} have two tensors for {quoted(_renamed(names[0], own))}"
        raise CheckpointError(what, hint=f"leave {quoted(names[0])} out of the file")
    given = {name: tensor for name, tensor in given.items() if name in own or not _needless(name, own)}
    notes = _fit_colour(module, given)
    absent = _headless(module, own, given, num_classes)
    head = {name: given.pop(name) for name in _head(module, own, given, num_classes)}
    if absent:
        head |= {name: own[name] for name in absent}
        notes += tuple(f"head {layer}: not in the file, new" for layer in dict.fromkeys(map(_layer, absent)))
    _refuse_mismatch(own, given, head, source)
    return given, head, notes


def _renamed(name: str, own: Mapping[str, Tensor]) -> str:
    """What a tensor of a published file is called in today's networks."""
    # Of a network that is all in a `module` of its own no prefix should have been taken off.
    for prefixes in ("", *PREFIXES, *map("".join, product(PREFIXES, repeat=2))):
        if (known := prefixes + name) in own:
            return known
    for before, now in _VIT_2022.items():
        if (known := name.replace(f".mlp.{before}.", f".mlp.{now}.")) in own:
            return known
    return _DENSENET_2017.sub(r"\1\2", name)


def _needless(name: str, own: Mapping[str, Tensor]) -> bool:
    """Whether a network may do without: heads for training alone, and the count of a BatchNorm that is frozen here."""
    layer, _, last = name.rpartition(".")
    return name.startswith(_AUXILIARY) or (last == "num_batches_tracked" and f"{layer}.running_mean" in own)


def _fit_colour(module: nn.Module, given: dict[str, Tensor]) -> tuple[str, ...]:
    """Let the convolutions that see gray images take weights for RGB; those of some see four by four pixels at once.

    Of these, timm's have a pixel's colours side by side, and torch's PixelUnshuffle has not.
    """
    notes: list[str] = []
    seen = {1, *(16 for part in module.modules() if type(part).__module__ == "timm.layers.space_to_depth")}
    for layer, part in module.named_modules():
        weight = given.get(name := f"{layer}.weight")
        if not isinstance(part, nn.Conv2d) or weight is None or weight.dim() != 4 or not weight.is_floating_point():
            continue
        own = part.weight.shape
        if part.groups == 1 and own[1] in seen and weight.shape == (own[0], 3 * own[1], *own[2:]):
            given[name] = without_colour(weight)
            notes.append(
                f"{'first ' * (not notes)}convolution {layer}: {3 * own[1]} -> {own[1]} channels, weights summed"
            )
    return tuple(notes)


def _head(module: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """The tensors of the layers that give a number to each class, where the file has another number of them."""
    found, parts = first_convolution(module), dict(module.named_modules())
    layers: dict[str, list[str]] = {}
    for name in own:
        if name in given:
            layers.setdefault(_layer(name), []).append(name)
    return [
        name
        for layer, names in layers.items()
        if not isinstance(parts.get(layer), _NORMS)  # an own network may name its tensors as it likes
        and (found is None or layer != found[0])
        and len({given[name].shape[:1] for name in names}) == 1
        for name in names
        if _other_classes(own[name], given[name], num_classes)
    ]


def _headless(module: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """The tensors of the layers that give a number to each class, where the file, as of a backbone, has none of them.

    These must be all that it lacks, and the network's last.
    """
    there = {own[name].data_ptr() for name in given if name in own} - {0}  # what shares its memory is there too
    missing = [name for name in own if name not in given and own[name].data_ptr() not in there]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    parts, layers = dict(module.named_modules()), {_layer(name) for name in missing}
    last = bool(given) and set(list(own)[-len(missing) :]) == set(missing)
    whole = all(name in missing for name in own if _layer(name) in layers)
    heads = all(
        isinstance(part := parts.get(layer), nn.Linear | nn.Conv2d) and part.weight.shape[0] == num_classes
        for layer in layers
    )
    return missing if last and whole and heads else []


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _other_classes(own: Tensor, given: Tensor, num_classes: int) -> bool:
    return (
        own.dim() > 0
        and own.dim() == given.dim()
        and own.shape[0] == num_classes != given.shape[0]
        and own.shape[1:] == given.shape[1:]
    )


def _refuse_mismatch(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], head: Mapping[str, Tensor], source: str
) -> None:
    # Files from before torch 0.4.1 have no num_batches_tracked: it counts from 0 then.
    missing = [name for name in own if not (name in given or name in head or "num_batches_tracked" in name)]
    # Of tensors that share their memory one is enough, which is all that safetensors' save_model writes.
    there = {
        (own[name].data_ptr(), own[name].shape) for name in (*given, *head) if name in own and own[name].data_ptr()
    }
    missing = [name for name in missing if (own[name].data_ptr(), own[name].shape) not in there]
    left_over = [name for name in given if name not in own]
    shapes = [
        f"{name} is {_shape(tensor)} and must be {_shape(own[name])}"
        for name, tensor in given.items()
        if name in own and _shape(tensor) != _shape(own[name])
    ]
    wrong = [
        f"{label} {_some(names)}"
        for label, names in (("missing are", missing), ("left over are", left_over), ("shapes differ:", shapes))
        if names
    ]
    if wrong:
        hint = "they must be of the same `model.name`, `stem` and arguments; only the number of classes may differ"
        first = next(iter(own), "")
        before = next((name.removesuffix(first) for name in given if name.endswith(f".{first}")), "")
        if not own.keys() & given.keys() and before:  # as MoCo's and SimCLR's
            hint = f"save those that begin with {quoted(before)} alone, without that, with torch.save"
        raise CheckpointError(f"the weights of {source} do not fit this network: {'; '.join(wrong)}", hint=hint)


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return "x".join(map(str, tensor.shape)) + kind if tensor.dim() else "a number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
