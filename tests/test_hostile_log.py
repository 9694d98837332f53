"""A metrics.jsonl that is not what the checkpoint says: refused, and never read for ever."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from lrtrain import foreign
from lrtrain.checkpoint import format
from lrtrain.checkpoint.manifest import MAX_ROLLBACKS
from lrtrain.engine.consistent import refuse_other_story
from lrtrain.engine.state import Rollback
from lrtrain.errors import CheckpointError
from lrtrain.sinks.jsonl import _opened_to_append, refuse_other_log, rows
from tests.hostile import Typed, assert_clear
from tests.test_engine import job
from tests.test_hostile_checkpoint import manifest_of, rewrite, trained, typed

__all__ = ["trained", "typed"]
RESUME = ("fit", "--resume", "--out", "run")
ROW = b'{"event": "train", "step": 9, "epoch": 0.1, "lr": {"default": 0.1}, "loss": 1.0}\n'


def logged(root: Path, step: int, log: Path, keep: int) -> format.Checkpoint:
    """A checkpoint from when so many bytes had been logged."""
    digest = hashlib.sha256(log.read_bytes()[:keep]).hexdigest()
    manifest = {"log_bytes": {log.name: keep}, "log_sha256": {log.name: digest}}
    return format.open_checkpoint(format.write(root, step, {"model": {}}, manifest))


@pytest.mark.parametrize(
    ("edited", "words"),
    [
        (lambda log: log[:-40], "metrics.jsonl is shorter than the checkpoint says"),
        (lambda log: ROW + log, "metrics.jsonl is not this run's: it was changed"),
        (lambda log: log.replace(b'"acc1": 0.', b'"acc1": 1.'), "it was changed: the SHA-256 of its first"),
        (None, "metrics.jsonl is not there"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--extend", "hold", "--set", "steps=8")], ids=["resume", "extend"])
def test_a_log_of_something_else_is_refused_and_the_run_left_as_it_is(
    typed: Typed, tmp_path: Path, edited: Callable[[bytes], bytes] | None, words: str, more: tuple[str, ...]
) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    if edited is None:
        log.unlink()
    else:
        log.write_bytes(edited(log.read_bytes()))
    before = {file: file.read_bytes() for file in (tmp_path / "run").glob("*.*") if file.name != "status.json"}
    assert_clear(typed(*RESUME, *more), 4, words)
    assert before == {file: file.read_bytes() for file in before}


def test_a_sparse_log_of_two_names_is_not_copied(tmp_path: Path) -> None:
    log = tmp_path / "timing.jsonl"
    with log.open("wb") as file:
        file.truncate(2**31)
    os.link(log, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"timing\.jsonl is not this run's: .* it is a sparse file"):
        _opened_to_append(log)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "timing.jsonl"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_log_that_is_no_file_is_damage(typed: Typed, tmp_path: Path, make: Callable[[Path], object]) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    log.unlink()
    make(log)
    ended = typed("verify", "run")
    assert_clear(ended, 4, "1 of 1 checkpoints are damaged")
    assert "metrics.jsonl cannot be read" in " ".join(ended.out.split())


def test_a_log_that_is_hardly_there_is_not_read_to_its_end(tmp_path: Path) -> None:
    (log := tmp_path / "metrics.jsonl").write_bytes(ROW)
    checkpoint = logged(tmp_path / "checkpoints", 9, log, len(ROW))
    os.truncate(log, size := 2**36)
    checkpoint.manifest["log_bytes"][log.name] = size
    with pytest.raises(CheckpointError, match="of its 68,719,476,736 bytes most were never written"):
        refuse_other_log(log, checkpoint)


@pytest.mark.parametrize(("most", "data", "holes", "refused"), [(2**19, 1, 3, True), (2**19, 3, 2, False), (2**30, 1, 3, False)])  # fmt: skip
def test_a_file_with_a_few_holes_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int, data: int, holes: int, refused: bool
) -> None:
    monkeypatch.setattr(foreign, "_MOST_HOLES", most)
    monkeypatch.setattr(foreign, "_holes", 0)
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * (data * 2**20))
        file.truncate((data + holes) * 2**20)
    with foreign.opened(tmp_path / "file") as file:
        file.seek(5)
        with pytest.raises(ValueError, match="it is a sparse file") if refused else nullcontext():
            foreign.refuse_holes(file)
        assert file.tell() == 5


def test_what_is_hardly_there_is_bounded_for_all_files_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(foreign, "_MOST_HOLES", 2**21)
    monkeypatch.setattr(foreign, "_holes", 0)
    for name, data, holes in (("half", 1, 1), ("empty", 0, 1)):
        with (tmp_path / name).open("wb") as file:
            file.write(b"x" * (data * 2**20))
            file.truncate((data + holes) * 2**20)
    with foreign.opened(tmp_path / "half") as half, foreign.opened(tmp_path / "empty") as empty:
        for _ in range(9):
            foreign.refuse_holes(half)  # as long as what is there
        foreign.refuse_holes(empty)
        foreign.refuse_holes(empty)
        with pytest.raises(ValueError, match="it is a sparse file"):
            foreign.refuse_holes(empty)
        foreign.refuse_holes(half)


def test_a_log_that_is_cut_after_an_earlier_checkpoint_costs_the_later_one_alone(typed: Typed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "c.yaml").write_text((tmp_path / "c.yaml").read_text().replace("steps: 4", "steps: 8"))
    assert (
        typed(
            "fit",
            "c.yaml",
            "--out",
            "longer",
            "--set",
            "checkpoint={every: 2step, keep: 9}",
            "--set",
            "log_every=1step",
        ).code
        == 0
    )
    run, checkpoints = tmp_path / "longer", tmp_path / "longer" / "checkpoints"
    log, model = run / "metrics.jsonl", checkpoints / "step-00000008" / "model.safetensors"
    whole = log.read_bytes(), model.read_bytes()
    earlier = sorted(checkpoints.glob("step-*"))[-2]
    log.write_bytes(whole[0][: manifest_of(earlier)["log_bytes"]["metrics.jsonl"] + 9])
    assert_clear(typed("verify", "longer"), 4, "1 of", f"goes on from {earlier.name}")
    curve = (run / "curve.csv").read_bytes()
    (run / "curve.csv").unlink()
    ended = typed("fit", "--resume", "--out", "longer")
    assert ended.code == 0, ended.err
    assert (run / "curve.csv").read_bytes() == curve
    assert "step-00000008 is damaged, the one before is used: metrics.jsonl is shorter" in " ".join(ended.out.split())
    assert whole == (log.read_bytes(), model.read_bytes())
    # What was logged from the beginning is not begun again.
    # `verify` promises no resume that would be refused.
    (earlier / "folder").mkdir()
    (checkpoints / "step-00000008" / "model.safetensors").write_bytes(b"")
    assert_clear(typed("verify", "longer"), 4, "'folder' is a folder; then", f"goes on from {earlier.name}")
    (earlier / "folder").rmdir()
    log.write_bytes(b"")
    assert_clear(typed("verify", "longer"), 4, "no other fits the log")
    assert_clear(
        typed("fit", "--resume", "--out", "longer"), 4, "every checkpoint is damaged", "metrics.jsonl is shorter"
    )


@pytest.mark.parametrize(
    ("edited", "words"),
    [
        (lambda log: log[:-9] + b" " * 9, "no row of it ends at byte"),
        (lambda log: bytes(len(log)), "metrics.jsonl is not this run's"),
        (
            lambda log: log.replace(b'"step": 4', b'"step": 7'),
            "is of step 7, after step 0, and the checkpoint of step 4",
        ),
        (lambda log: log.replace(b'"event": "eval"', b'"event": "evil"'), "is no row of it"),
    ],
)
def test_a_log_of_something_else_is_refused_though_the_manifest_says_that_it_is_this_one(
    typed: Typed, tmp_path: Path, edited: Callable[[bytes], bytes], words: str
) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_bytes(edited(log.read_bytes()))
    digest = hashlib.sha256(log.read_bytes()).hexdigest()
    rewrite(tmp_path / "run" / "checkpoints" / "step-00000004", log_sha256={"metrics.jsonl": digest})
    assert_clear(typed(*RESUME), 4, words)


@pytest.mark.parametrize(
    ("broken", "fits"),
    [(None, True), (3, False), (99_990, False), (50_000, True)],
    ids=["whole", "begin", "end", "middle"],
)
def test_of_a_long_log_beginning_and_end_are_looked_at(tmp_path: Path, broken: int | None, fits: bool) -> None:
    rows = [f'{{"event": "train", "step": {step}, "loss": 1.0}}' for step in range(100_000)]
    if broken is not None:
        rows[broken] = rows[broken].replace('"event"', '"evil"')
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(rows) + "\n" + "a row that was begun")
    keep = log.stat().st_size - len("a row that was begun")
    with nullcontext() if fits else pytest.raises(CheckpointError, match="is no row of it"):
        refuse_other_log(log, logged(tmp_path / "checkpoints", 100_000, log, keep))


def test_a_row_that_no_run_writes_is_not_read_into_memory(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"event": "eval", "step": 1, "x": [' + "[]," * 700_000 + "0]}\n")
    checkpoint = logged(tmp_path / "checkpoints", 1, log, log.stat().st_size)
    with pytest.raises(CheckpointError, match="what begins at byte 0 is no row of it"):
        next(rows(log, checkpoint, "eval"))


def test_a_json_text_of_more_parts_than_any_has_is_not_parsed() -> None:
    with pytest.raises(ValueError, match="more than 1,000,000 objects and lists"):
        foreign.json_object(b'{"a": [' + b"[]," * 1_000_000 + b"0]}")


def test_of_a_log_no_more_rows_are_read_than_a_run_can_have() -> None:
    made = job()
    endless = {"failed": 9, "step": 1, "factor": 0.5, "loss": None, "acc1": None}

    def endlessly(event: str, step: int | None) -> Iterator[Mapping[str, Any]]:
        return itertools.repeat(endless) if step is None else iter(())

    with pytest.raises(CheckpointError, match=r"rollbacks: 0 in the manifest, and metrics\.jsonl has more"):
        refuse_other_story(made.state, made.recipe, endlessly, Mock(path="step-00000001"))


@pytest.mark.parametrize("more", [0, 1])
def test_every_row_that_a_run_can_have_is_looked_at(more: int) -> None:
    """The oldest of its evaluations, and as many times that it went back as it may."""
    made = job()
    made.state.step = 9
    made.state.rollbacks = [Rollback(failed=5, to=4, factor=0.5)] * MAX_ROLLBACKS
    back = [{"failed": 5, "step": 4, "factor": 0.5}] * (MAX_ROLLBACKS + more)
    evaluations = [{"loss": None, "acc1": None}] * 8 + [{"loss": 1.0, "acc1": 0.5}] * (1 - more)
    log = {"eval": evaluations, "rollback": back}
    wanted = "rollbacks: 3 in the manifest" if more else "best: there is none in the manifest"
    with pytest.raises(CheckpointError, match=wanted):
        refuse_other_story(
            made.state, made.recipe, lambda event, step: iter(log[event] if step is None else ()), Mock(path="x")
        )
