"""Saves the state when it is due, then moves the pointers, then deletes what is no longer kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrtrain.checkpoint import folder, format
from lrtrain.engine.events import Event, SaveDue
from lrtrain.engine.state import TrainState, snapshot
from lrtrain.sinks import Sink


class Checkpoints:
    """Writes `root/step-*`, `last.json`, `best.json`.

    Args:
        root: the run's checkpoints folder.
        state: is read when an event says that it is consistent; as it is now it is saved already, but for step 0.
        keep: newest checkpoints that stay, besides the best.
        facts: what the manifest says besides the state: classes, versions, threads.
        log: what the manifest says of metrics.jsonl at this moment.
        unplanned: checkpoints that are there because the run was interrupted; the next one takes their place.
        ours: asked before each change but the first; refuses where the folder is another one by now.
    """

    def __init__(
        self,
        root: Path,
        state: TrainState,
        keep: int,
        facts: Mapping[str, Any],
        log: Callable[[], Mapping[str, Any]],
        unplanned: Iterable[Path] = (),
        ours: Sequence[Sink] = (),
    ):
        self.root, self._state, self._keep = root, state, keep
        self._unplanned = set(unplanned)
        self._facts, self._log = facts, log
        self._saved = state.step
        self._ours = ours

    def __call__(self, event: Event) -> None:
        if not isinstance(event, SaveDue):
            return
        if not event.planned and event.step == self._saved:
            return  # there it is, and what the config plans stays known as planned
        parts, manifest = snapshot(self._state)
        manifest = {**manifest, "planned": event.planned, **self._log(), **self._facts}
        path = format.write(self.root, event.step, parts, manifest)
        (self._unplanned.discard if event.planned else self._unplanned.add)(path)
        for name in ("last", "best") if event.best else ("last",):
            self._refuse_lost(event)
            folder.point(self.root, name, path)
        self._refuse_lost(event)
        folder.prune(self.root, self._keep, self._unplanned)
        self._saved = event.step

    def _refuse_lost(self, event: Event) -> None:
        for ours in self._ours:
            ours(event)


def point_again(root: Path, checkpoint: format.Checkpoint) -> str | None:
    """Move the pointers to where they belong after this checkpoint: a kill right after its commit has left them behind.

    Args:
        root: the run's checkpoints folder.
        checkpoint: the one that the run goes on from.

    Returns:
        The name of the best so far, where it is gone.
    """
    best = checkpoint.manifest["best"]
    of_best = None if best["value"] is None else root / f"step-{best['step']:08d}"
    for name, path in {"last": checkpoint.path, "best": of_best}.items():
        if path is None or not path.exists():
            folder.point_nowhere(root, name)
        elif folder.pointed(root, name) != path:
            folder.point(root, name, path)
    return None if of_best is None or of_best.exists() else of_best.name
