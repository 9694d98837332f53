"""manifest.json, which may have been written by anybody: its digest is its own, and every field has its type and range.

The digest finds damage, not intent: who writes a manifest can write its digest too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrtrain.config.yaml import beyond_bounds
from lrtrain.errors import BEYOND_FILES, GONE, CheckpointError, EnvironmentFault, quoted, what_to_do
from lrtrain.foreign import json_object, read_bytes

VERSION = 1
MAX_BYTES = 8_000_000
FILE = re.compile(r"(model|optimizer|ema)\.safetensors")
MAX_ROLLBACKS = 3
COPY = "restore the checkpoint from a copy, or remove it: then the one before it is used"

Count = Annotated[int, Field(ge=0, le=10**15)]
Text = Annotated[str, Field(max_length=10_000)]
Whole = Annotated[int, Field(ge=-(10**15), le=10**15)]
Scalar = bool | Whole | float | Text | None


# What says nothing of a file: it may be whole.
NO_DAMAGE = (errno.EACCES, errno.EPERM, *BEYOND_FILES)


def unreadable(error: OSError, path: Path) -> EnvironmentFault:
    """The error for a checkpoint that this process may or can not read now."""
    hint = what_to_do(error, "try again") if error.errno in GONE else "allow reading it, and try again"
    return EnvironmentFault(f"cannot read: {error.strerror}", str(path), hint)


class Manifest(dict[str, Any]):
    """A manifest's fields; asking for one that is missing is an error of the checkpoint."""

    def __init__(self, fields: Mapping[str, Any], path: Path):
        super().__init__(fields)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"the manifest lacks {key}", str(self._path), COPY)


class OtherFormat(CheckpointError):
    """A newer lrtrain wrote it."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _File(_Part):
    bytes: Count
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Best(_Part):
    value: float | None
    step: Count
    stale: Count


class _Rollback(_Part):
    failed: Count
    to: Count
    factor: float = Field(gt=0, le=1)


class _LogBytes(_Part):
    metrics: Count = Field(alias="metrics.jsonl")


class _LogDigest(_Part):
    metrics: str = Field(alias="metrics.jsonl", pattern="^[0-9a-f]{64}$")


class _Images(_Part):
    images: Count
    sha256: str = Field(max_length=64)


class _Origin(_Part):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar]

    threads: int = Field(ge=1, le=100_000)
    processes: int = Field(ge=1, le=100_000)


class _Fields(_Part):
    """Everything that a manifest holds; who needs a field finds out whether it is there."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar]

    version: int
    step: Count
    files: dict[str, _File]
    planned: bool = True
    pending: bool = False
    best: _Best = _Best(value=None, step=0, stale=0)
    early: _Best = best
    rollbacks: list[_Rollback] = Field([], max_length=MAX_ROLLBACKS)
    loss_sums: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.0] * 3
    loss_images: Annotated[list[Count], Field(min_length=3, max_length=3)] = [0] * 3
    optimizer: dict[str, Scalar] = {}
    optimizer_parameters: Count = 0
    ema_updates: Count | None = None
    scaler: dict[str, Annotated[float, Field(ge=0)]] | None = None
    plateau: dict[str, Whole | float | Text] | None = None
    log_bytes: _LogBytes = _LogBytes.model_validate({"metrics.jsonl": 0})
    log_sha256: _LogDigest = _LogDigest.model_validate({"metrics.jsonl": "0" * 64})
    classes: list[Text] = []
    channels: int = Field(1, ge=1, le=1_000)
    seed: int = Field(0, ge=0, lt=2**63)
    total_steps: int = Field(1, ge=1, le=10**9)
    steps_per_epoch: int = Field(1, ge=1, le=10**9)
    origin: _Origin = _Origin(threads=1, processes=1)
    config: dict[str, Any] = {}
    dataset: dict[str, dict[str, _Images]] = {}
    written_by: dict[str, Text] = {}
    exact: bool = True


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint directory.

    Raises:
        CheckpointError: there is none, it is damaged, or not what lrtrain writes.
        EnvironmentFault: it may or can not be read now.
    """
    if os.path.islink(path):
        raise CheckpointError(
            f"a checkpoint is no symbolic link, and {quoted(path.name)} is one", str(path), "put the directory there"
        )
    try:
        manifest = json_object(read_bytes(path / "manifest.json", MAX_BYTES))
    except FileNotFoundError:
        raise CheckpointError("not a checkpoint: it has no manifest.json", str(path), COPY) from None
    except OSError as error:
        if error.errno in NO_DAMAGE:
            raise unreadable(error, path / "manifest.json") from error
        raise CheckpointError(f"manifest.json cannot be read: {error.strerror}", str(path), COPY) from None
    except ValueError as error:
        raise CheckpointError(f"manifest.json cannot be read: {error}", str(path), COPY) from None
    said = manifest.pop("sha256", None)
    try:
        own = digest(manifest)
    except RecursionError:
        raise CheckpointError("manifest.json cannot be read: it is nested too deep", str(path), COPY) from None
    if said != own:
        raise CheckpointError("manifest.json is damaged: its SHA-256 is not its own", str(path), COPY)
    if manifest.get("version") != VERSION:
        what = f"the checkpoint has format {quoted(manifest.get('version'))}; this lrtrain reads {VERSION}"
        newer = isinstance(manifest.get("version"), int) and manifest["version"] > VERSION
        hint = "take the lrtrain that wrote it; its manifest.json names the version"
        raise (OtherFormat if newer else CheckpointError)(what, str(path), hint)
    _refuse_other_fields(manifest, path)
    return Manifest(manifest, path)


def _refuse_other_fields(manifest: dict[str, Any], path: Path) -> None:
    try:
        fields = _Fields.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = f"manifest.json is not what lrtrain writes: {place:.120}: {first['msg']}; got {quoted(first['input'])}"
        raise CheckpointError(what, str(path), COPY) from None
    step, bests = fields.step, (fields.best, fields.early)
    names = [name for name in fields.files if not FILE.fullmatch(name)]
    beyond = beyond_bounds(fields.config)
    last = fields.rollbacks[-1].to if fields.rollbacks else 0
    wrong = {
        f"files cannot have the name {quoted(names[0] if names else '')}": bool(names),
        f"step {step} lies in {quoted(path.name)}": path.name != f"step-{step:08d}",
        f"best.step is after step {step}": any(best.step > step for best in bests),
        f"best.stale counts more evaluations than {step} steps": any(best.stale > step for best in bests),
        f"training went back to step {last}, after step {step}": last > step,
        "training can only go back, and from a step of the run": any(
            not back.to < back.failed <= fields.total_steps for back in fields.rollbacks
        ),
        f"step {step} is after the last, {fields.total_steps}": "total_steps" in manifest and step > fields.total_steps,
        "ema_updates: it belongs to averaged weights": ("ema.safetensors" in fields.files)
        != (fields.ema_updates is not None),
        "planned: every run saves before its first step": not fields.planned and step == 0,
        "pending: nothing can be pending before the first step": fields.pending and step == 0,
        f"config: {beyond}": beyond is not None,
    }
    if any(wrong.values()):
        why = next(why for why, so in wrong.items() if so)
        raise CheckpointError(f"manifest.json is not what lrtrain writes: {why}", str(path), COPY)


def refuse_unreadable(content: Mapping[str, Any], text: bytes, path: Path) -> None:
    """Refuse to write, under the name of a checkpoint, what `read_manifest` would refuse.

    Args:
        content: the fields.
        text: the file.
        path: the checkpoint's place.

    Raises:
        CheckpointError: says what cannot be read again.
    """
    if len(text) > MAX_BYTES:
        what = f"the checkpoint's manifest would have {len(text):,} bytes, and {MAX_BYTES:,} are the most"
        raise CheckpointError(what, str(path), "take fewer classes, or shorter names")
    _refuse_other_fields(dict(content), path)


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's JSON, whatever its layout on disk."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
