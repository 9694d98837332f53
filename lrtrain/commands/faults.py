"""Errors that are the machine's fault, told from bugs."""

from __future__ import annotations

import errno

from lrtrain.errors import EnvironmentFault, Problem, out_of_memory, quoted

# What the system says of a file's name, place or owner, or of a disk; any other OSError is a bug.
_FILE_FAULTS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EIO", "EMFILE", "ENFILE", "ENAMETOOLONG", "ELOOP")
}


def fault_of_the_machine(error: BaseException) -> tuple[Problem, int] | None:
    """What lrtrain cannot help, and the exit code: memory, files, a data worker that died, what torch.compile needs."""
    problem = _fault(error)
    typed = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    return None if problem is None else (problem, 2 if typed else EnvironmentFault.exit_code)


def _fault(error: BaseException) -> Problem | None:
    what = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if out_of_memory(error):
        hint = "lower batch_size, use accumulate, set cache: off, or take a smaller model"
        return Problem(f"out of memory: {what}"[:400], hint=hint)
    if "Resource temporarily unavailable" in what or "can't start new thread" in what:  # so says fork, and so Python
        hint = "allow more of them (ulimit -u, docker run --pids-limit), or use fewer `workers:`, or 0"
        return Problem("no more processes or threads are allowed here", hint=hint)
    if isinstance(error, FileNotFoundError) and "temporary directory" in what:  # torch asks for one when it is imported
        hint = "set TMPDIR to a folder that can be written and has room"
        return Problem("no folder for temporary files can be written", hint=hint)
    if isinstance(error, OSError) and error.errno in _FILE_FAULTS:
        place = None if error.filename is None else quoted(error.filename)
        return Problem(f"{error.strerror}"[:400], place, "check its name, and that you may use it")
    if "DataLoader" in what:
        from lrtrain.data.loader import worker_fault

        return worker_fault(error)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        hint = "on the CPU it needs a C++ compiler such as g++; or leave `compile: true` out"
        return Problem(f"torch.compile failed: {what}"[:400], "compile", hint)
    return None
