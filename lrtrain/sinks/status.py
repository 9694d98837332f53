"""status.json: how the run stands, for programs."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

from lrtrain.checkpoint.folder import pointed
from lrtrain.engine.events import Event, Finished, SaveDue, Stopped
from lrtrain.engine.state import TrainState
from lrtrain.sinks.lock import here
from lrtrain.sinks.run_dir import RunDir, identity
from lrtrain.writing import write_atomically


class Status:
    """Keeps status.json in step with the run."""

    def __init__(self, run: RunDir, state: TrainState, monitor: str):
        self._run, self._state, self._monitor = run, state, monitor
        self._begun = run.begun or datetime.now(UTC).isoformat()
        self.write("running")

    def __call__(self, event: Event) -> None:
        if isinstance(event, SaveDue):
            # What has failed in another process stays, where this one has the time to save.
            self.write(*self._written if self._written[0] == "failed" else ("running",))
        elif isinstance(event, Finished):
            self.write("done", 0)
        elif isinstance(event, Stopped) and event.reason == "early_stop":
            self.write("done", 0, "stopped early: no improvement")

    def write(self, state: str, exit_code: int | None = None, message: str | None = None) -> None:
        """Write the file: `state` is running, done, stopped or failed."""
        self._written = state, exit_code, message
        best = self._state.best
        last = pointed(self._run.checkpoints, "last")
        status: dict[str, Any] = {
            "state": state,
            "exit_code": exit_code,
            "step": self._state.step,
            "best": None if best.value is None else {"monitor": self._monitor, "value": best.value, "step": best.step},
            "last_checkpoint": last.name if last is not None else None,
            "message": message,
            "begun": self._begun,
            "path": os.path.realpath(self._run.path),
            "inode": identity(self._run.path),
            "checkpoints_inode": identity(self._run.checkpoints),
            **here(),
        }
        write_atomically(self._run.status, json.dumps(status, indent=1) + "\n")
