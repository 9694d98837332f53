"""A batch of a single image, which BatchNorm cannot train on."""

from __future__ import annotations

import numpy as np
import pytest

from lrtrain.build import refuse_single_images
from lrtrain.config.load import resolve
from lrtrain.config.yaml import Document
from lrtrain.data.order import smallest_part, steps_per_epoch
from lrtrain.errors import ConfigError
from lrtrain.models.build import build_model
from tests.folders import where


def config(**keys):
    data = {
        "epochs": 2,
        "batch_size": 8,
        "model": "small_cnn",
        "dataset": "digits",
        "optimizer": {"name": "SGD", "lr": 0.1},
        **keys,
    }
    return resolve(Document("c.yaml", data))


def single(images, **keys):
    run = config(**keys)
    model = build_model(run.model, 2, 3, 0, where).module
    refuse_single_images(run, model, images, steps_per_epoch(images, run.batch_size, run.drop_last))


@pytest.mark.parametrize(
    ("images", "keys", "hint"),
    [
        (25, {}, "write `drop_last: true`, or `batch_size: 7`, or take a model without BatchNorm"),
        (25, {"batch_size": 12}, "write `drop_last: true`, or `batch_size: 11`"),
        (25, {"batch_size": 1}, "write `batch_size: 5`"),
        (25, {"batch_size": 8, "accumulate": 8}, "write a smaller `accumulate`"),
        (26, {"batch_size": 8, "accumulate": 2}, "write `drop_last: true`, or `batch_size: 10`"),
        (1, {}, "take a model without BatchNorm"),
    ],
)
def test_a_batch_of_one_image_is_refused_where_there_is_batchnorm(images, keys, hint):
    with pytest.raises(ConfigError) as caught:
        single(images, **keys)
    (problem,) = caught.value.problems
    assert problem.hint.startswith(hint)
    assert problem.where == "c.yaml  batch_size"
    assert "BatchNorm layers, such as bn" in problem.what


@pytest.mark.parametrize(
    ("images", "keys"),
    [
        (24, {}),
        (26, {}),
        (25, {"drop_last": True}),
        (25, {"model": "vit_b_16"}),
        (25, {"epochs": None, "steps": 3}),
    ],
)
def test_a_batch_of_one_image_is_none_of_its_business_elsewhere(images, keys):
    single(images, **keys)


def test_the_hint_says_a_batch_size_that_works():
    for images in range(3, 60):
        for size in range(2, images):
            if smallest_part(images, size, drop_last=False) == 1:
                with pytest.raises(ConfigError) as caught:
                    refuse_single_images(config(batch_size=size), _with_norm(), images, -(-images // size))
                hint = caught.value.problems[0].hint
                other = int(hint.partition("batch_size: ")[2].partition("`")[0])
                assert smallest_part(images, other, drop_last=False) > 1


def _with_norm():
    import torch

    return torch.nn.Sequential(torch.nn.BatchNorm2d(3))


def test_the_smallest_micro_batch_is_what_parting_gives():
    for n in range(1, 20):
        for size in range(1, 10):
            for drop_last in (False, True):
                for accumulate in (1, 2, 3):
                    for processes in (1, 2, 3):
                        if size % accumulate == 0 and (steps := steps_per_epoch(n, size, drop_last)):
                            found = [
                                len(share[i : i + -(-len(share) // accumulate)])
                                for step in range(steps)
                                for share in np.array_split(np.arange(n)[step * size : (step + 1) * size], processes)
                                for i in range(0, max(len(share), 1), max(-(-len(share) // accumulate), 1))
                            ]
                            assert min(found) == smallest_part(n, size, drop_last, accumulate, processes)
