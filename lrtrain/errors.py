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

import errno
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

# Longest line and most problems that are shown; who gives more has a machine write it.
MOST_CHARACTERS, MOST_PROBLEMS = 500, 50

# What the machine lacks where it cannot open or read a file, which says nothing of the file.
LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# What is said of a file system that has gone away: that of another machine, of a program that ended, or of a disk that
# was taken out. It says nothing of the file either. Not every system has all of them.
_AWAY = "ENOTCONN ESTALE ETIMEDOUT ESHUTDOWN ECONNABORTED EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENODEV EREMOTEIO"
GONE = tuple(getattr(errno, name) for name in _AWAY.split() if hasattr(errno, name))

# Neither says anything of a file that cannot be read.
BEYOND_FILES = (*LACKING, *GONE)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `what` states the requirement and the value, `hint` the fix."""

    what: str
    where: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        lines = ["error: " + "\n  ".join(map(_line, self.what.split("\n")))]
        for label, text in (("at  ", self.where), ("hint", self.hint)):
            if text:
                lines.append(f"  {label} " + "\n       ".join(map(_line, text.split("\n"))))
        return "\n".join(lines)


class LrtrainError(Exception):
    """A mistake or fault that the user can mend; `exit_code` is what the process ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str | Iterable[Problem], where: str | None = None, hint: str | None = None):
        self.problems = (Problem(what, where, hint),) if isinstance(what, str) else tuple(what)
        super().__init__(listed(self.problems))


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


class AtOnce(SystemExit):
    """A signal ends the process at once; any other SystemExit comes from code of the user's own."""


def listed(problems: Sequence[Problem]) -> str:
    """Problems one after the other, and how many more there are where they are too many to read."""
    shown, more = [str(problem) for problem in problems[:MOST_PROBLEMS]], len(problems) - MOST_PROBLEMS
    return "\n".join(shown + [f"error: and {more:,} problems more"] * (more > 0))


class Key(str):
    """The `where` of a problem that knows only the key of its section, such as skip_list or splits.train."""


@contextmanager
def about(where: str, key: Callable[[Key], str] | None = None) -> Iterator[None]:
    """Errors from inside that do not say where they belong are about the config's line `where`.

    Args:
        where: the line.
        key: the line of a key that an error names.
    """
    try:
        yield
    except LrtrainError as error:
        raise type(error)([_placed(problem, where, key) for problem in error.problems]) from error


def _placed(problem: Problem, where: str, key: Callable[[Key], str] | None) -> Problem:
    if isinstance(problem.where, Key) and key is not None:
        return replace(problem, where=key(problem.where))
    return replace(problem, where=problem.where or where)


def what_to_do(error: OSError, then: str = "`--resume`") -> str:
    """The fix for a file that could not be written, and what to do `then`."""
    fix = {
        **dict.fromkeys(GONE, "its file system has gone away: mount it again"),
        errno.ENOSPC: "make room",
        errno.EDQUOT: "make room, or have the quota raised",
        errno.EFBIG: "allow longer files (ulimit -f)",
        errno.ENOENT: "the folder was moved or removed meanwhile: put it back",
        errno.EISDIR: "a folder has its name: move that away",
        errno.EROFS: "allow writing to the disk, or mount it again",
    }.get(error.errno or 0, "look after the disk and its permissions")
    return f"{fix}, then {then}"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which torch says in a RuntimeError: a fault of the machine, whatever asked for it."""
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to map segment")
    return isinstance(error, MemoryError) or any(words in text for words in said)


def quoted(value: object) -> str:
    """`repr` of a value from outside; of a long one the beginning and the end, 80 characters together.

    >>> len(quoted("a" * 100))
    80
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:45]}...{text[-32:]}"


def _line(text: str) -> str:
    line = printable(text[: MOST_CHARACTERS + 1])
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 3] + "..."


def printable(text: str) -> str:
    r"""`text` without what could drive a terminal: control, format, line and surrogate characters are escaped.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else c.encode("unicode_escape").decode()
        for c in text
    )
