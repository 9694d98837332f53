"""Whether a run that went through something ended as one that did not, and whether it could go on all the time."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lrtrain.checkpoint import folder, format
from lrtrain.errors import CheckpointError

FILES = ("metrics.jsonl", "curve.csv", "config.yaml")


def differences(whole: Path, run: Path) -> list[str]:
    """How a run differs from the uninterrupted one: every byte that is promised to be the same."""
    found = [name for name in FILES if _promised(whole / name) != _promised(run / name)]
    found = [f"{name} differs{_first_line(whole / name, run / name)}" for name in found]
    for pointer in ("last", "best"):
        found += [f"{pointer}: {what}" for what in _pointed_differ(whole, run, pointer)]
    ours, theirs = (json.loads(_bytes(path / "status.json") or "{}") for path in (whole, run))
    for key in ("state", "exit_code", "step", "best", "last_checkpoint"):
        if ours.get(key) != theirs.get(key):
            found.append(f"status.json: {key} is {theirs.get(key)!r}, not {ours.get(key)!r}")
    left = [path.name for path in (run / "checkpoints").glob(".*") if path.name.startswith((".tmp-", ".old-"))]
    return found + [f"{name} was left in checkpoints/" for name in left]


def _pointed_differ(whole: Path, run: Path, pointer: str) -> list[str]:
    ours, theirs = (folder.pointed(path / "checkpoints", pointer) for path in (whole, run))
    if ours is None or theirs is None or ours.name != theirs.name:
        names = (path.name if path is not None else "nothing" for path in (theirs, ours))
        return ["is {}, not {}".format(*names)]
    try:
        one, other = format.verify(ours), format.verify(theirs)
    except CheckpointError as error:
        return [error.problems[0].what]
    keys = sorted(one.manifest.keys() | other.manifest.keys())
    found = [
        f"{key} in the manifest is {other.manifest.get(key)!r}, not {one.manifest.get(key)!r}"
        for key in keys
        if one.manifest.get(key) != other.manifest.get(key)
    ]
    if one.files.keys() != other.files.keys():
        found.append(f"its files are {sorted(other.files)}, not {sorted(one.files)}")
    else:
        found += [what for file in one.files for what in _tensors_differ(one, other, file.removesuffix(".safetensors"))]
    return found


def _tensors_differ(one: format.Checkpoint, other: format.Checkpoint, part: str) -> list[str]:
    ours, theirs = one.tensors(part), other.tensors(part)
    if ours.keys() != theirs.keys():
        return [f"{part} has other tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}"]
    names = [name for name in sorted(ours) if tensor_sha256(ours[name]) != tensor_sha256(theirs[name])]
    if not names:
        return []
    a, b = ours[names[0]].double(), theirs[names[0]].double()
    most = float((a - b).abs().max()) if a.shape == b.shape else float("nan")
    return [f"{len(names)} of {len(ours)} tensors of {part} differ, first {names[0]}, by up to {most:.3g}"]


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Of its type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _promised(path: Path) -> bytes:
    """A file without what may differ between a run and its continuation."""
    return re.sub(rb"(?m)^workers: .*$", b"", _bytes(path))


def _first_line(whole: Path, run: Path) -> str:
    """Where two files begin to differ."""
    ours, theirs = (_bytes(path).splitlines() for path in (whole, run))
    for i in range(max(len(ours), len(theirs))):
        a, b = (lines[i].decode(errors="replace") if i < len(lines) else "no line" for lines in (ours, theirs))
        if a != b:
            return f" from line {i + 1} on: {b[:160]}, not {a[:160]}"
    return ""


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint that is whole, or None."""
    try:
        return format.newest(run / "checkpoints")[0].step
    except CheckpointError:
        return None


def lr_hexes(path: Path) -> list[list[str]]:
    """The LRs of every update, recorded as they were used."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def planned_hexes(curve: Path) -> list[list[str]]:
    """The LRs of every step, from a run's curve.csv."""
    with curve.open() as file:
        return [[float(row[key]).hex() for key in row if key.startswith("lr.")] for row in csv.DictReader(file)]


def lr_differences(planned: Sequence[Sequence[str]], used: Sequence[Sequence[str]], start: int) -> list[str]:
    """Where the LR of an update is not, to the last bit, that of its step.

    Args:
        planned: of each step.
        used: of each update of one process.
        start: steps taken before that process began.
    """
    for i, lrs in enumerate(used):
        if start + i >= len(planned) or list(planned[start + i]) != list(lrs):
            wanted = ", ".join(planned[start + i]) if start + i < len(planned) else "none"
            return [f"the LR of step {start + i + 1} was {', '.join(lrs)}, not {wanted}"]
    return []


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """As it is on disk."""
    manifest: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text())
    return manifest
