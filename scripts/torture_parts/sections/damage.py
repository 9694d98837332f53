"""Checkpoints that were damaged, mixed up or taken away while nobody trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torture_parts.case import Case, numbered, spread
from torture_parts.compare import read_manifest
from torture_parts.lab import Lab, copied
from torture_parts.reference import STEPS
from torture_parts.sections.kills import RESUMED_AT
from torture_parts.trial import Trial

NEWEST = "step-00000030"
PARTS = ("manifest.json", "model.safetensors", "optimizer.safetensors", "ema.safetensors")


def damage(lab: Lab) -> list[Case]:
    """Of the newest checkpoint, of all, of the pointers and of the log; and what does not belong there."""
    named: list[tuple[str, Callable[[Trial], None]]] = [
        (f"{name} {words}", partial(_passed_over, name, do)) for name in PARTS for words, do in WAYS.items()
    ]
    named = spread(named, 3) if lab.quick else named
    named += [(f"manifest.json {words}", partial(_passed_over, "manifest.json", do)) for words, do in MANIFESTS.items()]
    named += [
        ("the newest checkpoint is an empty folder", partial(_passed_over, "", _emptied_folder)),
        ("every checkpoint is damaged", _all_damaged),
        ("last.json and best.json are gone or nonsense", _pointers),
        ("there are things that no run has made", _strangers),
        ("metrics.jsonl has half a line more", _log_longer),
        ("metrics.jsonl is shorter than the checkpoint says", _log_shorter),
        ("a finished run is resumed", _finished),
        ("an empty folder is resumed", _empty),
        ("NaN is no best value", _nan_is_not_best),
    ]
    return numbered("damage", named)


def _bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def _emptied_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


WAYS: dict[str, Callable[[Path], object]] = {
    "is cut in half": _cut,
    "is empty": lambda path: path.write_bytes(b""),
    "is all zeros": _zeros,
    "has one bit flipped": _bit,
    "is gone": lambda path: path.unlink(),
}
MANIFESTS: dict[str, Callable[[Path], object]] = {
    "is another JSON": lambda path: path.write_text("[1, NaN]"),
    "is of a later format": lambda path: path.write_text(json.dumps({**read_manifest(path.parent), "version": 99})),
}


def _passed_over(name: str, do: Callable[[Path], object], trial: Trial) -> None:
    """The one before is used, and the damaged one is named."""
    trial.continues(trial.lab.killed("base", RESUMED_AT), "base")
    do(trial.run / "checkpoints" / NEWEST / name)
    trial.finishes()
    trial.says(NEWEST)


def _all_damaged(trial: Trial) -> None:
    trial.continues(trial.lab.killed("base", RESUMED_AT), "base")
    for path in (trial.run / "checkpoints").glob("step-*/optimizer.safetensors"):
        _bit(path)
    before = (trial.run / "metrics.jsonl").read_bytes()
    trial.ends(trial.fit(resume=True), 4)
    trial.says("damaged", NEWEST)
    if (trial.run / "metrics.jsonl").read_bytes() != before:
        trial.problem("metrics.jsonl was changed though nothing could be resumed")


def _pointers(trial: Trial) -> None:
    trial.continues(trial.lab.killed("base", RESUMED_AT), "base")
    (trial.run / "checkpoints" / "last.json").write_text('{"checkpoint": "../../etc"}')
    (trial.run / "checkpoints" / "best.json").unlink()
    trial.finishes()


def _strangers(trial: Trial) -> None:
    trial.continues(trial.lab.killed("base", RESUMED_AT), "base")
    checkpoints = trial.run / "checkpoints"
    for name in (".tmp-00000030-1", "step-00000050", "step-x", "mine"):
        (checkpoints / name).mkdir()
    (checkpoints / "step-00000055").write_text("no folder")
    (checkpoints / ".tmp-00000030-1" / "model.safetensors").write_bytes(b"half")
    (checkpoints / ".tmp-last.json").write_text("{")
    trial.finishes()
    if not (checkpoints / "mine").is_dir():
        trial.problem("a folder that is not lrtrain's was deleted")


def _log_longer(trial: Trial) -> None:
    trial.continues(trial.lab.killed("base", RESUMED_AT), "base")
    with (trial.run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "tr')
    trial.finishes()


def _log_shorter(trial: Trial) -> None:
    trial.continues(trial.lab.killed("base", RESUMED_AT), "base")
    _cut(trial.run / "metrics.jsonl")
    trial.ends(trial.fit(resume=True), 4)
    trial.says("metrics.jsonl")


def _finished(trial: Trial) -> None:
    trial.of("base")
    copied(trial.lab.whole().path, trial.run)
    before = {path: path.stat().st_mtime_ns for path in trial.run.rglob("*") if path.is_file()}
    trial.finishes()
    if before != {path: path.stat().st_mtime_ns for path in trial.run.rglob("*") if path.is_file()}:
        trial.problem("files of a finished run were written again")


def _empty(trial: Trial) -> None:
    trial.of("base")
    trial.run.mkdir()
    trial.ends(trial.fit(resume=True), 4)


def _nan_is_not_best(trial: Trial) -> None:
    trial.of("NaN at first")
    trial.ends(trial.fit())
    best = json.loads((trial.run / "status.json").read_text())["best"] or {}
    if best.get("step") != STEPS or not 0 < (best.get("value") or 0) < 10:
        trial.problem(f"the best is {best}, and val_loss is NaN at step 20 and least at step {STEPS}")
