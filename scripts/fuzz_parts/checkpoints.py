"""Checkpoints of real runs, damaged in bytes, files and what they say: verified, and where whole, gone on from."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

from fuzz_parts.damage import damaged
from lrtrain.build import Job, build
from lrtrain.checkpoint import folder, format
from lrtrain.config import yaml
from lrtrain.config.load import resolve
from lrtrain.engine.state import restore, snapshot
from lrtrain.engine.train import train

BASE = {"steps": 4, "batch_size": 360, "dataset": "digits", "precision": "fp32", "workers": 0, "device": "cpu"}
MODEL = {"name": "small_cnn", "width": 4}
RUNS: tuple[dict[str, Any], ...] = (
    {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}, "ema": 0.9},
    {"optimizer": {"name": "AdamW", "lr": 0.001}, "schedule": {"name": "ReduceLROnPlateau", "patience": 1}},
    {"optimizer": {"name": "Adafactor", "lr": 0.001}},
)
STEP = "step-00000004"
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**64, 10**300, 10**4000, 1e308, -1e308, float("nan"), float("inf")),
    *("", "x", "\x1b[31m", "\ud800", "../x", "a" * 5000, [], {}, [[]], {"a": {}}, [None], [1, 2, 3], ["a"], "4", "nan"),
)


class Tries:
    """Makes and reads checkpoints."""

    def __init__(self) -> None:
        self._jobs = [_job(changes) for changes in RUNS]
        self._again = [_job(changes) for changes in RUNS]
        self._root = Path(tempfile.mkdtemp(dir="."))
        for i, job in enumerate(self._jobs):
            for _ in train(job.state, job.plan, job.batches, job.recipe):
                pass
            parts, manifest = snapshot(job.state)
            facts = {"classes": list("0123456789"), "threads": 1, "log_bytes": {"metrics.jsonl": 0}, "total_steps": 4}
            format.write(self._root / str(i), job.state.step, parts, {**manifest, **facts})
        self._run = 0

    def make(self, noise: random.Random, case: Path) -> None:
        """A `checkpoints` folder at `case`."""
        shutil.rmtree(case, ignore_errors=True)
        self._run = noise.randrange(len(RUNS))
        shutil.copytree(self._root / str(self._run), case)
        for _ in range(noise.choice((1, 1, 1, 2, 3))):
            noise.choice((self._bytes, self._files, self._manifest, self._manifest, self._header, self._header))(
                case / STEP, noise
            )

    def _bytes(self, step: Path, noise: random.Random) -> None:
        file = noise.choice(sorted(path for path in step.iterdir() if path.is_file()) or [step / "manifest.json"])
        data = file.read_bytes() if file.exists() else b"x"
        file.write_bytes(damaged(data, noise, (self._root / "0" / STEP / "model.safetensors").read_bytes()))
        if file.name != "manifest.json" and noise.random() < 0.7:
            _sign(step)

    def _files(self, step: Path, noise: random.Random) -> None:
        files = sorted(step.iterdir())
        one, two = (noise.choice(files), noise.choice(files)) if files else (step / "a", step / "b")
        other = self._root / str(noise.randrange(len(RUNS))) / STEP
        match noise.randrange(6):
            case 0 if one.exists():
                one.unlink()
            case 1 if one.exists() and one != two:
                one.replace(two)
            case 2 if one.exists() and one != two:
                shutil.copy(one, two)
            case 3 if (other / one.name).exists():
                shutil.copy(other / one.name, one)
            case 4 if one.exists() and not (step.parent / "moved").exists():
                one.rename(step.parent / "moved")
                one.symlink_to(Path("..") / "moved")
            case 5:
                (step / noise.choice(("x", "last.json", "more.safetensors"))).write_bytes(noise.randbytes(9))
        if noise.random() < 0.7:
            _sign(step)

    def _manifest(self, step: Path, noise: random.Random) -> None:
        _sign(step, lambda content: _edited(content, noise), files=noise.random() < 0.5)

    def _header(self, step: Path, noise: random.Random) -> None:
        file = step / noise.choice(("model.safetensors", "optimizer.safetensors"))
        try:
            data = file.read_bytes()
            (length,) = struct.unpack("<Q", data[:8])
            content = json.loads(data[8 : 8 + length])
        except (OSError, ValueError, struct.error, RecursionError):
            return
        if isinstance(content, dict):
            _edited(content, noise)
        made = json.dumps(content).encode()
        length = noise.choice((len(made), len(made), len(made), len(made) + 1, 0, 2**40, 2**63))
        file.write_bytes(struct.pack("<Q", length) + made + data[8 + len(made) :])
        _sign(step)

    def read(self, case: Path) -> None:
        """Find the newest, go on from it, and take a step."""
        folder.pointed(case, "last")
        found, _ = format.newest(case)
        job = self._again[self._run]
        restore(job.state, job.plan, found)
        job.plan.write(job.state.optimizer, min(job.state.step, job.plan.total_steps - 1), job.state.live)
        for group in job.state.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        job.state.optimizer.step()


def _job(changes: dict[str, Any]) -> Job:
    return build(resolve(yaml.parse(yaml.dump({**BASE, "model": MODEL, **changes}), "fuzz.yaml")))


def _sign(step: Path, edit: Any = None, *, files: bool = True) -> None:
    """Give a manifest the digests that fit, after `edit`."""
    path = step / "manifest.json"
    content: Any = {}
    try:
        content = json.loads(path.read_bytes())
        content.pop("sha256", None)
        if edit is not None:
            edit(content)
        for name, entry in content["files"].items() if files else ():
            data = (step / name).read_bytes()
            entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        if edit is None or not isinstance(content, dict):
            return
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}))


def _edited(content: dict[str, Any], noise: random.Random) -> None:
    """Change one value, somewhere inside."""
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = noise.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and noise.random() < 0.75:
            place = place[key]
            continue
        match noise.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[noise.choice(("x", "../x", "a" * 300, key + "x"))] = place.pop(key)
            case _:
                place[key] = noise.choice(_ODD)
        return
