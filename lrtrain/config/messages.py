"""pydantic's findings in lrtrain's words: requirement, offending value, what is allowed, the fix."""

from __future__ import annotations

import re
import shlex
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lrtrain import lookup
from lrtrain.config.schema import Checkpoint, Dataset, EarlyStop, Group, Model, Optimizer, Phase, RunConfig, Transforms
from lrtrain.config.yaml import Document, Loc, dotted, scalar
from lrtrain.errors import MOST_PROBLEMS, Problem, quoted

SECTIONS: dict[str, type[BaseModel]] = {"model": Model, "dataset": Dataset, "optimizer": Optimizer, "schedule": Phase}
_HOLDING = (*SECTIONS, "early_stop", "checkpoint")  # keys that hold others

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
# A value that each key can have.
EXAMPLES = {
    "model": "resnet18",
    "dataset": "{name: imagefolder, root: ~/photos}",
    "optimizer": "{name: SGD, lr: 0.1, momentum: 0.9}",
    "schedule": "{name: CosineAnnealingLR, warmup: 5ep}",
    "groups": '[{params: "^fc\\\\.", lr: 0.01}]',
    "transforms": "{train: [RandomHorizontalFlip]}",
    "early_stop": "{monitor: val_loss, patience: 5}",
    "checkpoint": "{every: 1ep, keep: 2}",
    "batch_size": "128",
    "epochs": "30",
    "steps": "20000",
    "lr": "0.1",
    "lr_scale": "0.1",
    "layer_decay": "0.75",
    "name": "...",
    "params": '"^fc\\\\."',
    "clip_norm": "1.0",
    "ema": "0.999",
    "mixup": "0.2",
    "cutmix": "1.0",
    "val_fraction": "0.2",
    "frozen_until": "2ep",
    "for": "5ep",
    "warmup": "5ep",
    "root": "~/photos",
    "manifest": "images.csv",
    "weights": "model.safetensors",
    "monitor": "val_loss",
    "milestones": "[50%, 75%]",
    "step_size": "30ep",
    "gamma": "0.95",
    "T_0": "10ep",
    "base_lr": "0.001",
    "lr_lambda": '"0.95 ** t"',
    "timescale": "500step",
    "cooldown": "20%",
    "size": "32",
    "schedulers": "[{name: ExponentialLR, gamma: 0.99}]",
}
_OFF = ("off", "no", "none", "never", "false")  # of which YAML's false is one
_ON = ("on", "yes", "true")
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
        found.setdefault(loc, _problem(item, loc, document, compare=len(found) < MOST_PROBLEMS))
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


def _problem(item: Any, loc: Loc, document: Document, *, compare: bool) -> Problem:
    kind, name, value = item["type"], dotted(loc) or "the config", item["input"]
    context = item.get("ctx", {})
    where = document.where(*loc)
    if kind == "missing":
        return Problem(f"{name} is required", document.where(*loc[:-1]), such_as(loc[-1]))
    if kind == "extra_forbidden":
        return unknown_key(loc, document, compare=compare)
    if kind == "duration":
        return Problem(
            f"{name}: {context['why']}", where, "a duration is epochs (5ep), steps (300step) or a part of the run (10%)"
        )
    field = _field(loc)
    switches = field is not None and bool in (field.annotation, *get_args(field.annotation))
    if field is not None and is_off(value) and (switches or field.default in (None, 0)):
        off = "false" if switches else "null" if field.default is None else "0"
        return Problem(f"{name} cannot be {quoted(value)}", where, f"write {off}")
    if kind == "bool_type" and str(value).lower() in _ON:
        return Problem(f"{name} cannot be {quoted(value)}", where, "write true")
    if kind == "literal_error":
        allowed = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        allowed += ["true", "false"] if switches else []
        guess = lookup.closest(str(value), allowed)
        hint = (f"did you mean {guess!r}? " if guess else "") + f"allowed: {', '.join(allowed)}"
        return Problem(f"{name} cannot be {quoted(value)}", where, hint)
    fix = number_hint(value) or such_as(loc[-1] if loc else "", _default(loc))
    if kind == "string_type" and type(value) in (int, float):  # a folder that is called by its year
        fix = IN_QUOTES
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return Problem(f"{name} must be {words} {context[key]}; got {quoted(value)}", where, fix)
    if kind == "value_error":
        what, _, fix = str(item["msg"]).removeprefix("Value error, ").rpartition(": ")
        return Problem(f"{name}: {what}", where, fix)
    return _wrong_type(kind, item["msg"], name, value, where, fix)


def _wrong_type(kind: str, message: str, name: str, value: Any, where: str, hint: str | None) -> Problem:
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
    if value is None:
        return Problem(f"{name} has no value", where, hint)
    if wanted is None:
        return Problem(f"{name}: {message}; got {shortened(value)}", where, hint)
    return Problem(f"{name} must be {wanted}; got {shortened(value)}", where, hint)


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


def unknown_key(loc: Loc, document: Document, *, compare: bool = True) -> Problem:
    """A key that nothing takes: what was probably meant, which takes long to `compare`, and where it belongs."""
    *parents, key = loc
    section = _section(tuple(parents))
    known = [field.alias or name for name, field in section.model_fields.items() if name != "extended"]
    inside, _, last = str(key).rpartition(".")
    if not parents and inside.partition(".")[0] in _HOLDING:
        value = _value(document.data[key])
        fix = f"in its place write `{last}: {value}` inside `{inside}`, or type --set {shlex.quote(f'{key}={value}')}"
        return Problem(f"there is no key {dotted(loc)!r}", document.where(*loc), fix)
    guess = lookup.closest(str(key), known) if compare else None
    if not parents and (guess is None or key in ELSEWHERE):
        home = belongs(str(key))
        if home is not None:
            return Problem(
                f"{quoted(key)} is not a key of the config's top level", document.where(*loc), f"write it as {home}"
            )
    hint = f"did you mean {guess!r}?" if guess else f"known here: {', '.join(known)}"
    return Problem(f"there is no key {dotted(loc)!r}", document.where(*loc), hint)


def _value(value: Any) -> str:
    """A short value as it is written in YAML, and in a shell without quotes; else three points."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if value is not None and re.fullmatch(r"[\w./~%+-]{1,60}", text) else "..."


def is_off(value: Any) -> bool:
    """Whether a value says that something is not wanted, as YAML or a person does."""
    return str(value).lower() in _OFF


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


IN_QUOTES = """if that is its name, put it in quotes (with --set in two kinds: "KEY='2024'")"""


def such_as(key: str | int, default: str | None = None) -> str | None:
    """`such as key: value`, from the examples or what the key is when absent; None where neither is known."""
    if example := EXAMPLES.get(str(key)):
        return f"such as {key}: {example}"
    return f"leave it out: it is {default} then" if default not in (None, "None") else None


def _field(loc: Loc) -> FieldInfo | None:
    """The key of the config that stands there."""
    fields = {field.alias or name: field for name, field in _section(loc[:-1]).model_fields.items()} if loc else {}
    return fields.get(str(loc[-1])) if loc else None


def _default(loc: Loc) -> str | None:
    """What a key of the config is when absent, as YAML; None where that is nothing."""
    field = _field(loc)
    if field is None or field.default in (None, PydanticUndefined, ()):
        return None
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def shortened(value: Any) -> str:
    """`quoted`, where text says that it is text."""
    return f"the text {quoted(value)}" if isinstance(value, str) else quoted(value)
