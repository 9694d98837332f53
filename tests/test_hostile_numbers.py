"""Numbers at the ends of what a float or an integer can be, in every key of a config that takes a number."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from lrtrain.build import build
from lrtrain.config import yaml
from lrtrain.config.load import resolve
from lrtrain.config.schema import RunConfig
from lrtrain.engine.train import train
from lrtrain.errors import ConfigError, Diverged

NUMBERS: list[float | int] = [1e-320, 5e-324, 1e-30, 1e308, -0.0, 2**63, 2**64, -(2**63), math.nan, math.inf, -math.inf]
# Sections whose keys are written by lrtrain.
WRITTEN = ("extended",)
# Arguments of what the config names, which the schema does not know.
ARGUMENTS = ["optimizer.weight_decay", "optimizer.momentum", "optimizer.dampening", "model.width"]


def good() -> dict[str, Any]:
    return {
        "steps": 2,
        "batch_size": 96,
        "model": {"name": "small_cnn", "width": 4},
        "dataset": {"name": "digits"},
        "optimizer": {"name": "SGD", "lr": 0.05, "groups": [{"params": "fc"}]},
        "precision": "fp32",
        "workers": 0,
        "cache": "off",
    }


def numeric(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a section that take a number, and of the sections in it."""
    for key, field in section.model_fields.items():
        kinds = list(_leaves(field.annotation))
        if key in WRITTEN:
            continue
        if {int, float} & set(kinds):
            yield prefix + key
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                listed = "0." if "tuple" in str(field.annotation) else ""
                yield from numeric(kind, f"{prefix}{key}.{listed}")


def _leaves(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from _leaves(argument)
    else:
        yield annotation


KEYS = list(numeric(RunConfig)) + ARGUMENTS


def test_the_keys_are_those_of_the_schema() -> None:
    assert {
        "seed",
        "mixup",
        "optimizer.lr",
        "optimizer.groups.0.lr_scale",
        "checkpoint.keep",
        "dataset.val_fraction",
    } <= set(KEYS)
    assert len(KEYS) >= 22


@pytest.mark.parametrize("key", KEYS)
def test_a_number_at_the_end_of_its_range_trains_or_is_refused_as_a_mistake(key: str) -> None:
    outcomes = {number: _outcome(key, number) for number in NUMBERS}
    assert {outcomes[n] for n in NUMBERS if not math.isfinite(n)} == {"refused"}
    # Arguments of torch's optimizers are torch's to bound; the loss that they lead to ends training with its reason.
    assert "diverged" not in outcomes.values() or key in ("optimizer.weight_decay", "optimizer.dampening"), outcomes


def _outcome(key: str, number: float | int) -> str:
    data = good()
    target: Any = data
    *path, last = key.split(".")
    for part in path:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[last] = number
    if key == "epochs":
        del data["steps"]
    try:
        job = build(resolve(yaml.parse(yaml.dump(data), "c.yaml")))
    except ConfigError:
        return "refused"
    try:
        for _ in train(job.state, job.plan, job.batches, job.recipe):
            pass
    except Diverged:
        return "diverged"
    assert job.state.step == 2
    return "trained"
