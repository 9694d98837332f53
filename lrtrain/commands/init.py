"""`lrtrain init --example` writes the quickstart's config."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

from lrtrain.errors import ConfigError, EnvironmentFault, printable, what_to_do
from lrtrain.writing import new


def run(path: Path, *, example: bool) -> None:
    """Write the example config, never over another file."""
    if not example:
        raise ConfigError("`lrtrain init` needs to know what to write", hint="lrtrain init --example")
    text = (resources.files("lrtrain") / "config" / "example.yaml").read_text(encoding="utf-8")
    try:
        with new(path) as file:
            file.write(text.encode())
    except FileExistsError as error:
        hint = "name another file: lrtrain init --example FILE"
        raise ConfigError(f"{str(path)!r} is there already", hint=hint) from error
    except OSError as error:
        what = f"cannot write {str(path)!r}: {error.strerror}"
        hint = what_to_do(error, "try again, or name another file")
        if isinstance(error, FileNotFoundError):
            hint = "make its folder, or name another file"
        raise EnvironmentFault(what, hint=hint) from error
    name = "" if path.name == "lrtrain.yaml" and path.parent == Path() else f" {printable(shlex.quote(str(path)))}"
    print(f"wrote {printable(str(path))}\nnext: lrtrain preview{name}\n      lrtrain fit{name}")  # noqa: T201
