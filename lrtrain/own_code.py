"""Where code of the user's own may lie: found by an import path of a config alone."""

import sys

_folders: list[str] = []


def set_aside() -> None:
    """Take the working folder, which `python -m` puts first, off the modules' path.

    It may be a run from elsewhere, with a yaml.py in it, a module that some library would take if it were there, or
    entry points. The folder of lrtrain itself is none from elsewhere.
    """
    folder = sys.path.pop(0)
    if __file__.startswith(f"{folder}/lrtrain/"):
        sys.path.append(folder)
    else:
        _folders.append(folder)


def look_there_too() -> None:
    """Put it back, last: code in it is asked for."""
    while _folders:
        sys.path.append(_folders.pop())
