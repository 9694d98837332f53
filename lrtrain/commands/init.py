"""`lrtrain init --example` writes the quickstart's config."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from lrtrain.errors import ConfigError, EnvironmentFault


def run(path: Path, *, example: bool) -> None:
    """Write the example config, never over another file."""
    if not example:
        raise ConfigError("`lrtrain init` needs to know what to write", hint="lrtrain init --example")
    text = (resources.files("lrtrain") / "config" / "example.yaml").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{str(path)!r} is there already", hint="name another file: lrtrain init --example FILE"
        ) from None
    except OSError as error:
        raise EnvironmentFault(f"cannot write {str(path)!r}: {error.strerror}") from error
    name = "" if path.name == "lrtrain.yaml" and path.parent == Path() else f" {path}"
    print(f"wrote {path}\nnext: lrtrain preview{name}\n      lrtrain fit{name}")  # noqa: T201
