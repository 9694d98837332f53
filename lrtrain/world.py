"""Which of several processes this one is, as torchrun says in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """A process among those that train one model together: `rank` of `size`, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    """How often torchrun has started the processes again."""

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes and prints."""
        return self.rank == 0


ALONE = World()


def from_environment() -> World:
    """The place that torchrun gave this process; without torchrun it is alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # RANK alone is set by other launchers too
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    return World(*(int(os.environ[name]) for name in names))
