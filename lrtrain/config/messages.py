"""pydantic's findings in lrtrain's words: requirement, offending value, what is allowed, the fix."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from lrtrain import lookup
from lrtrain.config.schema import Checkpoint, Dataset, EarlyStop, Group, Model, Optimizer, Phase, RunConfig, Transforms
from lrtrain.config.yaml import Document, Loc, dotted, scalar
from lrtrain.errors import Problem

SECTIONS: dict[str, type[BaseModel]] = {"model": Model, "dataset": Dataset, "optimizer": Optimizer, "schedule": Phase}

# What people who come from elsewhere write, and where it stands here.
ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "lr0": "optimizer.lr",
    "base_lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "n_epochs": "epochs",
    "max_steps": "steps",
    "batch": "batch_size",
    "bs": "batch_size",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "data": "dataset",
    "arch": "model",
    "num_workers": "workers",
    "amp": "precision",
    "gpu": "device",
    "patience": "early_stop.patience",
    "grad_clip": "clip_norm",
    "accum": "accumulate",
    "gradient_accumulation_steps": "accumulate",
    "warmup_epochs": "schedule.warmup",
    "warmup_steps": "schedule.warmup",
    "path": "dataset.root",
    "data_dir": "dataset.root",
    "milestones": "schedule.milestones",
    "gamma": "schedule.gamma",
    "augment": "dataset.transforms",
    "opt": "optimizer",
    "val_split": "dataset.val_fraction",
}
_EXAMPLES = {
    "model": "model: resnet18",
    "dataset": "dataset: {name: imagefolder, root: ~/photos}",
    "batch_size": "batch_size: 128",
    "optimizer": "optimizer: {name: SGD, lr: 0.1, momentum: 0.9}",
    "lr": "lr: 0.1",
    "name": "name: ...",
    "params": 'params: "^fc\\\\."',
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def problems_of(error: ValidationError, document: Document) -> list[Problem]:
    """Every finding of a validation, one per value."""
    found: dict[Loc, Problem] = {}
    for item in error.errors(include_url=False):
        loc = _real(item["loc"], document)
        found.setdefault(loc, _problem(item, loc, document))
    return list(found.values())


def _real(loc: Loc, document: Document) -> Loc:
    """The path as it stands in the file: without pydantic's names for members of a union."""
    real: list[str | int] = []
    data: Any = document.data
    for i, part in enumerate(loc):
        if isinstance(data, dict) and (part in data or i == len(loc) - 1):
            real.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            real.append(part)
            data = data[part]
    return tuple(real)


def _problem(item: Any, loc: Loc, document: Document) -> Problem:
    kind, name, value = item["type"], dotted(loc) or "the config", item["input"]
    context = item.get("ctx", {})
    where = document.where(*loc)
    if kind == "missing":
        return Problem(f"{name} is required", document.where(*loc[:-1]), _example(loc))
    if kind == "extra_forbidden":
        return unknown_key(loc, document)
    if kind == "duration":
        return Problem(
            f"{name}: {context['why']}", where, "a duration is epochs (5ep), steps (300step) or a part of the run (10%)"
        )
    if kind == "literal_error":
        allowed = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        guess = lookup.closest(str(value), allowed)
        hint = (f"did you mean {guess!r}? " if guess else "") + f"allowed: {', '.join(allowed)}"
        return Problem(f"{name} cannot be {value!r}"[:120], where, hint)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return Problem(f"{name} must be {words} {context[key]}; got {value!r}", where)
    if kind == "value_error":
        return Problem(f"{name}: {str(item['msg']).removeprefix('Value error, ')}", where)
    return _wrong_type(kind, item["msg"], name, value, where)


def _wrong_type(kind: str, message: str, name: str, value: Any, where: str) -> Problem:
    wanted = {
        "float_type": "a number",
        "int_type": "a whole number",
        "bool_type": "true or false",
        "string_type": "text",
        "finite_number": "a finite number",
        "tuple_type": "a list",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
        "dict_type": "a mapping",
        "int_from_float": "a whole number",
        "string_pattern_mismatch": "auto, cpu, cuda, cuda:1 or mps",
    }.get(kind)
    if wanted is None:
        return Problem(f"{name}: {message}; got {shortened(value)}", where)
    return Problem(f"{name} must be {wanted}; got {shortened(value)}", where, number_hint(value))


def number_hint(value: Any) -> str | None:
    """How to write a number that was written as text."""
    if not isinstance(value, str):
        return None
    if isinstance(scalar(value), int | float):
        return f"the quotes make it text: write {value} without them"
    if isinstance(scalar(value.replace(",", ".")), float):
        return f"the decimal sign is a point: {value.replace(',', '.')}"
    if isinstance(scalar(value.replace("_", "")), int | float):
        return f"write {value.replace('_', '')}"
    return None


def unknown_key(loc: Loc, document: Document) -> Problem:
    """A key that nothing takes: what was probably meant, and where it belongs."""
    *parents, key = loc
    section = _section(tuple(parents))
    known = [field.alias or name for name, field in section.model_fields.items()]
    guess = lookup.closest(str(key), known)
    if not parents and (guess is None or key in ELSEWHERE):
        home = belongs(str(key))
        if home is not None:
            return Problem(
                f"{key!r} is not a key of the config's top level", document.where(*loc), f"write it as {home}"
            )
    hint = f"did you mean {guess!r}? " if guess else ""
    return Problem(f"there is no key {dotted(loc)!r}", document.where(*loc), f"{hint}known here: {', '.join(known)}")


def belongs(key: str) -> str | None:
    """The full key where something of that name stands."""
    if key in ELSEWHERE:
        return ELSEWHERE[key]
    for name, section in SECTIONS.items():
        if key in section.model_fields or any(field.alias == key for field in section.model_fields.values()):
            return f"{name}.{key}"
    optimizer = lookup.arguments("optimizer", "SGD"), lookup.arguments("optimizer", "AdamW")
    return f"optimizer.{key}" if any(args and key in args.defaults for args in optimizer) else None


def _section(parents: Loc) -> type[BaseModel]:
    names = [part for part in parents if isinstance(part, str)]
    nested: dict[str, type[BaseModel]] = {
        "transforms": Transforms,
        "groups": Group,
        "early_stop": EarlyStop,
        "checkpoint": Checkpoint,
        **SECTIONS,
    }
    return nested.get(names[-1], RunConfig) if names else RunConfig


def _example(loc: Loc) -> str | None:
    example = _EXAMPLES.get(str(loc[-1]))
    return f"such as {example}" if example else None


def shortened(value: Any) -> str:
    """`repr`, cut where it is long."""
    text = repr(value) if not isinstance(value, str) else f"the text {value!r}"
    return text if len(text) <= 80 else text[:77] + "..."
