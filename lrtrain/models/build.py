"""A network from its name: constructed, fitted to the images and classes, and given its weights."""

from __future__ import annotations

import inspect
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lrtrain import lookup
from lrtrain.config import schema
from lrtrain.errors import CheckpointError, ConfigError, EnvironmentFault, LrtrainError, about, out_of_memory, quoted
from lrtrain.models.infinite import infinite_buffers
from lrtrain.models.loading import fitted, load_into
from lrtrain.models.savable import give_own_memory, load_itself, refuse_unsavable
from lrtrain.models.stems import make_gray, small_stem
from lrtrain.models.weights import load_weights_file, normalisation_of, of_its_run
from lrtrain.random import key, seeded

Where = Callable[..., str]

# Arguments of timm's that name files, folders and addresses of weights, or say how these are loaded.
_TIMM_LOADS = {
    "cache_dir",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "pretrained_strict",
}

# Read by every torch.load; it refuses to have both.
_WEIGHTS_ONLY, _IN_FULL = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_MOST_PARAMETERS = 10_000  # tensors; the largest of torchvision and timm have some 2,000
_MOST_LAYERS = 50_000  # as any one number of timm's arguments

# Left alone, these two return several logits while training and warn of a new default initialisation.
_TORCHVISION_ARGS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


@dataclass(frozen=True)
class BuiltModel:
    """A network on the CPU, and what is known about it.

    `mean` and `std`, a number a channel, are the normalisation that its weights were trained with, and
    `input_size` the image size in px; None from scratch and where it is unknown. `notes` say what was made
    to fit. `head` names the parameters that did not come with the weights; it is empty from scratch. `infinite` are
    its `infinite_buffers` before weights of the user's are loaded.
    """

    module: nn.Module
    parameters: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: int | None = None
    notes: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    infinite: frozenset[str] = frozenset()


def build_model(
    model: schema.Model, num_classes: int, in_channels: int, seed: int, where: Where, load: bool = True
) -> BuiltModel:
    """Build the network of a config, with every random number keyed by (seed, "init").

    Args:
        model: the config's section.
        num_classes: logits per image.
        in_channels: channels of the images.
        seed: the run's seed.
        where: names the line of a config value, as `RunConfig.where` does.
        load: False leaves out pretrained weights, for a network whose state comes from a checkpoint.

    Raises:
        ConfigError: the name, its arguments or a combination of them is not possible, or no checkpoint can hold it.
        CheckpointError: the weights do not fit, or their file is damaged.
        EnvironmentFault: a package is missing, or weights cannot be downloaded or read.
    """
    _refuse_contradictions(model, in_channels, where)
    with seeded(key(seed, "init")):
        built = _source(model.name)(model, num_classes, in_channels, load, where)
    if load and model.weights is not None:
        built = _load_file(model, built, num_classes, in_channels, where)
    if load:
        with seeded(key(seed, "head")):
            _reset_head(built)
    if built.mean is not None and built.std is not None and len(built.mean) != in_channels:
        built = replace(built, mean=_averaged(built.mean, in_channels), std=_averaged(built.std, in_channels))
    return built


def _reset_head(built: BuiltModel) -> None:
    """Give a new head on trained weights torch's own initialisation of its layer.

    Several families initialise theirs for training from scratch, by the number of classes: EfficientNet's is 25 times
    as wide for two classes as torch's, so that the first steps tear the trained weights apart.
    """
    parts = dict(built.module.named_modules())
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in built.head):
        layer = parts.get(owner)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()


def _source(name: str) -> Callable[[schema.Model, int, int, bool, Where], BuiltModel]:
    if name.startswith("timm/"):
        return _timm
    return _other if lookup.is_path(name) or name in lookup.ours("model") else _torchvision


def _refuse_contradictions(model: schema.Model, in_channels: int, where: Where) -> None:
    if model.pretrained and model.weights is not None:
        raise ConfigError(
            f"`pretrained: true` and `weights: {model.weights}` contradict each other",
            where("model", "weights"),
            "keep one of them",
        )
    if model.pretrained and model.stem == "small":
        raise ConfigError(
            "`pretrained: true` and `stem: small` contradict each other: the weights have the standard stem",
            where("model", "stem"),
            "leave out one of them",
        )
    if model.pretrained and _source(model.name) is _other:
        raise ConfigError(
            f"only torchvision's and timm's models have pretrained weights, not {model.name!r}",
            where("model", "pretrained"),
            "leave it out, or take `weights: FILE`",
        )
    if model.name in _TORCHVISION_ARGS and model.args.get("aux_logits"):
        raise ConfigError(
            "`aux_logits: true` makes a network return three logits, and the loss takes one",
            where("model", "aux_logits"),
            "leave out `aux_logits`",
        )
    if in_channels not in (1, 3) and _source(model.name) is _torchvision:
        raise ConfigError(
            f"torchvision's models take images of 3 channels or of 1, not of {in_channels}",
            where("model", "name"),
            "take a timm/ model, or code of yours with `in_channels`",
        )
    if in_channels == 1 and model.args.get("transform_input"):
        raise ConfigError(
            "`transform_input: true` is for images of 3 channels, and these have 1",
            where("model", "transform_input"),
            "leave it out",
        )


_CALLED = (
    "`lrtrain list models` shows what ours and torchvision's take; code of yours is called with num_classes, and with "
    "in_channels where it takes that, and returns a torch.nn.Module"
)


def _construct(builder: Callable[..., Any], model: schema.Model, where: Where, /, **kwargs: Any) -> nn.Module:
    """Call what a name stands for; whatever it raises is about the arguments that the config gave it."""
    if model.args and not lookup.is_path(model.name):
        _refuse_huge(builder, model, where, kwargs)
    try:
        with _of_some_size(model, where):
            module = builder(**kwargs, **model.args)
    except LrtrainError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        given = ", ".join(f"{name}={quoted(value)}" for name, value in model.args.items()) or "no arguments"
        raise ConfigError(f"{model.name} cannot be built with {given}: {error}", where("model"), _CALLED) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{model.name} must return a torch.nn.Module, not {type(module).__name__}", where("model", "name"), _CALLED
        )
    refuse_unsavable(module, model, where)
    give_own_memory(module)
    return module


@contextmanager
def _of_some_size(model: schema.Model, where: Where) -> Iterator[None]:
    """Inside, a network is refused that has parameters without end, as lists of arguments may ask for."""
    count = 0

    def another(*_: object) -> None:
        nonlocal count
        count += 1
        if count > _MOST_PARAMETERS:
            what = f"{model.name} would have more than {_MOST_PARAMETERS:,} weights and biases with these arguments"
            raise ConfigError(what, where("model"), "take smaller numbers of layers")

    handle = register_module_parameter_registration_hook(another)
    try:
        yield
    finally:
        handle.remove()


def _refuse_huge(builder: Callable[..., Any], model: schema.Model, where: Where, kwargs: Mapping[str, Any]) -> None:
    """Refuse what would not fit into memory before it is filled with random numbers for a minute."""
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"), _of_some_size(model, where):
            shapes = builder(**kwargs, **model.args)
        size = sum(tensor.numel() * tensor.element_size() for tensor in (*shapes.parameters(), *shapes.buffers()))
    except LrtrainError:
        raise
    except Exception as error:  # the real call will tell, and code that computes with its weights cannot without them
        if "Storage size calculation overflowed" not in str(error):
            return
        size = 2**63  # or more
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        given = ", ".join(f"{name}={quoted(value)}" for name, value in model.args.items())
        raise EnvironmentFault(
            f"out of memory: {model.name} with {given} has weights of {size / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f} GiB",
            where("model"),
            "take a smaller model",
        )


def _finish(module: nn.Module, **known: Any) -> BuiltModel:
    count = sum(p.numel() for p in module.parameters())
    return BuiltModel(module, count, infinite=infinite_buffers(module), **known)


def _other(model: schema.Model, num_classes: int, in_channels: int, load: bool, where: Where) -> BuiltModel:
    """A file of ours or an import path."""
    with about(where("model", "name")):
        builder = lookup.find("model", model.name)
    kwargs = {"num_classes": num_classes}
    if callable(builder) and "in_channels" in inspect.signature(builder).parameters:
        kwargs["in_channels"] = in_channels
    module = _construct(builder, model, where, **kwargs)
    if lookup.is_path(model.name):
        load_itself(module, model, where)
    notes = (small_stem(module, where("model", "stem")),) if model.stem == "small" else ()
    return _finish(module, notes=notes)


def _torchvision(model: schema.Model, num_classes: int, in_channels: int, load: bool, where: Where) -> BuiltModel:
    with about(where("model", "name")):
        builder = lookup.find("model", model.name)
    default = _torchvision_weights(model.name)
    kwargs = {k: v for k, v in _TORCHVISION_ARGS.get(model.name, {}).items() if k not in model.args}
    if model.pretrained and model.name.startswith("vit_") and "image_size" not in model.args:
        kwargs["image_size"] = default.meta["min_size"][0]  # their position embedding has a fixed size
    module = _construct(builder, model, where, weights=None, num_classes=num_classes, **kwargs)
    notes = [small_stem(module, where("model", "stem"))] if model.stem == "small" else []
    if in_channels == 1:
        notes.append(make_gray(module))
    if not (model.pretrained and load):
        return _finish(module, notes=tuple(notes))
    state = _download(default, where)
    with about(where("model", "pretrained")):
        loaded = load_into(module, state, num_classes, f"torchvision's {default}")
    known = _torchvision_normalisation(model)
    return _finish(module, notes=_once(*notes, *loaded.notes), head=loaded.head, **known)


def _torchvision_weights(name: str) -> Any:
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def _torchvision_normalisation(model: schema.Model) -> dict[str, Any]:
    preset = _torchvision_weights(model.name).transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if model.name in _TORCHVISION_ARGS and not model.args.get("transform_input"):
        # They were trained with (x - 0.5) / 0.5; torchvision normalises otherwise and the network undoes it.
        mean = std = (0.5, 0.5, 0.5)
    return {"mean": mean, "std": std, "input_size": preset.crop_size[0]}


def _download(weights: Any, where: Where) -> Mapping[str, Any]:
    try:
        state: Mapping[str, Any] = weights.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:
        raise _no_download(weights.url, error, where) from error
    return state


def _no_download(what: str, error: Exception, where: Where) -> EnvironmentFault:
    return EnvironmentFault(
        f"cannot download {what}: {error}",
        where("model", "pretrained"),
        "fetch it elsewhere and write `weights: FILE` in place of `pretrained: true`",
    )


def _timm(model: schema.Model, num_classes: int, in_channels: int, load: bool, where: Where) -> BuiltModel:
    unknown = lookup.why_unknown("model", model.name)
    if unknown is not None:
        raise EnvironmentFault(unknown[0], where("model", "name"), unknown[1])
    pretrained = model.pretrained and load
    if pretrained:
        _spare_retries()
    import timm

    if given := sorted(_TIMM_LOADS & model.args.keys()):
        what = f"{given[0]} would have timm load what lrtrain has not looked at"
        raise ConfigError(what, where("model", given[0]), "write `weights: FILE`, or `pretrained: true`")
    _refuse_endless(model.args, model, where)
    name = model.name.removeprefix("timm/")
    if not timm.is_model(name.partition(".")[0]):
        guess = lookup.closest(name, timm.list_models())
        raise ConfigError(
            f"timm has no model {name!r}",
            where("model", "name"),
            f"did you mean 'timm/{guess}'?" if guess else "timm.list_models() names them all",
        )

    def create(**kwargs: Any) -> Any:
        on_meta = torch.get_default_device().type == "meta"
        try:
            with _no_code_in_weights():
                return timm.create_model(name, pretrained=pretrained and not on_meta, **kwargs)
        except Exception as error:
            of_arguments = isinstance(error, TypeError | ValueError | RuntimeError) and not isinstance(error, OSError)
            if not pretrained or (of_arguments and "home directory" not in str(error)):
                raise
            raise _no_download(f"the weights of {model.name}", error, where) from error

    module = _construct(create, model, where, num_classes=num_classes, in_chans=in_channels)
    notes = (small_stem(module, where("model", "stem")),) if model.stem == "small" else ()
    if not pretrained:
        return _finish(module, notes=notes)
    head, told = _timm_head(module, num_classes)
    if in_channels != 3:
        told.append(f"first convolution: 3 -> {in_channels} channels, weights adapted by timm")
    return _finish(module, notes=(*notes, *told), head=head, **_timm_normalisation(module))


@contextmanager
def _no_code_in_weights() -> Iterator[None]:
    """Inside, torch.load runs no code: after a TypeError, which a file may cause, timm would load that file in full."""
    was = {name: os.environ.pop(name, None) for name in (_WEIGHTS_ONLY, _IN_FULL)}
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[_WEIGHTS_ONLY]
        os.environ.update({name: value for name, value in was.items() if value is not None})


def _refuse_endless(value: Any, model: schema.Model, where: Where) -> None:
    """Refuse numbers that timm makes lists of as long, before there is any layer to count."""
    if isinstance(value, int | float) and abs(value) > _MOST_LAYERS:
        what = f"{model.name} cannot be built with {quoted(value)} among its arguments"
        raise ConfigError(what, where("model"), f"take numbers of at most {_MOST_LAYERS:,}")
    if isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            _refuse_endless(one, model, where)


def _spare_retries() -> None:
    """Without a network, let timm look into its cache alone: it would try for a minute.

    huggingface_hub reads these variables, once, when timm imports it.
    """
    if getproxies() or "HF_HUB_OFFLINE" in os.environ:
        return
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname, None)
    except (OSError, ValueError):
        os.environ["HF_HUB_OFFLINE"] = "1"


def _timm_head(module: nn.Module, num_classes: int) -> tuple[tuple[str, ...], list[str]]:
    """What timm made new: it keeps the head that comes with the weights where its number of classes fits."""
    config: Any = module.pretrained_cfg
    old, heads = config["num_classes"], config["classifier"]
    if old == num_classes:
        return (), [f"head: {num_classes} classes, kept as in timm's weights"]
    heads = (heads,) if isinstance(heads, str) else heads
    names = [name for name, _ in module.named_parameters() if name.rpartition(".")[0] in heads]
    return tuple(names), [f"head {name}: {old} -> {num_classes} classes, new" for name in heads]


def _timm_normalisation(module: nn.Module) -> dict[str, Any]:
    cfg: Any = module.pretrained_cfg
    return {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"]), "input_size": cfg["input_size"][-1]}


def _load_file(model: schema.Model, built: BuiltModel, num_classes: int, in_channels: int, where: Where) -> BuiltModel:
    source = str(model.weights)
    with about(where("model", "weights")):

        def look(state: Mapping[str, torch.Tensor]) -> None:
            fitted(built.module, state, num_classes, source)

        state, metadata = load_weights_file(source, built.infinite, look)
        loaded = load_into(built.module, state, num_classes, source)
        own = {} if {"mean", "std"} & metadata.keys() else of_its_run(Path(os.path.expanduser(source)))
        known = normalisation_of(metadata | own, source)
        if len(known.get("mean", ())) not in (0, in_channels, 3 if in_channels == 1 else in_channels):
            raise CheckpointError(
                f"{source!r} names a mean and a std of {len(known['mean'])} channels; the images have {in_channels}"
            )
    notes = _once(*built.notes, *loaded.notes)
    named = "mean" in known
    # Nobody has published weights for a small stem. Of a file that names no size, that of the published ones may do.
    if _source(model.name) is not _other and model.stem != "small":
        known = published(model, built.module) | known
    if own:
        notes = (*notes, "normalisation: that of the run that the weights are of")
    elif known and not named:
        notes = (*notes, f"normalisation: that of {model.name}'s published weights, as the file names none")
    return replace(built, notes=notes, head=loaded.head, **known)


def published(model: schema.Model, module: nn.Module) -> dict[str, Any]:
    """Mean, std and size of the images, as in `BuiltModel`, of the weights that torchvision or timm have published."""
    return _timm_normalisation(module) if _source(model.name) is _timm else _torchvision_normalisation(model)


def _once(*notes: str) -> tuple[str, ...]:
    """The construction and the loading both tell of a first convolution whose weights were summed."""
    return tuple(dict.fromkeys(notes))


def _averaged(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number for a gray image from the three of RGB."""
    return (sum(values) / len(values),) * channels
