"""Negative controls: without any one piece of its state a run must be refused, or end otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from torture_parts.case import Case, numbered, spread
from torture_parts.compare import read_manifest
from torture_parts.lab import Lab
from torture_parts.trial import Trial

KILLED_AT, NEWEST = 33, "step-00000030"
NESTED = ("best", "early", "optimizer", "scaler", "plateau", "log_bytes", "log_sha256")
# Which run shows that a key matters: one whose state has it.
SHOWN_BY = {"scaler": "fp16", "early": "early stop"}


def controls(lab: Lab) -> list[Case]:
    """Each key of the manifest, and each tensor of each part, taken out of a checkpoint that is otherwise whole."""
    checkpoint = _checkpoint(lab, "plateau")
    keys = list(_keys(read_manifest(checkpoint)))
    early = [key for key in _keys(read_manifest(_checkpoint(lab, "early stop"))) if key[0] == "early"]
    scaler = [key for key in _keys(read_manifest(_checkpoint(lab, "fp16"))) if key[0] == "scaler"]
    keys = [key for key in keys if key[0] not in SHOWN_BY] + early + scaler
    tensors = [
        (path.stem, name) for path in sorted(checkpoint.glob("*.safetensors")) for name in sorted(load_file(path))
    ]
    if lab.quick:
        keys, tensors = spread(keys, 8), spread(tensors, 4)
    named: list[tuple[str, Callable[[Trial], None]]] = [("nothing is taken out", partial(_harmless, "plateau"))]
    for key in keys:
        named.append((f"without {'.'.join(key)} in the manifest", partial(_without_key, key)))
    for part, name in tensors:
        named.append((f"without {name} in {part}", partial(_without_tensor, part, name)))
    return numbered("controls", named)


def _checkpoint(lab: Lab, variant: str) -> Path:
    return lab.killed(variant, KILLED_AT) / "run" / "checkpoints" / NEWEST


def _keys(manifest: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in manifest.items():
        yield (key,)
        if key in NESTED and isinstance(value, dict):
            yield from ((key, inner) for inner in value)


def sealed(checkpoint: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the digest that it must have."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps({**content, "sha256": digest}, indent=1))


def _harmless(variant: str, trial: Trial) -> None:
    """Sealed again as it was, it must do: what the other cases show is due to what they take out."""
    trial.continues(trial.lab.killed(variant, KILLED_AT), variant)
    checkpoint = trial.run / "checkpoints" / NEWEST
    sealed(checkpoint, read_manifest(checkpoint))
    trial.finishes()


def _without_key(key: tuple[str, ...], trial: Trial) -> None:
    variant = SHOWN_BY.get(key[0], "plateau")
    trial.continues(trial.lab.killed(variant, KILLED_AT), variant)
    checkpoint = trial.run / "checkpoints" / NEWEST
    manifest = read_manifest(checkpoint)
    section = manifest
    for name in key[:-1]:
        section = section[name]
    del section[key[-1]]
    if key == ("sha256",):
        (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=1))
    else:
        sealed(checkpoint, manifest)
    _must_be_noticed(trial)


def _without_tensor(part: str, name: str, trial: Trial) -> None:
    trial.continues(trial.lab.killed("plateau", KILLED_AT), "plateau")
    checkpoint = trial.run / "checkpoints" / NEWEST
    path = checkpoint / f"{part}.safetensors"
    tensors = load_file(path)
    del tensors[name]
    data = save(tensors)
    path.write_bytes(data)
    manifest = read_manifest(checkpoint)
    manifest["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sealed(checkpoint, manifest)
    _must_be_noticed(trial)


def _must_be_noticed(trial: Trial) -> None:
    trial.found.counts["negative controls"] += 1
    answer = trial.fit(resume=True)
    trial.found.problems.clear()  # that the LR is another one is a way to be noticed
    flat = " ".join(trial.said.split())
    if answer.code == 4:
        trial.found.counts["of these, refused"] += 1
    elif answer.code != 0:
        trial.ends(answer, 4)
    elif "damaged" in flat and NEWEST in flat:
        trial.found.counts["of these, passed over and named"] += 1
    elif trial.differences():
        trial.found.counts["of these, seen by the comparison"] += 1
    else:
        trial.problem("it was resumed as if nothing were missing, and ended in the same bytes")
