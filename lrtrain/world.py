"""Which of several processes this one is, as torchrun says in the environment."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from lrtrain.errors import DistributedError


@dataclass(frozen=True, slots=True)
class World:
    """A process among those that train one model together: `rank` of `size`, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    """How often torchrun has started the processes again."""
    launch: str = ""
    """Which torchrun, on this machine: the same after a restart, another one the next time."""
    local_size: int = 1
    """Processes on this machine."""
    parent: int = field(default_factory=os.getppid)
    """The process that began this one, which may be gone by the time that torch is imported."""

    @property
    def launched(self) -> bool:
        """Whether torchrun has started it."""
        return self.size > 1 or bool(self.launch)

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes and prints."""
        return self.rank == 0

    @property
    def beside(self) -> bool:
        """Whether it runs on the leading one's machine: torchrun numbers machine by machine."""
        return self.rank == self.local_rank


ALONE = World()


def from_environment() -> World:
    """The place that torchrun gave this process; without torchrun it is alone.

    Raises:
        DistributedError: the variables contradict each other, or are no numbers.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # RANK alone is set by other launchers too
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    rank, size, local_rank, restarts = (_number(name) for name in names)
    local_size = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else 1
    world = World(rank, size, local_rank, restarts, _launch(), local_size)
    if not world.local_rank <= world.rank < world.size:
        raise DistributedError(
            f"of WORLD_SIZE={world.size} processes, this one has RANK={world.rank} and LOCAL_RANK={world.local_rank}: "
            "RANK must be below WORLD_SIZE, and LOCAL_RANK not above RANK",
            hint="torchrun sets all three; leave them to it",
        )
    return world


def _launch() -> str:
    # Launches may share a --rdzv-id. Each torchrun makes a folder of a new name for what its processes say, and in it
    # attempt_0/RANK/error.json; without that it is known by its process.
    names = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parts[-4:]
    named = len(names) == 4 and names[1].startswith("attempt_")
    return f"{socket.gethostname()} {names[0] if named else os.getppid()}"


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        found = f"is {text[:80]!r}" if name in os.environ else "is not set"
        raise DistributedError(
            f"{name} must be a whole number; it {found}", hint="torchrun sets it; start lrtrain with torchrun"
        )
    return int(text)
