"""The config's `dataset` section becomes a source. Nothing here needs torchvision, which is slow to import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lrtrain import lookup, random
from lrtrain.config.messages import IN_QUOTES, such_as
from lrtrain.config.schema import Dataset
from lrtrain.data.classes import unfit
from lrtrain.data.files import shortened
from lrtrain.data.order import steps_per_epoch
from lrtrain.data.pairs import PairSplit, refuse_drawing
from lrtrain.data.source import Source
from lrtrain.data.torchvision_source import pairs_source, torchvision_source
from lrtrain.errors import ConfigError, DataError, Key, LrtrainError, Problem, about, quoted
from lrtrain.foreign import user_path

Where = Callable[..., str]


def open_source(dataset: Dataset, seed: int, where: Where) -> Source:
    """Open the dataset that a config names, to train on it.

    Args:
        dataset: the section.
        seed: of the run; chooses what `val_fraction` holds out.
        where: `RunConfig.where`.

    Raises:
        DataError: the data are missing, unreadable or contradictory.
        ConfigError: no such dataset, or arguments that it does not take.
    """
    source = found_source(dataset, seed, where)
    with about(place_of(dataset, where)):
        if source.problems:
            raise DataError(shortened(source.problems))
    return source


def found_source(dataset: Dataset, seed: int, where: Where) -> Source:
    """Open the dataset that a config names, with whatever is wrong with it in its `problems`.

    Raises:
        DataError: there is nothing to open.
        ConfigError: no such dataset, or arguments that it does not take.
    """
    source = _found(dataset, seed, where)
    return replace(source, problems=(*source.problems, *unfit(source.classes)))


def _found(dataset: Dataset, seed: int, where: Where) -> Source:
    arguments = dict(dataset.args)
    if dataset.root is not None:
        with about(place_of(dataset, where)):
            arguments["root"] = str(user_path(dataset.root))
    if dataset.val_fraction is not None:
        arguments["val_fraction"] = dataset.val_fraction

    def of_key(key: Key) -> str:
        return where("dataset", *key.split("."))

    with about(place_of(dataset, where), of_key):
        found = lookup.find("dataset", dataset.name)
        if lookup.is_path(dataset.name):
            return _own(dataset.name, found, arguments, seed)
        if dataset.name in lookup.ours("dataset"):
            return _ours(dataset.name, found, arguments, seed)
        return torchvision_source(found, seed=seed, **arguments)


def place_of(dataset: Dataset, where: Where) -> str:
    """The line of the config that errors of the dataset's files point to."""
    return where("dataset", "root") if dataset.root is not None else where("dataset")


def _ours(name: str, source: Callable[..., Source], arguments: dict[str, Any], seed: int) -> Source:
    parameters = inspect.signature(source).parameters
    if unknown := [argument for argument in arguments if argument not in parameters]:
        takes = ", ".join(p for p in parameters if p != "seed") or "no arguments"
        without = "; leave root out, as `--set dataset.root=null` does" if "root" in unknown else ""
        raise ConfigError(f"{name} does not take {', '.join(map(repr, unknown))}", hint=f"it takes: {takes}{without}")
    missing = [
        p.name for p in parameters.values() if p.default is p.empty and p.name != "seed" and p.name not in arguments
    ]
    if missing:
        raise ConfigError(f"{name} needs {' and '.join(missing)}", hint=f"add `{missing[0]}: ...` to dataset")
    if problems := list(_wrong_kinds(arguments, get_type_hints(source))):
        raise ConfigError(problems)
    return source(**arguments, **({"seed": seed} if "seed" in parameters else {}))


def _wrong_kinds(arguments: dict[str, Any], hints: dict[str, Any]) -> Iterator[Problem]:
    """Text that is none, and words that are not allowed; what may be a list too is looked at by the source."""
    for key, value in arguments.items():
        kinds = [kind for kind in get_args(hints[key]) or (hints[key],) if kind is not type(None)]
        allowed = get_args(hints[key]) if get_origin(hints[key]) is Literal else ()
        if kinds == [str] and not isinstance(value, str) and not (value is None and len(get_args(hints[key])) > 1):
            hint = IN_QUOTES if type(value) in (int, float) else such_as(key) or "name a file"
            yield Problem(f"{key} must be text; got {quoted(value)}", Key(key), hint)
        elif allowed and value not in allowed:
            what = f"{key} must be {' or '.join(allowed)}; got {quoted(value)}"
            yield Problem(what, Key(key), f"such as {key}: {allowed[0]}")


def _own(name: str, function: Any, arguments: dict[str, Any], seed: int) -> Source:
    """What a user's function returns: a Source, or datasets (train, val) or (train, val, test) of pairs."""
    try:
        if "seed" in inspect.signature(function).parameters:
            arguments = {"seed": seed, **arguments}
        with random.seeded(random.key(seed, "dataset")):  # of which it may choose images
            made = function(**arguments)
    except LrtrainError:
        raise
    except Exception as error:
        raise DataError(
            f"{name} failed: {type(error).__name__}: {error}",
            hint=f"it was called with {', '.join(arguments) or 'no arguments'}",
        ) from error
    if isinstance(made, Source):
        return made
    # A list, as random_split() gives, too.
    if isinstance(made, tuple | list) and len(made) in (2, 3) and all(hasattr(part, "__getitem__") for part in made):
        source = pairs_source(name, dict(zip(("train", "val", "test"), made, strict=False)), None, seed)
        for split in source.splits().values():
            if isinstance(split, PairSplit):
                refuse_drawing(split)
        return source
    raise DataError(
        f"{name} must return datasets (train, val) of (image, class) pairs, or a "
        f"lrtrain.data.source.Source; it returned {type(made).__name__}"
    )


def epoch_steps(source: Source, batch_size: int, drop_last: bool, where: Where) -> int:
    """Optimizer steps in one pass over the training images.

    Raises:
        ConfigError: `drop_last` leaves none.
    """
    images = len(source.train)
    steps = steps_per_epoch(images, batch_size, drop_last)
    if steps == 0:
        raise ConfigError(
            f"batch_size {batch_size} is more than the {images} training images, and drop_last is on",
            where("batch_size"),
            f"at most {images}, or drop_last: false",
        )
    return steps
