"""The run that everything is compared with: its images, its config, and the variants of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lrtrain.config.schema import Checkpoint

CLASSES = ("ant", "bee", "cat", "dog")
TRAIN, VAL, SIDE = 40, 8, 16  # images of each class; px
EPOCHS, PER_EPOCH = 3, 20
STEPS = EPOCHS * PER_EPOCH

BASE: dict[str, Any] = {
    "seed": 7,
    "epochs": EPOCHS,
    "batch_size": 8,
    "accumulate": 2,
    "model": "torture_parts.nets:small",
    "dataset": {
        "name": "imagefolder",
        "transforms": {
            "train": [
                {"name": "RandomCrop", "size": SIDE, "padding": 2},
                "RandomHorizontalFlip",
                {"name": "RandomRotation", "degrees": 15},  # image by image, in workers where there are some
                "RandomErasing",
            ]
        },
    },
    "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.001, "nesterov": True},
    "schedule": {"name": "CosineAnnealingLR", "warmup": "8step", "eta_min": 0.001},
    "precision": "fp32",
    "ema": 0.9,
    "mixup": 0.2,
    "label_smoothing": 0.1,
    "log_every": "3step",  # not in step with what is saved
    "checkpoint": {"every": "10step", "keep": 2, "best": "val_acc1"},
    "workers": 0,
    "cache": "memory",
}
GROUPS = [{"params": "norm_and_bias", "weight_decay": 0, "lr_scale": 2}, {"params": "^head", "frozen_until": "15step"}]
ADAMW = {"name": "AdamW", "lr": 0.01, "weight_decay": 0.05}
PLATEAU = [
    {"name": "LinearLR", "for": "7step"},
    {"name": "ReduceLROnPlateau", "patience": 0, "threshold": 0.5, "factor": 0.5},
]
# A full disk ends a run at once, where it would be waited for.
CAN_WAIT = "disk_full_wait" in Checkpoint.model_fields
WAITING: dict[str, dict[str, Any]] = {"waits for room": {"checkpoint.disk_full_wait": 60.0}} if CAN_WAIT else {}
# What each changes in BASE; None takes a key out.
KILLED_VARIANTS = ("plateau", "early stop", "fp16", "bf16", "RMSprop", "two ranks")
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "plateau": {
        "optimizer": {**ADAMW, "groups": GROUPS},
        "schedule": PLATEAU,
        "eval_every": "7step",
        "cutmix": 1.0,
        "clip_norm": 1.0,
    },
    "early stop": {
        "early_stop": {"monitor": "val_acc1", "patience": 3, "min_delta": 0.9},
        "eval_every": "9step",
        "ema": None,
    },
    "fp16": {"precision": "fp16", "accumulate": 1, "ema": None, "clip_norm": 2.0},
    "bf16": {"precision": "bf16", "optimizer": {**ADAMW, "amsgrad": True}, "schedule": "OneCycleLR", "mixup": None},
    "RMSprop": {
        "optimizer": {"name": "RMSprop", "lr": 0.002, "momentum": 0.5, "centered": True},
        "accumulate": 3,
        "batch_size": 9,
        "drop_last": True,
        "schedule": [{"name": "LinearLR", "for": "1ep"}, {"name": "StepLR", "for": "rest", "step_size": "11step"}],
    },
    "two ranks": {"accumulate": 1, "log_every": "4step"},
    "NaN at first": {
        "model": "torture_parts.nets:bad_at_first",
        "ema": None,
        "accumulate": 1,
        "checkpoint.best": "val_loss",
    },
    **WAITING,
}


def config_of(variant: str, data: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config of a variant; `changes` replace whole keys, and with a dot what is below them."""
    config = copy.deepcopy(BASE)
    if CAN_WAIT:
        config["checkpoint"]["disk_full_wait"] = 0.0
    for key, value in {**VARIANTS[variant], "dataset.root": str(data), **(changes or {})}.items():
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        if value is None:
            section.pop(last, None)
        else:
            section[last] = copy.deepcopy(value)
    return config


def write_config(path: Path, config: dict[str, Any]) -> None:
    """As JSON, which is YAML."""
    path.write_text(json.dumps(config, indent=1))


def make_images(root: Path, seed: int) -> None:
    """Noisy images of classes that differ in colour and form; half are PNG, half are JPEG."""
    draws = np.random.default_rng(seed)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draws.integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[: SIDE // 2 if number % 2 else SIDE, :, number % 3] += 55
                suffix = "png" if i % 2 else "jpg"
                Image.fromarray(pixels).save(folder / f"{i:03}.{suffix}")
