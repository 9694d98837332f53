"""Where the process begins, as `lrtrain` or `python -m lrtrain`: signals are heeded before anything slow happens."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    from lrtrain.own_code import set_aside

    set_aside()

import os
import select
import signal
from types import FrameType

# Where `fit` has nothing to save yet, and in every other command.
ENDS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75}


def main() -> None:
    """Entry point of the `lrtrain` command."""
    for name, handler in {**dict.fromkeys(ENDS, _end), "SIGUSR2": _nothing_to_save}.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, handler)
    from lrtrain.cli import main as command_line

    command_line()


def _end(number: int, frame: FrameType | None) -> None:
    # At once: an exception in the midst of an import leaves half a module, and what then fails is a riddle. Files are
    # written beside their place and renamed, and data workers end with this process.
    try:
        if select.select((), (2,), (), 0)[1]:  # not where a terminal is stopped, or nobody reads a full pipe
            os.write(2, b"\ninterrupted\n")
    finally:  # be stderr a terminal that was closed, a pipe without a reader, or a file on a full disk
        os._exit(ENDS[signal.Signals(number).name])


def _nothing_to_save(number: int, frame: FrameType | None) -> None:
    pass


if __name__ == "__main__":
    main()
