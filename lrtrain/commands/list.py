"""`lrtrain list KIND` shows names and their arguments."""

from __future__ import annotations

import shutil
import sys
import textwrap

from lrtrain import lookup
from lrtrain.config.checks import FILLED, HORIZONS

_KINDS = {plural: kind for kind, plural in lookup.PLURALS.items()}
_MORE = {
    "models": "timm/<name> with the extra: pip install 'lrtrain[timm]'",
    "datasets": "webdataset needs the extra: pip install 'lrtrain[webdataset]'",
    "schedules": "warmup: 5ep before a single one; a list of phases in sequence",
}


def run(plural: str) -> None:
    """Print one name a line with its arguments; required ones and those that lrtrain fills in are marked.

    In a terminal, lines are wrapped; for a program, a line is a name.
    """
    kind = _KINDS[plural]
    names = lookup.names(kind)
    width = max(map(len, names))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    beneath = " " * min(width + 2, columns // 2)
    for name in names:
        takes = lookup.arguments(kind, name)
        filled = {*FILLED.get(name, ()), HORIZONS.get(name)}
        words = [
            f"{key}+" if key in filled else key if default is not None else f"{key}*"
            for key, default in (takes.defaults if takes else {}).items()
        ]
        line = f"{name:{width}}  {', '.join(words)}".rstrip()
        sys.stdout.write(textwrap.fill(line, columns, subsequent_indent=beneath) + "\n")
    legend = (
        "* has no default"
        + ("; + is filled in when left out" if plural == "schedules" else "")
        + (f". Also: {_MORE[plural]}" if plural in _MORE else "")
        + ". pkg.mod:attr: your own."
    )
    sys.stdout.write("\n" + textwrap.fill(legend, columns) + "\n")
