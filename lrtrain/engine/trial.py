"""A model is given two images before anything is trained, as it evaluates and, if it is one's own, as it trains."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch

from lrtrain.config.schema import RunConfig
from lrtrain.data.build import Pipeline
from lrtrain.engine.state import refuse_lost, refuse_replaced, tensors_as_built
from lrtrain.errors import ConfigError, about, out_of_memory
from lrtrain.random import key, seeded

# What errors say that are about the shape of the images, not about how the model was made.
_OF_SIZES = re.compile("size|shape|dim|height|width|resolution|channel|pixel|image", re.IGNORECASE)


@torch.no_grad()
def try_forward(
    config: RunConfig, model: torch.nn.Module, pipeline: Pipeline, classes: int, device: torch.device
) -> None:
    """Refuse, before training, a model that cannot take the images or does not answer with logits.

    Args:
        config: names the model.
        model: is left as it is, on `device`.
        pipeline: says which shapes the images have.
        classes: how many logits there must be.
        device: of the model.

    Raises:
        ConfigError: it fails or answers otherwise, or changes what no checkpoint would hold.
    """
    with seeded(key(config.seed, "trial")), torch.random.fork_rng([device] if device.type == "cuda" else []):
        own = ":" in config.model.name
        # One's own may change with the first images that it sees, and answer otherwise while it trains.
        with _untouched(model) if own else nullcontext(model) as module:
            module.eval()
            for shape in dict.fromkeys((pipeline.shape, pipeline.val_shape)):
                _try_shape(config, module, shape, classes, device)
        if own:
            with _untouched(model) as module, about(config.where("model", "name")):
                before = tensors_as_built(module)
                had = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
                _try_shape(config, module.train(), pipeline.shape, classes, device)
                refuse_lost(module, before)
                refuse_replaced(module, had)
            with _untouched(model) as module, about(config.where("model", "name")):
                # What it made of these images must be no other for others: a resumed run begins with others.
                with suppress(ConfigError):  # it took others, and may refuse what has no contrast
                    _try_shape(config, module.train(), pipeline.shape, classes, device, value=1.0)
                refuse_lost(module, before)


@contextmanager
def _untouched(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """A copy to try things on, or where none can be made, the module itself, which is put back afterwards."""
    copied = None
    with suppress(Exception):
        copied = copy.deepcopy(module)
    if copied is not None:
        yield copied
        return
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*module.parameters(), *module.buffers())]
    attributes = [
        (own, dict(own)) for part in module.modules() for own in (vars(part), part._parameters, part._buffers)
    ]
    yield module
    for own, before in attributes:
        own.clear()
        own.update(before)
    for tensor, values in tensors:
        tensor.copy_(values)


def _try_shape(
    config: RunConfig,
    module: torch.nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    device: torch.device,
    value: float = 0.0,
) -> None:
    size, mode = "x".join(map(str, shape)), " while it trains" if module.training else ""
    try:
        logits = module(torch.full((2, *shape), value, device=device))
    except Exception as error:
        if out_of_memory(error):
            raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        what = f"{config.model.name} cannot take images of {size}{mode}: {why}"
        hint = "make them larger with dataset.transforms, or take another model"
        if shape[0] in (1, 3) and f"to have {4 - shape[0]} channels, but got {shape[0]} channels" in why:
            other = {"name": "Grayscale", "num_output_channels": 4 - shape[0]}
            as_yaml = str(other).replace("'", "")
            hint = f"add {as_yaml} to dataset.transforms, or let the model take `in_channels`"
        args = config.model.args
        if (args or ":" in config.model.name) and (isinstance(error, TypeError) or not _OF_SIZES.search(why)):
            what = f"{config.model.name} fails when it is given images{mode}: {why}"
            hint = "it was tried with two images that are 0 everywhere, and must take any"
            hint = f"look after the arguments that it was made with: {', '.join(args)}" if args else hint
        raise ConfigError(what, config.where("model"), hint) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        what = (
            f"{config.model.name} must answer with logits of shape (images, {classes}); it gave {found} for two{mode}"
        )
        raise ConfigError(what, config.where("model"))
