"""Write, verify and read checkpoint directories.

    checkpoints/
      step-00000040/  manifest.json  model.safetensors  optimizer.safetensors  ...
      last.json  best.json                         # {"checkpoint": "step-00000040"}

A checkpoint is written beside its place and renamed into it, the manifest last, everything fsynced: a directory that
has the name `step-*` is whole, or was damaged later, which `verify` finds by size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from lrtrain.errors import CheckpointError, EnvironmentFault

VERSION = 1
_FILE = re.compile(r"[a-z0-9_-]{1,64}\.safetensors")
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: `manifest` is its JSON, without the file table."""

    path: Path
    step: int
    manifest: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def tensors(self, part: str) -> dict[str, torch.Tensor]:
        """Read one part, such as `model`, after checking its bytes against the manifest.

        Raises:
            CheckpointError: the part is missing, or not what was written.
        """
        name = f"{part}.safetensors"
        if name not in self.files:
            raise CheckpointError(f"the checkpoint has no {name}", str(self.path))
        data = _checked(self.path / name, self.files[name])
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{name} is not safetensors: {error}", str(self.path)) from None


def write(root: Path, step: int, parts: Mapping[str, Mapping[str, torch.Tensor]], manifest: Mapping[str, Any]) -> Path:
    """Commit a checkpoint.

    Args:
        root: the run's `checkpoints` folder.
        step: optimizer steps taken.
        parts: tensors by part, then by name.
        manifest: everything else, JSON.

    Returns:
        The directory, `root/step-<step>`. One that is there already and whole is left as it is.

    Raises:
        EnvironmentFault: the disk is full or refuses; what was there before is untouched.
    """
    final = root / f"step-{step:08d}"
    temporary = root / f".tmp-{step:08d}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {}
        for part, tensors in parts.items():
            data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
            _write(temporary / f"{part}.safetensors", data)
            files[f"{part}.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        content = {"version": VERSION, "step": step, **manifest, "files": files}
        text = json.dumps({**content, "sha256": _digest(content)}, indent=1, allow_nan=False)
        _write(temporary / "manifest.json", text.encode())
        _sync(temporary)
        if final.exists():
            final.rename(root / f".old-{step:08d}-{os.getpid()}")
        temporary.rename(final)
        _sync(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise EnvironmentFault(
            f"the checkpoint of step {step} could not be written: {error.strerror}",
            str(final),
            "earlier checkpoints are untouched; make room, then `--resume`",
        ) from error
    for old in root.glob(".old-*"):
        shutil.rmtree(old, ignore_errors=True)
    return final


def point(root: Path, name: str, checkpoint: Path) -> None:
    """Make `root/<name>.json` name a checkpoint, in one step."""
    temporary = root / f".tmp-{name}.json"
    try:
        _write(temporary, json.dumps({"checkpoint": checkpoint.name}).encode())
        temporary.rename(root / f"{name}.json")
        _sync(root)
    except OSError as error:
        raise EnvironmentFault(f"{name}.json could not be written: {error.strerror}", str(root)) from error


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that last.json and best.json name."""
    named = {pointed(root, name) for name in ("last", "best")}
    for path in _steps(root)[:-keep]:
        if path not in named:
            shutil.rmtree(path, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what an interrupted `write` left."""
    for left in (*root.glob(".tmp-*"), *root.glob(".old-*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def pointed(root: Path, name: str) -> Path | None:
    """The checkpoint that `<name>.json` names."""
    try:
        target = json.loads((root / f"{name}.json").read_text())["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return root / target if isinstance(target, str) and _STEP.fullmatch(target) else None


def newest(root: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole, and a line about each newer one that is not.

    Raises:
        CheckpointError: there is none.
    """
    damaged: list[str] = []
    for path in reversed(_steps(root)):
        try:
            return verify(path), damaged
        except CheckpointError as error:
            damaged.append(f"{path.name}: {error.problems[0].what}")
    if damaged:
        raise CheckpointError("every checkpoint is damaged: " + "; ".join(damaged), str(root))
    raise CheckpointError("there is no checkpoint to go on from", str(root))


def verify(path: Path) -> Checkpoint:
    """Open a checkpoint and hold every file against its size and SHA-256."""
    checkpoint = open_checkpoint(path)
    for name, entry in checkpoint.files.items():
        _checked(path / name, entry)
    return checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest; its tensors are read and checked when asked for.

    Raises:
        CheckpointError: not a checkpoint, or of a newer format.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
            raise CheckpointError("manifest.json is damaged: its SHA-256 is not its own", str(path))
        version, step, files = manifest.pop("version"), manifest.pop("step"), manifest.pop("files")
    except FileNotFoundError:
        raise CheckpointError("not a checkpoint: it has no manifest.json", str(path)) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"manifest.json cannot be read: {error}", str(path)) from None
    if version != VERSION:
        raise CheckpointError(f"the checkpoint has format {version!r}; this lrtrain reads {VERSION}", str(path))
    if (
        not isinstance(files, dict)
        or not all(_FILE.fullmatch(name) for name in files)
        or path.name != f"step-{step:08d}"
    ):
        raise CheckpointError("manifest.json does not list files as lrtrain writes them", str(path))
    return Checkpoint(path, step, manifest, files)


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's JSON, whatever its layout on disk."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _steps(root: Path) -> list[Path]:
    """The checkpoint directories, oldest first, by number."""
    found = {int(match[1]): path for path in root.glob("step-*") if (match := _STEP.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def _checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}", str(path)) from None
    if len(data) != entry.get("bytes"):
        raise CheckpointError(f"{path.name} has {len(data)} bytes, the manifest says {entry.get('bytes')}", str(path))
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise CheckpointError(f"{path.name} is damaged: its SHA-256 is not the manifest's", str(path))
    return data


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
