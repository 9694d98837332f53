"""How a command ends: errors become a message and an exit code here and nowhere else."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn, ParamSpec

from lrtrain import __version__
from lrtrain.commands.faults import no_bug, of_the_users
from lrtrain.errors import DistributedError, LrtrainError, Problem, listed, printable
from lrtrain.world import from_environment

P = ParamSpec("P")


def ending(function: Callable[P, int | None]) -> Callable[P, None]:
    """The command that ends the process with the code of `function`, or of its error, which it prints."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        code = 1
        try:
            code = function(*args, **kwargs) or 0
        except LrtrainError as error:
            if kwargs.get("debug"):
                complain(traceback.format_exc())
            code = error.exit_code
            _report(error.problems, code)
        except KeyboardInterrupt:
            complain("interrupted")
            code = 130
        except BaseException as error:  # own code may raise any
            if isinstance(error, SystemExit) and not of_the_users(error):
                raise
            if kwargs.get("debug"):
                complain(traceback.format_exc())
            fault, code = no_bug(error) or (_crash(error), 1)
            _report([fault], code)
        _forget_compile_times()
        raise SystemExit(code)

    return guarded


def _forget_compile_times() -> None:
    """What torch does with them at the exit looks for a package in the working folder, whose disk may be gone."""
    utils = sys.modules.get("torch._dynamo.utils")
    if (dump := getattr(utils, "dump_compile_times", None)) is not None:
        atexit.unregister(dump)


def leave(code: int) -> NoReturn:
    """End a process of several: what Python does after its exit functions, a thread of gloo's may not live to see.

    One that lets go of a tensor then is ended in the midst of C++, which aborts the process: -6 in place of its code.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def tell(text: str) -> None:
    """Print to stdout, whatever has become of it."""
    try:
        print(printable(text), flush=True)  # noqa: T201
    except (OSError, ValueError):
        return


def complain(text: str) -> None:
    """Print to stderr, whatever has become of it."""
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
    except (OSError, ValueError):
        return


def _report(problems: Sequence[Problem], code: int) -> None:
    """Print what ends this process, where it is not another process's to say."""
    with suppress(DistributedError):
        world = from_environment()
        if world.size > 1:
            from lrtrain.engine.heartbeat import pass_on

            if pass_on(problems, code, world):
                return
    complain(listed(problems))


def _crash(error: BaseException) -> Problem:
    import tempfile
    import traceback

    what = f"this is a bug in lrtrain: {type(error).__name__}: {error}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="lrtrain-crash-", suffix=".txt", delete=False) as file:
            file.write(f"lrtrain {__version__}, python {sys.version}\n{sys.argv}\n\n")
            traceback.print_exception(error, file=file)
    except OSError as unwritable:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"in {last.name}, {last.filename}:{last.lineno}"
        hint = f"{where}; the traceback could not be written: {unwritable.strerror}; please report it"
        return Problem(what[:600], hint=hint)
    return Problem(what[:600], hint=f"the traceback is in {file.name}; please report it")
