"""`lrtrain list KIND` shows names and their arguments."""

from __future__ import annotations

import sys

from lrtrain import lookup
from lrtrain.config.checks import FILLED, HORIZONS

_KINDS = {plural: kind for kind, plural in lookup.PLURALS.items()}
_MORE = {
    "models": "timm/<name> with the extra: pip install 'lrtrain[timm]'",
    "datasets": "webdataset needs the extra: pip install 'lrtrain[webdataset]'",
    "schedules": "warmup: 5ep before a single one; a list of phases in sequence",
}


def run(plural: str) -> None:
    """Print one name a line with its arguments; required ones and those that lrtrain fills in are marked."""
    kind = _KINDS[plural]
    names = lookup.names(kind)
    width = max(map(len, names))
    out = sys.stdout
    for name in names:
        takes = lookup.arguments(kind, name)
        filled = {*FILLED.get(name, ()), HORIZONS.get(name)}
        words = [
            f"{key}+" if key in filled else key if default is not None else f"{key}*"
            for key, default in (takes.defaults if takes else {}).items()
        ]
        out.write(f"{name:{width}}  {', '.join(words)}".rstrip() + "\n")
    out.write(
        "\n* has no default"
        + ("; + is filled in when left out" if plural == "schedules" else "")
        + (f". Also: {_MORE[plural]}" if plural in _MORE else "")
        + ". pkg.mod:attr: your own.\n"
    )
