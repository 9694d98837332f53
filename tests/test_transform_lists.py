"""What a list of transforms makes of images: conversion and normalisation once, and channels that the model takes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from lrtrain.config.schema import Dataset
from lrtrain.config.yaml import dotted
from lrtrain.data.build import Pipeline, channels_seen, make_pipeline
from lrtrain.data.open import open_source
from lrtrain.data.transforms import Moment
from lrtrain.errors import ConfigError

FLOAT = {"name": "ToDtype", "dtype": "float32", "scale": True}
NORMALIZE = {"name": "Normalize", "mean": [0.3], "std": [0.4]}


def made(transforms: dict[str, Any]) -> Pipeline:
    section = Dataset.model_validate({"name": "digits", "transforms": transforms})

    def where(*loc: str | int) -> str:
        return dotted(loc)

    pipeline = make_pipeline(open_source(section, 1, where), section, seed=1, where=where)
    assert channels_seen(pipeline.source, section) == pipeline.shape[0] == pipeline.val_shape[0]
    return pipeline


def first(pipeline: Pipeline) -> torch.Tensor:
    image = pipeline.source.train.read(0)
    for step in pipeline.train.steps():
        image = step.to_sample(image, 0, Moment(1, 0))
    return image


def test_a_compose_is_its_items() -> None:
    flat = [{"name": "Resize", "size": 16}, FLOAT, NORMALIZE]
    inner = {"name": "Compose", "transforms": [FLOAT, NORMALIZE]}
    nested = made({"train": [{"name": "Compose", "transforms": ["Identity", flat[0], inner]}]})
    assert nested.resolved_transforms == made({"train": flat}).resolved_transforms
    assert torch.equal(first(nested), first(made({"train": flat})))
    with pytest.raises(ConfigError, match="train and val normalise differently"):
        made({"train": [inner], "val": [{**NORMALIZE, "std": [0.7]}]})


@pytest.mark.filterwarnings("ignore:The transform `ToTensor")
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "RandomApply", "transforms": [FLOAT], "p": 1.0}, "ToDtype must stand in the list itself, not in Ran"),
        ({"name": "RandomOrder", "transforms": ["ToTensor", NORMALIZE]}, "ToTensor must stand in the list itself"),
        ({"name": "torchvision.transforms.v2:ToTensor"}, "not as torchvision.transforms.v2:ToTensor"),
        ({"name": "torchvision.transforms:Normalize", "mean": [0.3], "std": [0.4]}, "write {name: Normalize, ...}"),
    ],
)
def test_hidden_normalisation_is_refused(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        made({"train": [entry]})


@pytest.mark.parametrize(
    "transforms",
    [
        {"train": ["RGB"]},
        {"val": [{"name": "Grayscale", "num_output_channels": 3}]},
        {"train": [{"name": "Compose", "transforms": ["RGB"]}], "val": ["RGB"]},
    ],
)
def test_the_model_gets_the_channels_that_the_transforms_leave(transforms: dict[str, Any]) -> None:
    assert made(transforms).shape == (3, 8, 8)


def test_both_lists_must_leave_the_same_channels() -> None:
    with pytest.raises(ConfigError, match="train transforms leave images of 3 channels, and those of val of 1"):
        made({"train": ["RGB"], "val": []})
