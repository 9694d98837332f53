"""Errors that are the machine's fault, or that of code of the user's own, told from bugs."""

from __future__ import annotations

import errno
import os
import traceback

import lrtrain
from lrtrain import lookup
from lrtrain.errors import GONE, ConfigError, EnvironmentFault, Problem, out_of_memory, quoted, what_to_do

_OURS = os.path.dirname(os.path.abspath(lrtrain.__file__)) + os.sep
_PYTHONS = os.path.dirname(os.path.abspath(os.__file__)) + os.sep

# What the system says of a file's name, place or owner, or of a disk; any other OSError is a bug.
_FILE_FAULTS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EIO", "EBUSY", "ENAMETOOLONG", "ELOOP")
}


def no_bug(error: BaseException) -> tuple[Problem, int] | None:
    """What lrtrain cannot help, and the exit code.

    It is memory, files, a data worker that died, what torch.compile needs, or code that the config names.
    """
    problem = _fault(error) or _of_an_import(error)
    if problem is None:
        problem = of_the_users(error)
        return None if problem is None else (problem, ConfigError.exit_code)
    typed = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    return problem, ConfigError.exit_code if typed else EnvironmentFault.exit_code


def of_the_users(error: BaseException) -> Problem | None:
    """What code raised that an import path names, or that is not installed, be it in a library that it calls."""
    if isinstance(error.__cause__, StopIteration):  # which Python turns into a RuntimeError where a generator calls it
        error = error.__cause__
    own = [frame for frame in _foreign_frames(error) if lookup.came_by_path(frame.filename) or _loose(frame.filename)]
    if not own:
        return None
    what = f"code of your own fails: {type(error).__name__}: {error}"
    where = f"{quoted(own[-1].filename)}:{own[-1].lineno}  {own[-1].name}"
    return Problem(what[:600], where, "mend it; `--debug` shows the whole traceback")


def _loose(file: str) -> bool:
    """Whether a source file is no part of Python, nor of a package that was installed."""
    return not file.startswith(("<", _PYTHONS)) and "-packages" not in file


def _of_an_import(error: BaseException) -> Problem | None:
    """What an installed package raised as it was imported, such as torch, which reads variables then."""
    first = next(iter(_foreign_frames(error)), None)
    if first is None or first.name != "<module>" or of_the_users(error) is not None:
        return None
    what = f"a package cannot be imported: {type(error).__name__}: {str(error).strip()}".partition("\n")[0]
    return Problem(what[:600], hint="is it whole, and a variable such as TORCH_LOGS right? `--debug` shows where it is")


def _foreign_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """What was called, from lrtrain's last function on, where that raised the error."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[max((i + 1 for i, frame in enumerate(frames) if frame.filename.startswith(_OURS)), default=0) :]


def _fault(error: BaseException) -> Problem | None:
    what = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if out_of_memory(error):
        hint = "lower batch_size, use accumulate, set cache: off, or take a smaller model"
        if "map segment" in what:  # nothing of lrtrain's, but the loader of shared libraries
            hint = "torch's own libraries need more: allow it (ulimit -v), or take a machine with more"
        return Problem(f"out of memory: {what}"[:400], hint=hint)
    if "Resource temporarily unavailable" in what or "can't start new thread" in what:  # so says fork, and so Python
        hint = "allow more of them (ulimit -u, docker run --pids-limit), or use fewer `workers:`, or 0"
        return Problem("no more processes or threads are allowed here", hint=hint)
    if "Too many open files" in str(error):  # in a worker's traceback, too
        return Problem("too many files are open", hint="allow more (ulimit -n 4096), or use fewer `workers:`, or 0")
    if isinstance(error, FileNotFoundError) and "temporary directory" in what:  # torch asks for one when it is imported
        hint = "set TMPDIR to a folder that can be written and has room"
        return Problem("no folder for temporary files can be written", hint=hint)
    if isinstance(error, OSError) and error.errno in GONE and (error.filename or of_the_users(error) is None):
        # Without a name it may be a socket that code of the user's own opened.
        place = None if error.filename is None else quoted(error.filename)
        return Problem(f"{error.strerror}"[:400], place, what_to_do(error, "try again"))
    if isinstance(error, OSError) and error.errno is None and any(os.strerror(one) in str(error) for one in GONE):
        said = str(error).splitlines()[-1].partition("] ")[2]  # the end of a data worker's traceback
        return Problem(said[:400], hint=what_to_do(OSError(GONE[0], ""), "try again"))
    if isinstance(error, OSError) and error.errno in _FILE_FAULTS:
        place = None if error.filename is None else quoted(error.filename)
        return Problem(f"{error.strerror}"[:400], place, "check its name, and that you may use it")
    if "DataLoader" in what:
        from lrtrain.data.workers import worker_fault

        return worker_fault(error)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        hint = "on the CPU it needs a C++ compiler such as g++; or leave `compile: true` out"
        return Problem(f"torch.compile failed: {what}"[:400], "compile", hint)
    return None
