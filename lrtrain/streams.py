"""stdout and stderr that nobody may read any more."""

from __future__ import annotations

import errno
import os
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any, TextIO


class _Unheeded(FileIO):
    """A pipe, or a terminal, that may lose its reader: what is printed then is lost, and no error."""

    def __init__(self, number: int):
        super().__init__(number, "w", closefd=False)
        self._lost = (errno.EPIPE, errno.EIO) if self.isatty() else (errno.EPIPE,)

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._lost:
                raise
            null = os.open(os.devnull, os.O_WRONLY)  # for what other programs print there, too
            os.dup2(null, self.fileno())
            os.close(null)
            return super().write(data)


def unheeded(stream: TextIO) -> TextIO:
    """The stream as it is to be while anything runs that prints, be it code of the user's own: training goes on."""
    if not isinstance(stream, TextIOWrapper):
        return stream
    stream.flush()
    try:
        raw = _Unheeded(stream.fileno())
    except (OSError, ValueError):  # no descriptor is behind it
        return stream
    through = stream.write_through  # unbuffered, as PYTHONUNBUFFERED asks for
    made: TextIO = TextIOWrapper(
        raw if through else BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=through,
    )
    return made
