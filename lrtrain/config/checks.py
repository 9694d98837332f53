"""Names and arguments are held against what is installed, values against each other; torch is not imported."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lrtrain import lookup
from lrtrain.config.messages import belongs, is_off, number_hint, shortened, such_as
from lrtrain.config.schema import Dataset, Group, Model, Named, Optimizer, Phase, RunConfig
from lrtrain.config.transform_checks import check_transform
from lrtrain.config.yaml import Document, Loc, scalar
from lrtrain.errors import MOST_PROBLEMS, Problem, quoted

# Lengths that the phase determines, filled in when absent.
HORIZONS = {
    "CosineAnnealingLR": "T_max",
    "OneCycleLR": "total_steps",
    "ConstantLR": "total_iters",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
}
# torch's own arguments that a config may leave out, or not give at all.
FILLED = {"CosineAnnealingLR": ("T_max",), "OneCycleLR": ("max_lr",), "CyclicLR": ("max_lr",)}
_RANGES = {"momentum": (0, 1), "betas": (0, 1), "weight_decay": (0, math.inf)}
_RANGES_OF = {"RMSprop": {"alpha": (0, 1)}}  # elsewhere it may be more
_OF_SCHEDULERS = ("SequentialLR", "ChainedScheduler")
_SWITCHES = ("bool | None", "Optional[bool]")
_NONE_AT_0 = ("weight_decay", "momentum", "dampening")
_HELD = ("transforms", "schedulers")  # what is in these is held against its own arguments
_ONE = "such as 1ep or 20step"
_REFUSED = {
    "differentiable": "training does not differentiate through the optimizer",
    "maximize": "the loss is minimised",
}


def check_names(document: Document) -> list[Problem]:
    """Every name that cannot be found and every argument that what is named does not take."""
    problems: list[Problem] = []
    for kind, section, loc, data in _sections(document.data):
        name = data.get("name")
        if isinstance(name, str):
            guess = len(problems) < MOST_PROBLEMS  # what the others might have meant is not shown
            problems += _check_section(kind, section, loc, name, data, document, guess=guess)
    return problems


def _sections(data: dict[str, Any]) -> Iterator[tuple[lookup.Kind, type[Named], Loc, dict[str, Any]]]:
    kinds: dict[str, tuple[lookup.Kind, type[Named]]] = {
        "model": ("model", Model),
        "dataset": ("dataset", Dataset),
        "optimizer": ("optimizer", Optimizer),
    }
    for key, (kind, section) in kinds.items():
        yield from ((kind, section, loc, item) for loc, item in _mappings(data.get(key), (key,)))
    for loc, item in _mappings(data.get("schedule"), ("schedule",)):
        yield "scheduler", Phase, loc, item
    dataset = data.get("dataset")
    transforms = dataset.get("transforms") if isinstance(dataset, dict) else None
    for split, items in (transforms if isinstance(transforms, dict) else {}).items():
        for loc, item in _transforms(items, ("dataset", "transforms", split)):
            yield "transform", Named, loc, item


def _transforms(items: Any, loc: Loc) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """The transforms of a list, and those that they hold."""
    for inner, item in _mappings(items, loc):
        yield inner, item
        if isinstance(item.get("transforms"), list):
            yield from _transforms(item["transforms"], (*inner, "transforms"))


def _mappings(value: Any, loc: Loc) -> list[tuple[Loc, dict[str, Any]]]:
    """The mappings in a value that may be a name, a mapping, or a list of such."""
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in _mappings(item, (*loc, i))]
    if isinstance(value, str):
        return [(loc, {"name": value})]
    return [(loc, value)] if isinstance(value, dict) else []


def _check_section(
    kind: lookup.Kind,
    section: type[Named],
    loc: Loc,
    name: str,
    data: dict[str, Any],
    document: Document,
    *,
    guess: bool,
) -> list[Problem]:
    unknown = lookup.why_unknown(kind, name, guess=guess)
    if unknown is not None:
        return [Problem(unknown[0], document.where(*loc), unknown[1])]
    fields = {field.alias or key for key, field in section.model_fields.items()}
    given = {key: value for key, value in data.items() if key not in fields}
    takes = lookup.arguments(kind, name)
    defaults = {} if takes is None else takes.defaults
    # Of one that is not taken, that is all there is to say.
    taken = {key: value for key, value in given.items() if takes is None or takes.open or key in defaults}
    problems = [
        problem
        for key, value in taken.items()
        for problem in _check_argument(key, value, takes, (*loc, key), document, of=(kind, name))
    ]
    if takes is None or name in _OF_SCHEDULERS:
        return problems
    if kind == "transform":
        problems += check_transform(name, given, defaults, loc, document)
    if kind == "model" and takes.open:
        problems += [
            Problem(
                f"{key} must be a number, a list, true or false; got {shortened(value)}",
                document.where(*loc, key),
                f"no argument of torchvision's {name} is text",
            )
            for key, value in given.items()
            if isinstance(value, str) and not number_hint(value)
        ]
    if kind == "optimizer":
        problems += _refused(name, data, loc, document)
    if not takes.open:
        problems += [
            _unknown_argument(kind, name, key, (*loc, key), tuple(defaults), fields, document)
            for key in given
            if key not in defaults
        ]
    filled = FILLED.get(name, ())
    problems += [
        Problem(f"{name} needs {key}", document.where(*loc), such_as(key) or f"add {key}: ...; it has no default")
        for key in takes.required
        if key not in data
        and key not in filled
        and not (kind == "optimizer" and key == "lr")
        and not (kind == "dataset" and _in_every_split(key, data))
    ]
    return problems


def _refused(name: str, given: dict[str, Any], loc: Loc, document: Document) -> Iterator[Problem]:
    for key, why in _REFUSED.items():
        if given.get(key) is True:  # anything else is of the wrong kind
            yield Problem(f"{name}'s {key} cannot be used: {why}", document.where(*loc, key), "leave it out")


def _in_every_split(key: str, data: dict[str, Any]) -> bool:
    splits = data.get("splits")
    return (
        isinstance(splits, dict)
        and bool(splits)
        and all(isinstance(own, dict) and key in own for own in splits.values())
    )


def _unknown_argument(
    kind: str, name: str, key: str, loc: Loc, takes: tuple[str, ...], fields: set[str], document: Document
) -> Problem:
    others = [argument for argument in takes if argument not in fields]
    guess = lookup.closest(key, [*others, *sorted(fields)])
    home = belongs(key)
    if key == "learning_rate" and kind == "optimizer":
        guess = "lr"
    if guess is not None:
        hint = f"did you mean {guess!r}?"
        if guess == HORIZONS.get(name):
            hint += f" When absent it is the phase's length{_length(document, loc)}."
        others = [argument for argument in others if argument != guess]
    elif home is not None and not home.startswith({"scheduler": "schedule"}.get(kind, kind)):
        hint = f"it belongs elsewhere: {home}."
    else:
        hint = ""
    also = (
        f" Also takes: {', '.join(others)}" if others and guess else f" It takes: {', '.join(others)}" if others else ""
    )
    what = f"{name} has no argument {quoted(key)}"
    return Problem(what, document.where(*loc), (hint + also).strip() or "leave it out: it takes none")


def _length(document: Document, loc: Loc) -> str:
    phase: Any = document.data
    for part in loc[:-1]:
        phase = phase[part]
    length = phase.get("for")
    if length is None and loc[0] == "schedule" and len(loc) == 2 and isinstance(document.data.get("epochs"), int):
        length = f"{document.data['epochs']}ep"
    return f", {length}" if isinstance(length, str) and length != "rest" else ""


def _check_argument(
    key: str, value: Any, takes: lookup.Arguments | None, loc: Loc, document: Document, *, of: tuple[lookup.Kind, str]
) -> list[Problem]:
    """What is wrong with a value's kind, else with its numbers, `of` which kind and name it is an argument."""
    kind, name = of
    if takes is None or name in _OF_SCHEDULERS:
        return list(_check_number(key, value, loc, document, of=of))
    wrong = list(_check_kind(key, value, takes, loc, document, strict=kind == "optimizer"))
    return wrong or list(_check_number(key, value, loc, document, takes.defaults.get(key), of=of))


def _check_kind(
    key: str, value: Any, takes: lookup.Arguments, loc: Loc, document: Document, *, strict: bool
) -> Iterator[Problem]:
    """Hold a value against the kind of the default: true and false are no numbers, and `no` is text in YAML 1.2.

    Where it is `strict`, null and text are no numbers either; elsewhere text may be a duration, for example.
    """
    default, annotation = takes.defaults.get(key) or "None", takes.annotations.get(key)
    usual = scalar(default)
    got = "null" if value is None else str(value).lower() if isinstance(value, bool) else shortened(value)
    if isinstance(usual, bool) or annotation in _SWITCHES:
        if not isinstance(value, bool) and (value is not None or (strict and default != "None")):
            hint = such_as(key, default.lower()) if isinstance(usual, bool) else f"such as {key}: false"
            yield Problem(f"{key} must be true or false; got {got}", document.where(*loc), hint)
    elif isinstance(usual, int | float) or (strict and annotation in ("float", "int")):
        if isinstance(value, bool) or (strict and not _is_number(value)):
            hint = number_hint(value) or such_as(key, default if isinstance(usual, int | float) else None)
            if key in _NONE_AT_0 and is_off(value):
                hint = "write 0"
            yield Problem(f"{key} must be a number; got {got}", document.where(*loc), hint or "leave it out")
    elif strict and (these := _several(default)) and not _are_like(value, these):
        count = {2: "two", 3: "three"}.get(len(these), f"{len(these)}")
        hint = f"such as {list(these)}".replace("None", "null")
        yield Problem(f"{key} must be {count} numbers; got {got}", document.where(*loc), hint)


def _several(default: str) -> list[Any]:
    """The values of a default that has several; else none."""
    with suppress(ValueError, SyntaxError):  # it may be a name
        values = ast.literal_eval(default)
        return list(values) if isinstance(values, tuple | list) else []
    return []


def _are_like(values: Any, usual: list[Any]) -> bool:
    """Whether values are as many numbers, or null where it is usual."""
    return (
        isinstance(values, list)
        and len(values) == len(usual)
        and all(_is_number(one) or (one is None and like is None) for one, like in zip(values, usual, strict=True))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_number(
    key: str, value: Any, loc: Loc, document: Document, default: str | None = None, *, of: tuple[lookup.Kind, str]
) -> Iterator[Problem]:
    """Hold a value against what numbers can be, `of` which kind and name it is an argument."""
    kind, name = of
    # Code of a user's own says itself what it takes, and datasets take folders and years as text.
    numbers = not lookup.is_path(name) and (kind != "dataset" or isinstance(scalar(default or ""), int | float))
    ranges = _RANGES | _RANGES_OF.get(name, {}) if kind == "optimizer" and not lookup.is_path(name) else {}
    values = value if isinstance(value, list) else [value]
    usual = such_as(key, default) or "leave it out"
    for item in values:
        not_finite = [number for number in _floats(item) if not math.isfinite(number)]
        if not_finite and not (isinstance(item, dict) and key in _HELD):
            yield Problem(f"{key} must be a finite number; got {not_finite[0]}", document.where(*loc), usual)
        elif numbers and isinstance(item, str) and (hint := number_hint(item)) and key not in ("lr_lambda", "scale_fn"):
            yield Problem(f"{key} must be a number; got {shortened(item)}", document.where(*loc), hint)
        elif key in ranges and _is_number(item):
            low, high = ranges[key]
            if not low <= item < high:
                what = f"{key} must be at least {low} and less than {high}; got {quoted(item)}"
                yield Problem(what, document.where(*loc), usual)


def _floats(value: Any) -> Iterator[float]:
    """The floats in a value, however deep."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _floats(item)


def check_values(config: RunConfig) -> list[Problem]:
    """Contradictions between values that are each allowed."""
    return [problem for check in (_check_run, _check_model, _check_groups) for problem in check(config)]


def _check_run(config: RunConfig) -> Iterator[Problem]:
    if config.epochs is not None and config.steps is not None:
        yield Problem(
            f"epochs: {config.epochs} and steps: {config.steps} both give the run's length",
            config.where("steps"),
            "keep one of them",
        )
    if config.epochs is None and config.steps is None:
        yield Problem("the run has no length", config.where(), "give epochs: 30 or steps: 20000")
    if config.batch_size % config.accumulate:
        yield Problem(
            f"accumulate: {config.accumulate} does not divide batch_size: {config.batch_size}",
            config.where("accumulate"),
            "batch_size is the whole batch of a step, which accumulate splits into equal parts",
        )
    for key in ("eval_every", "log_every"):
        if getattr(config, key).value == 0:
            yield Problem(f"{key} must be longer than zero; got {getattr(config, key)}", config.where(key), _ONE)
    if config.checkpoint.every.value == 0:
        what = f"checkpoint.every must be longer than zero; got {config.checkpoint.every}"
        yield Problem(what, config.where("checkpoint", "every"), _ONE)
    if config.device == "cpu" and config.deterministic is False:
        yield Problem(
            "deterministic: false has no meaning on CPU, where runs always repeat exactly",
            config.where("deterministic"),
            "leave it out",
        )


def _check_model(config: RunConfig) -> Iterator[Problem]:
    if config.model.pretrained and config.model.weights is not None:
        yield Problem(
            "pretrained: true and weights: FILE both say where the weights come from",
            config.where("model", "weights"),
            "keep one of them",
        )


def _check_groups(config: RunConfig) -> Iterator[Problem]:
    name, document = config.optimizer.name, config._document
    of: tuple[lookup.Kind, str] = ("optimizer", name)
    takes = lookup.arguments(*of)
    if takes is not None:  # what a group leaves out is as it is for all
        own = {
            key: str(value)
            for key, value in config.optimizer.args.items()
            if key in takes.defaults and not _check_argument(key, value, takes, ("optimizer", key), document, of=of)
        }
        takes = replace(takes, defaults={**takes.defaults, **own})
    fields = {field.alias or key for key, field in Group.model_fields.items()}
    for i, group in enumerate(config.optimizer.groups):
        if takes is not None:
            yield from _refused(name, group.args, ("optimizer", "groups", i), document)
        for key, value in group.args.items():
            loc: Loc = ("optimizer", "groups", i, key)
            if takes is not None and not takes.open and key not in takes.defaults:
                yield _unknown_argument("optimizer", name, key, loc, tuple(takes.defaults), fields, document)
            else:
                yield from _check_argument(key, value, takes, loc, document, of=of)
