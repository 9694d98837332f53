"""What is kept when a run ends with an error that is not its own fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from lrtrain.checkpoint import folder
from lrtrain.checkpoint.format import open_checkpoint
from lrtrain.errors import GONE, CheckpointError, DataError, DistributedError, EnvironmentFault, LrtrainError
from lrtrain.sinks.jsonl import refuse_other_log
from lrtrain.sinks.run_dir import RunDir

E = TypeVar("E", bound=LrtrainError)


@contextmanager
def naming_kept(run_dir: RunDir, again: str) -> Iterator[None]:
    """Errors from inside that can be mended say which checkpoint the run goes on from, by the command `again`."""
    try:
        yield
    except (DataError, DistributedError, EnvironmentFault) as error:
        raise with_kept(error, run_dir, again) from error


def with_kept(error: E, run_dir: RunDir, again: str) -> E:
    """The error, its hint naming the run's last checkpoint where there is one that can be seen."""
    last = folder.pointed(run_dir.checkpoints, "last")
    if last is None and not (isinstance(error.__cause__, OSError) and error.__cause__.errno in GONE):
        return error
    if last is not None:
        try:
            refuse_other_log(run_dir.metrics, open_checkpoint(last))
        except CheckpointError:  # then nothing goes on from it
            return error
        except EnvironmentFault:
            pass
    saved = "what was saved there" if last is None else last.name
    kept = f"{saved} is kept: `{again}` goes on from it"
    if isinstance(error, DataError):
        kept += ", as long as names and sizes of the images are those that the run began with; else begin a new run"
    first, *rest = error.problems
    hint = kept if first.hint is None else f"{first.hint}\n{kept}"
    return type(error)([replace(first, hint=hint), *rest])
