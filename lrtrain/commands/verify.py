"""`lrtrain verify`: whether every checkpoint of a run is what was written."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from lrtrain.checkpoint import folder, format
from lrtrain.errors import CheckpointError, printable
from lrtrain.sinks.console import Screen
from lrtrain.sinks.jsonl import refuse_other_log
from lrtrain.sinks.run_dir import RunDir, refuse_lost_link, refuse_other_files

MOST_WHOLE = 50  # that are listed


def run(path: Path) -> None:
    """Hold each checkpoint's files, and the log up to it, against size and SHA-256; look where the pointers point.

    Raises:
        CheckpointError: not a run, no checkpoint, or one that is damaged.
    """
    run_dir, screen = RunDir(path), Screen()
    refuse_lost_link(run_dir)
    if not run_dir.checkpoints.is_dir():
        what = f"{str(path)!r} is no run directory: it has no checkpoints/"
        raise CheckpointError(what, hint="name one, such as runs/quickstart")
    odd: list[int] = []

    def fits_the_log(checkpoint: format.Checkpoint) -> None:
        try:
            refuse_other_log(run_dir.metrics, checkpoint)
        except CheckpointError:
            odd.append(checkpoint.step)
            raise

    found = format.verify_all(run_dir.checkpoints, fits_the_log)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("checkpoint", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    shown = set(list(found)[-MOST_WHOLE:])
    for name, (size, wrong) in found.items():
        if not wrong and name not in shown:
            continue
        names = " ".join(
            p for p in ("last", "best") if folder.pointed(run_dir.checkpoints, p) == run_dir.checkpoints / name
        )
        words = Text(f"damaged: {printable(wrong)}", style="red") if wrong else Text(f"whole  {names}".rstrip())
        table.add_row(name, f"{size / 1e6:,.1f}", words)
    if hidden := sum(not wrong for name, (_, wrong) in found.items() if name not in shown):
        screen.print(f"{hidden:,} older ones are whole")
    screen.print(table)
    damaged = [name for name, (_, wrong) in found.items() if wrong]
    lost = [
        f"{pointer}.json names {target.name}, which is not there"
        for pointer in ("last", "best")
        if (target := folder.pointed(run_dir.checkpoints, pointer)) is not None
        # A run that goes on meanwhile moves the pointer before it deletes.
        and not target.exists()
        and folder.pointed(run_dir.checkpoints, pointer) == target
    ]
    if not found:
        raise CheckpointError(f"{str(path)!r} has no checkpoint", hint="it ended before its first one")
    if damaged or lost:
        whole = [name for name in found if name not in damaged]
        kept = _kept(run_dir, whole, begins=bool(odd))
        what = f"{len(damaged)} of {len(found)} checkpoints are damaged: {', '.join(damaged)}" if damaged else ""
        raise CheckpointError("\n".join(filter(None, (what, *lost))), str(run_dir.checkpoints), kept)
    screen.print(f"\nall {len(found)} are whole" if len(found) > 1 else "\nit is whole")


def _kept(run_dir: RunDir, whole: list[str], begins: bool) -> str:
    """What can be done with the checkpoints that are whole, the way in which `fit --resume` chooses."""
    if not whole:
        return "none is whole"
    if whole == ["step-00000000"] and begins:
        return "no other fits the log, and a run never begins anew by itself: restore the run directory from a copy"
    goes_on = f"`lrtrain fit --resume --out {run_dir.typed}` goes on from {whole[-1]}"
    try:
        refuse_other_files(run_dir)
    except CheckpointError as error:
        first = error.problems[0]
        return f"{first.hint}: {first.what}; then {goes_on}"
    return goes_on
