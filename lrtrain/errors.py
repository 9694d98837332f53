"""What can go wrong for a user.

    LrtrainError
    ├── ConfigError        2   usage or config
    ├── DataError          3   dataset or image
    ├── CheckpointError    4   corrupt, unsafe or incompatible checkpoint
    ├── EnvironmentFault   5   disk, memory, permission
    ├── Diverged           6   loss or gradients no longer finite
    ├── RunDirError        7   run directory locked or exists
    └── DistributedError   8   peer lost, time-out, rendezvous

Each carries one or more problems; a problem says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `what` states the requirement and the value, `hint` the fix."""

    what: str
    where: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        lines = ["error: " + "\n  ".join(map(printable, self.what.split("\n")))]
        for label, text in (("at  ", self.where), ("hint", self.hint)):
            if text:
                lines.append(f"  {label} " + "\n       ".join(map(printable, text.split("\n"))))
        return "\n".join(lines)


class LrtrainError(Exception):
    """A mistake or fault that the user can mend; `exit_code` is what the process ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str | Iterable[Problem], where: str | None = None, hint: str | None = None):
        self.problems = (Problem(what, where, hint),) if isinstance(what, str) else tuple(what)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(LrtrainError):
    """The command line or the YAML file asks for something that cannot be done."""

    exit_code = 2


class DataError(LrtrainError):
    """A dataset or an image is missing, unreadable or contradictory."""

    exit_code = 3


class CheckpointError(LrtrainError):
    """A checkpoint or weights file is missing, damaged, unsafe or for another model."""

    exit_code = 4


class EnvironmentFault(LrtrainError):
    """The machine cannot do it: disk, memory, permission, a missing package."""

    exit_code = 5


class Diverged(LrtrainError):
    """The loss stopped being a finite number."""

    exit_code = 6


class RunDirError(LrtrainError):
    """The run directory is in use, or holds another run."""

    exit_code = 7


class DistributedError(LrtrainError):
    """A peer process was lost or could not be reached."""

    exit_code = 8


@contextmanager
def about(where: str) -> Iterator[None]:
    """Errors from inside that do not say where they belong are about the config's line `where`."""
    try:
        yield
    except LrtrainError as error:
        raise type(error)([replace(problem, where=problem.where or where) for problem in error.problems]) from error


def printable(text: str) -> str:
    r"""`text` without what could drive a terminal: control, format and surrogate characters are escaped.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cf", "Cs") else c.encode("unicode_escape").decode() for c in text
    )
