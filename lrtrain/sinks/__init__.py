"""Who listens to training's events: each is a callable that takes one."""

from __future__ import annotations

from typing import Protocol

from lrtrain.engine.events import Event


class Sink(Protocol):
    """Anything that is called with each event, in order."""

    def __call__(self, event: Event) -> None: ...
