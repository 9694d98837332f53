"""Weights from a file, and into a network whose head has another number of classes."""

from __future__ import annotations

import errno
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lrtrain.errors import CheckpointError, EnvironmentFault
from lrtrain.models.stems import first_convolution, without_colour

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_DENSENET_2017 = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a file's tensors: in words, and the parameters that it had no values for."""

    notes: tuple[str, ...]
    head: tuple[str, ...]


def load_weights_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a `.safetensors` file, or the tensors of a `.pth` or `.pt` file, on the CPU.

    A checkpoint that holds its weights under `state_dict` or `model` is unwrapped, and the `module.` and
    `_orig_mod.` that DDP and torch.compile put before every name are taken off.

    Returns:
        Tensors by parameter or buffer name, and the safetensors file's metadata.

    Raises:
        CheckpointError: no such file, damaged, more than plain tensors, or values that are not finite.
        EnvironmentFault: the file cannot be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise CheckpointError(f"there is no weights file {str(file)!r}", hint="`weights` is a path here")
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"a weights file must end in .safetensors, .pth or .pt: {str(file)!r}")
    try:
        content, metadata = _safetensors(file) if file.suffix == ".safetensors" else (_torch_file(file), {})
    except OSError as error:
        raise EnvironmentFault(f"cannot read {str(file)!r}: {error.strerror or error}") from error
    state = _state_dict(content, file)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(
                f"{str(file)!r} holds values that are not finite, in {name!r}",
                hint="take a checkpoint from before that training diverged",
            )
    return state, metadata


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dict
            return tensors, dict(opened.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{str(file)!r} is not a whole safetensors file: {error}") from error


def _torch_file(file: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive warns of what the error then says
            content: object = torch.load(file, map_location="cpu", weights_only=True)
            return content
    except pickle.UnpicklingError as error:
        what = f"{str(file)!r} is damaged, or holds more than tensors and plain values, and is not unpickled"
        raise CheckpointError(what, hint="save module.state_dict() alone, best as .safetensors") from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a cut file's offsets
            raise
        raise CheckpointError(f"{str(file)!r} is damaged, or not a file of torch.save: {error}") from error


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{str(file)!r} holds no state dict, but {type(content).__name__}", hint="save module.state_dict()"
        )
    for name, tensor in content.items():
        plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not isinstance(name, str) or not plain or tensor.is_quantized:
            raise CheckpointError(
                f"{str(file)!r}: {str(name)!r} is not a plain tensor", hint="save module.state_dict()"
            )
    state = dict(content)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], num_classes: int, source: str) -> Loaded:
    """Copy a state dict into a network, all but a head for another number of classes, which stays as it is.

    The head is where a tensor has `num_classes` rows here and another number of such rows in `state`.
    An RGB first convolution is summed over the colours where the network takes gray images.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape.
    """
    own = module.state_dict()
    given = {_DENSENET_2017.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    given = {name: tensor for name, tensor in given.items() if name in own or not name.startswith(_AUXILIARY)}
    notes = _fit_colour(module, given)
    head = {
        name: given.pop(name)
        for name, tensor in own.items()
        if name in given and _other_classes(tensor, given[name], num_classes)
    }
    _refuse_mismatch(own, given, head, source)
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
    if not head:
        return Loaded((*notes, f"head: {num_classes} classes, kept as in {source}"), ())
    classes = {name.rpartition(".")[0]: tensor.shape[0] for name, tensor in head.items()}
    heads = (f"head {name}: {old} -> {num_classes} classes, new" for name, old in classes.items())
    return Loaded((*notes, *heads), tuple(head))


def _fit_colour(module: nn.Module, given: dict[str, Tensor]) -> tuple[str, ...]:
    found = first_convolution(module)
    name = f"{found[0]}.weight" if found else ""
    if found is None or name not in given or given[name].dim() != 4:
        return ()
    if (given[name].shape[1], found[1].weight.shape[1]) != (3, 1):
        return ()
    given[name] = without_colour(given[name])
    return (f"first convolution {found[0]}: 3 -> 1 channels, weights summed",)


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
        raise CheckpointError(
            f"the weights of {source} do not fit this network: {'; '.join(wrong)}",
            hint="they must be of the same `model.name`, `stem` and arguments; only the number of classes may differ",
        )


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return "x".join(map(str, tensor.shape)) + kind if tensor.dim() else "a number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
