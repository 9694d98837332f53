"""Weights from a file, and the normalisation of images that they were trained with."""

from __future__ import annotations

import errno
import os
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrtrain.config.transform_checks import MEANS, STDS
from lrtrain.errors import CheckpointError, EnvironmentFault, quoted
from lrtrain.foreign import json_object, opened, read_bytes, refuse_holes
from lrtrain.models.infinite import first_bad_tensor
from lrtrain.tensor_header import MAX_DIMENSIONS, read_header
from lrtrain.torch_archive import refuse_other_archives

# Of a state dict as torch trains and saves them. Others (float8, complex, uint32) torch itself hardly computes with.
_KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.", "model.")
_MOST_NESTED = 4
_AVERAGES = "n_averaged"  # what torch's AveragedModel counts
MAX_NAME = 1_000
_MOST_MANIFEST = 8_000_000  # bytes, as of a checkpoint's
MOST_BATCHES = 10**15  # as of any count in a checkpoint
NEVER_NEGATIVE = {"running_var": "variance", "num_batches_tracked": "count of batches"}  # of BatchNorm
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO)
_DAMAGED = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    OSError,
)
_CROPS = ("CenterCrop", "RandomCrop", "RandomResizedCrop")

Look = Callable[[Mapping[str, Tensor]], object]


def load_weights_file(
    path: str | Path, infinite: Collection[str] = (), look: Look = lambda _: None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a `.safetensors` file, or the tensors of a `.pth` or `.pt` file, on the CPU.

    A checkpoint that holds its weights under `state_dict`, `model` or `model_state_dict`, or one state dict under any
    name, is unwrapped; the `module.`, `_orig_mod.` and `model.` that DDP, torch.compile and Lightning put before every
    name are taken off.

    Args:
        path: the file; `~` is a home.
        infinite: `infinite_buffers` of the network that they are for.
        look: is called with the tensors of a `.safetensors` file as they will be, on the meta device, before any is
            allocated, and raises CheckpointError for those that do not fit.

    Returns:
        Tensors by parameter or buffer name, and the safetensors file's metadata.

    Raises:
        CheckpointError: no such file, damaged, more than plain tensors, or values that no training makes.
        EnvironmentFault: the file cannot be read.
    """
    file = Path(os.path.expanduser(path))  # a Path's own raises where there is no such user
    try:
        with opened(file, links=True) as looked_at:
            refuse_holes(looked_at)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise _unreadable(file, error) from error
        raise CheckpointError(
            f"there is no weights file {quoted(str(file))}: {error.strerror}", hint="`weights` is a path here"
        ) from error
    except ValueError as error:
        what = f"{str(file)!r} is no weights file: {error}"
        raise CheckpointError(what, hint="take it anew from where it was published") from None
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        what = f"a weights file must end in .safetensors, .pth or .pt: {str(file)!r}"
        raise CheckpointError(what, hint="convert it: safetensors.torch.save_file(module.state_dict(), FILE)")
    try:
        content, metadata = _safetensors(file, look) if file.suffix == ".safetensors" else (_torch_file(file), {})
    except OSError as error:
        raise _unreadable(file, error) from error
    state = _state_dict(content, file)
    _refuse_views(state, file)
    _refuse_impossible(state, file, {_stripped(name) for name in infinite}.union(infinite))
    return state, metadata


def _unreadable(file: Path, error: OSError) -> EnvironmentFault:
    what = f"cannot read {quoted(str(file))}: {error.strerror or error}"
    return EnvironmentFault(what, hint="check that you may read it")


def _safetensors(file: Path, look: Look) -> tuple[dict[str, Tensor], dict[str, str]]:
    with opened(file, links=True) as content:
        header = read_header(content, repr(str(file)))
        empty = {name: torch.empty(of.shape, dtype=of.dtype, device="meta") for name, of in header.items()}
        look(_state_dict(empty, file, "meta"))
        # The file that was looked at, whatever has its name by now: for a pipe it would be waited without end.
        same = f"/proc/self/fd/{content.fileno()}"
        try:
            with safe_open(same if os.path.exists(same) else file, framework="pt", device="cpu") as held:
                tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - no dict
                return tensors, dict(held.metadata() or {})
        except SafetensorError as error:
            what = f"{str(file)!r} is not a whole safetensors file: {error}"
            raise CheckpointError(what, hint="restore it from a copy") from error


def _torch_file(file: Path) -> object:
    """Read by torch's `weights_only` rule and by no other; nothing is ever added to what that allows."""
    refuse_other_archives(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive warns of what the error then says
            content: object = torch.load(file, map_location="cpu", weights_only=True)
            return content
    except pickle.UnpicklingError as error:
        what = f"{str(file)!r} is damaged, or holds more than tensors and plain values, and is not unpickled"
        raise CheckpointError(what, hint="save module.state_dict() alone, best as .safetensors") from error
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a cut file's offsets
            raise
        why = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        what = f"{str(file)!r} is damaged, or not a file of torch.save: {why}"
        raise CheckpointError(what, hint="save module.state_dict() again, best as .safetensors") from error


def _has_tensors(content: Any) -> bool:
    return isinstance(content, dict) and any(isinstance(value, Tensor) for value in dict.values(content))


def _holds_tensors(content: Any) -> bool:
    """Whether it is a state dict, or one lies in it under a usual name."""
    inside = map(partial(dict.get, content), _WRAPPERS) if isinstance(content, dict) else ()
    return _has_tensors(content) or any(map(_has_tensors, inside))


def _unwrapped(content: Any, file: Path) -> Any:
    """The state dict in a checkpoint: under a usual name, or the only one that there is."""
    for _ in range(_MOST_NESTED):  # a file may nest a dict in itself
        if not isinstance(content, dict):
            break
        usual = [key for key in _WRAPPERS if isinstance(dict.get(content, key), dict)]
        held = [key for key in usual if _holds_tensors(dict.get(content, key))]
        # What has tensors of its own with a layer's name is a state dict itself.
        if not held and not any(isinstance(one, Tensor) and "." in str(key) for key, one in dict.items(content)):
            held = [
                key
                for key, value in dict.items(content)
                if isinstance(key, str) and not key.endswith("_extra_state") and _holds_tensors(value)
            ]
        if len(held) > 1:
            what = f"{str(file)!r} holds two state dicts, {' and '.join(map(quoted, held[:2]))}"
            raise CheckpointError(what, hint="save the one that is meant alone")
        if not (inside := held or usual):
            break
        content = dict.get(content, inside[0])
    return content


def _state_dict(content: Any, file: Path, device: str = "cpu") -> dict[str, Tensor]:
    # By dict's and Tensor's own methods: a file may give its objects attributes of any name.
    content = _unwrapped(content, file)
    if not isinstance(content, dict) or not dict.__len__(content):
        raise CheckpointError(
            f"{str(file)!r} holds no state dict, but {type(content).__name__}", hint="save module.state_dict()"
        )
    state: dict[str, Tensor] = {}
    for name, value in dict.items(content):
        tensor = Tensor.detach(value) if isinstance(value, Tensor) else None
        plain = tensor is not None and tensor.layout is torch.strided and tensor.device.type == device
        if not isinstance(name, str) or tensor is None or not plain or tensor.is_quantized:
            shown = quoted(name) if isinstance(name, str) else f"what has a key of type {type(name).__name__}"
            raise CheckpointError(f"{str(file)!r}: {shown} is not a plain tensor", hint="save module.state_dict()")
        if len(name) > MAX_NAME:
            what = f"{str(file)!r}: a tensor's name has {len(name):,} characters; at most {MAX_NAME:,} are read"
            raise CheckpointError(what, hint="save module.state_dict() with its own names")
        if tensor.dim() > MAX_DIMENSIONS:
            what = f"{str(file)!r}: {quoted(name)} has {tensor.dim()} dimensions; at most {MAX_DIMENSIONS} are read"
            raise CheckpointError(what, hint="save module.state_dict()")
        if tensor.dtype not in (*_KINDS, *_COUNTS):
            what = f"{str(file)!r}: {quoted(name)} is of {tensor.dtype}, which is not read".replace("torch.", "")
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _KINDS)
            raise CheckpointError(what, hint=f"convert it to float32 (allowed: {kinds}, integers)")
        state[name] = tensor
    while prefix := next((prefix for prefix in PREFIXES if _all_begin(state, prefix)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name != _AVERAGES}
    return state


def _stripped(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _all_begin(state: Mapping[str, Tensor], prefix: str) -> bool:
    names = state.keys() - {_AVERAGES}
    return bool(names) and all(name.startswith(prefix) for name in names)


def _refuse_impossible(state: Mapping[str, Tensor], file: Path, infinite: Container[str]) -> None:
    """Refuse values that no training makes; of shared layers once, however many names they have."""
    seen: set[object] = set()
    for name, tensor in state.items():
        end = last if (last := name.rpartition(".")[2]) in NEVER_NEGATIVE else ""
        if (this := (_place(tensor), end, name in infinite)) in seen:
            continue
        seen.add(this)
        if name not in infinite and first_bad_tensor([(name, tensor)]) is not None:
            raise CheckpointError(
                f"{str(file)!r} holds values that are not finite, in {quoted(name)}",
                hint="take a checkpoint from before that training diverged",
            )
        if end == "num_batches_tracked" and bool(
            ((whole := tensor.long()) != tensor).logical_or(whole > MOST_BATCHES).any()
        ):
            what = f"{str(file)!r} holds a count of batches that is none, in {quoted(name)}"
            hint = f"whole numbers up to {MOST_BATCHES:,} are read; take the file from where it was published"
            raise CheckpointError(what, hint=hint)
        if end and bool((tensor < 0).any()):
            what = f"{str(file)!r} holds a {NEVER_NEGATIVE[end]} below 0, in {quoted(name)}"
            raise CheckpointError(what, hint="no training makes that: take the file from where it was published")


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _refuse_views(state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse tensors that show a few stored numbers again and again: whoever copies one needs memory for all."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    large = [name for name, size in sizes.items() if size > state[name].untyped_storage().nbytes()]
    distinct = {_place(tensor): sizes[name] for name, tensor in state.items()}  # shared layers are stored once
    if large or sum(distinct.values()) > 4 * file.stat().st_size:
        name = large[0] if large else max(sizes, key=sizes.__getitem__)
        raise CheckpointError(
            f"{str(file)!r}: {quoted(name)} says that it has {sizes[name]:,} bytes, more than are stored",
            hint="save a state dict of contiguous tensors",
        )


def normalisation_of(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """What a safetensors file says of itself: `mean` and `std`, a number a channel, and `input`, in px."""
    known: dict[str, Any] = {}
    if long := [name for name in ("mean", "std", "input") if len(metadata.get(name, "")) > 2_000]:
        raise CheckpointError(
            f"{source!r} must name its {long[0]} in a few numbers, and says {quoted(metadata[long[0]])}"
        )
    number = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
    for name in ("mean", "std"):
        if name in metadata:
            known[name] = tuple(float(n) for n in re.findall(number, metadata[name]))
    means, stds = known.get("mean", ()), known.get("std", ())
    if len(means) != len(stds) or (known.keys() and not means):
        raise CheckpointError(
            f"{source!r} must name a mean and a std of as many channels, and says mean "
            f"{metadata.get('mean')!r} and std {metadata.get('std')!r}"
        )
    if not all(low <= n <= high for of, (low, high) in ((means, MEANS), (stds, STDS)) for n in of):
        raise CheckpointError(
            f"{source!r} must name a mean of {MEANS[0]:g} to {MEANS[1]:g} and a std of {STDS[0]:g} to {STDS[1]:g}, and "
            f"says mean {metadata['mean']!r} and std {metadata['std']!r}"
        )
    if sizes := re.findall(r"\d+", metadata.get("input", "")):
        known["input_size"] = int(sizes[-1])
        if not 1 <= known["input_size"] <= 4096:
            raise CheckpointError(f"{source!r} must name images of 1 to 4096 px, and says {quoted(metadata['input'])}")
    return known


def of_its_run(file: Path) -> dict[str, str]:
    """`trained_with` of the checkpoint that a weights file lies in; empty where it lies in none."""
    for folder in (file.parent, Path(os.path.realpath(file)).parent):
        with suppress(OSError, ValueError):
            config = json_object(read_bytes(folder / "manifest.json", _MOST_MANIFEST, links=True)).get("config")
            return trained_with(config) if isinstance(config, dict) else {}
    return {}


def trained_with(config: Mapping[str, Any], sized_by: Sequence[str] = ("val",)) -> dict[str, str]:
    """`mean`, `std` and `input`, as a weights file would say them, of the images that a run was evaluated on.

    `input` is left out where the size that they end with is not plain from the names of the transforms.

    Args:
        config: the run's resolved config, as its checkpoints have it.
        sized_by: the lists that may tell the size. Train's may crop images that are of this size anyway.

    Returns:
        What is known; nothing where the pixels were of another scale than 0..1.
    """
    try:
        lists = config["dataset"]["transforms"]
        entries = lists["val"]
        scaled, last = ([entry for entry in entries if entry["name"] == name] for name in ("ToDtype", "Normalize"))
        if [entry["scale"] for entry in scaled] != [True] or len(last) != 1:
            return {}
        known = {name: " ".join(str(float(n)) for n in last[0][name]) for name in ("mean", "std")}
        size = next((size for name in sized_by if (size := _last_size(lists[name]))), None)
        return known | ({} if size is None else {"input": str(size)})
    except (ValueError, LookupError, TypeError, OverflowError):
        return {}


def _last_size(entries: Sequence[Mapping[str, Any]]) -> int | None:
    """The side in px of the squares that transforms end with, where it is known."""
    side: int | None = None
    for entry in entries:
        name, size = entry["name"], entry.get("size")
        sides = size if isinstance(size, list) else [size]
        if name in _CROPS or name == "Resize":
            # Of one side, Resize keeps the image's shape.
            square = len(set(sides)) == 1 and (name in _CROPS or len(sides) > 1 or side is not None)
            side = int(sides[0]) if square and sides[0] is not None else None
        elif name == "Pad" or ":" in name:  # what code of one's own does is not known
            side = None
    return side
