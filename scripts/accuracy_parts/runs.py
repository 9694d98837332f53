"""One training run, with images from lrtrain or from plain torchvision; nothing else differs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accuracy_parts.lists import NORMALIZE, Entry


@dataclass(frozen=True)
class Setting:
    """What all runs have in common.

    Attributes:
        root: folder with train/CLASS and test/CLASS.
        batch: images per optimizer step.
        workers: processes that load and augment, where lrtrain or torchvision want them.
    """

    root: str
    epochs: int
    batch: int
    workers: int


@dataclass(frozen=True)
class Run:
    """How a run ended.

    Attributes:
        accuracy: of the test images after the last step, in %.
        initial: tells the weights before the first step from others.
        steps: optimizer steps taken.
        seconds: of training and the evaluation at its end, without the preparation.
    """

    accuracy: float
    initial: str
    steps: int
    seconds: float


def config_of(setting: Setting, entries: Sequence[Entry], seed: int) -> dict[str, Any]:
    """The run as a config of lrtrain: an LR that ends near 0, so that the accuracy does not hang on the last steps."""
    return {
        "seed": seed,
        "epochs": setting.epochs,
        "batch_size": setting.batch,
        "drop_last": True,
        "model": "small_cnn",
        "dataset": {
            "name": "imagefolder",
            "root": setting.root,
            "transforms": {"train": list(entries), "val": NORMALIZE},
        },
        "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "schedule": {"name": "OneCycleLR"},
        "device": "cpu",
        "workers": setting.workers,
        "cache": "memory",
        "eval_every": "100%",
        "log_every": "100%",
    }


def run(setting: Setting, entries: Sequence[Entry], seed: int, *, plain: bool) -> Run:
    """Train through lrtrain's engine and evaluate after the last step.

    Args:
        setting: what all runs have in common.
        entries: the transforms of training.
        seed: of the weights, the order and the augmentation.
        plain: take the images from torchvision alone, instead of lrtrain's batches.
    """
    from accuracy_parts.plain import Plain
    from lrtrain.build import build
    from lrtrain.config import yaml
    from lrtrain.config.load import resolve
    from lrtrain.engine.events import Evaluated, Finished
    from lrtrain.engine.train import Images, train

    # The plain run takes model, optimizer, plan and precision from the same build, but needs no images kept.
    config = config_of(setting, entries, seed) | ({"cache": "off"} if plain else {})
    job = build(resolve(yaml.parse(json.dumps(config), "accuracy")))  # JSON is YAML
    images: Images = job.batches
    if plain:
        images = Plain(setting.root, entries, seed=seed, batch_size=setting.batch, workers=setting.workers)
    initial = _fingerprint(job.state.model)
    began = time.perf_counter()
    # Nobody saves what a checkpoint would hold.
    events = list(train(job.state, job.plan, images, dataclasses.replace(job.recipe, checkpoint_every=None)))
    seconds = time.perf_counter() - began
    job.batches.close()
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    ended = events[-1]
    if not isinstance(ended, Finished) or not evaluated or evaluated[-1].step != ended.step:
        raise RuntimeError(f"training ended with {ended}, and its last evaluation was not of that step")
    return Run(100 * evaluated[-1].metrics.acc1, initial, ended.step, seconds)


def _fingerprint(model: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
