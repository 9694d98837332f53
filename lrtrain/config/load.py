"""A config file and its `--set` overrides become a `RunConfig`, or one error that lists every problem."""

from __future__ import annotations

import difflib
import errno
import os
import re
import select
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lrtrain.config import checks, schedule_checks, yaml
from lrtrain.config.messages import problems_of
from lrtrain.config.schema import Phase, RunConfig
from lrtrain.config.yaml import Document, Loc
from lrtrain.errors import ConfigError, EnvironmentFault, Problem, quoted

DEFAULT = Path("lrtrain.yaml")
_OF_ITS_NAME = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO)
_WRITER_MS = 3000  # to wait for whoever writes to a config that is a pipe
_KEYS = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[^.\[\]]+\])*")  # optimizer.groups[0].lr


def load(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, override and check a config.

    Args:
        path: the YAML file; ./lrtrain.yaml when None.
        overrides: `optimizer.lr=0.05` and the like, as given to `--set`.

    Raises:
        ConfigError: with every problem of the file that can be found without data and without torch.
    """
    document = yaml.parse(_read(path or DEFAULT, given=path is not None), str(path or DEFAULT))
    for override in overrides:
        _override(document, override)
    return resolve(document)


def resolve(document: Document) -> RunConfig:
    """Check plain data and freeze it."""
    if not isinstance(document.data, dict):
        raise ConfigError(
            f"the config must be a mapping of keys; got {quoted(document.data)}",
            document.where(),
            "such as `model: resnet18` and other keys, one a line; `lrtrain init --example` writes all that are needed",
        )
    problems = checks.check_names(document)
    try:
        config = RunConfig.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(
            _in_file_order(problems_of(error, document) + problems + _phase_problems(document), document)
        ) from None
    config._document = document
    problems += checks.check_values(config) + schedule_checks.check_schedule(config)
    if problems:
        raise ConfigError(_in_file_order(problems, document))
    return config


def _phase_problems(document: Document) -> list[Problem]:
    """What is wrong with each phase that can be read, where the rest of the file cannot."""
    schedule = document.data.get("schedule")
    phases = schedule if isinstance(schedule, list) else [schedule]
    problems: list[Problem] = []
    for i, data in enumerate(phases):
        loc: Loc = ("schedule", i) if isinstance(schedule, list) else ("schedule",)
        try:
            phase = Phase.model_validate({"name": data} if isinstance(data, str) else data)
        except ValidationError:
            continue
        problems += schedule_checks.check_phase(phase, loc, document.where)
    return problems


def _in_file_order(problems: list[Problem], document: Document) -> list[Problem]:
    def line(problem: Problem) -> int:
        found = re.match(rf"{re.escape(document.name)}:(\d+)", problem.where or "")
        return int(found[1]) if found else 10**9

    return sorted(dict.fromkeys(problems), key=line)


def _read(path: Path, *, given: bool) -> str:
    where = str(path)
    try:
        if path.is_dir():
            raise ConfigError(f"{quoted(where)} is a folder, not a config file", hint="name the YAML file in it")
        text = _content(path).decode("utf-8")
    except FileNotFoundError:
        if not given:
            raise ConfigError(
                "no CONFIG given, and there is no ./lrtrain.yaml",
                hint="`lrtrain init --example` writes one to start from",
            ) from None
        beside = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        guess = difflib.get_close_matches(where, beside, 1)
        raise ConfigError(
            f"there is no config file {quoted(where)}",
            hint=f"did you mean {guess[0]!r}?" if guess else "`lrtrain init --example` writes one to start from",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the config is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}",
            where,
            "save it as UTF-8 in your editor; is it the right file?",
        ) from None
    except OSError as error:
        kind = ConfigError if error.errno in _OF_ITS_NAME else EnvironmentFault
        raise kind(
            f"the config cannot be read: {error.strerror}", where, "check its name, and that you may read it"
        ) from None
    if "\0" in text:
        what = f"the config holds a NUL byte at offset {text.index(chr(0))}"
        raise ConfigError(what, where, "save it as UTF-8 text; is it the right file?")
    return text.removeprefix("\ufeff")


def _content(path: Path) -> bytes:
    """At most what a config may have, from a file or a pipe, without waiting long for a pipe that nobody writes to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):  # until its writer has opened it, reading finds its end
            waiting = select.poll()
            waiting.register(file, select.POLLIN)
            waiting.poll(_WRITER_MS)
        os.set_blocking(descriptor, True)
        data = b""
        while len(data) <= yaml.MAX_BYTES and (more := file.read(65536)):
            data += more
    if len(data) > yaml.MAX_BYTES:
        raise yaml.too_large(str(path))
    return data


def _override(document: Document, override: str) -> None:
    key, separator, text = override.partition("=")
    where = f"--set {override[:200]}"
    parts: Loc = tuple(
        int(part) if re.fullmatch(r"[0-9]{1,6}", part) else part for part in re.split(r"[.\[\]]+", key.strip()) if part
    )
    if not separator or not _KEYS.fullmatch(key.strip()):
        hint = "such as --set optimizer.lr=0.05 or --set schedule[0].gamma=0.5"
        raise ConfigError(f"{quoted(override)} is not KEY=VALUE", where, hint)
    if yaml.UNWRITABLE.search(key):
        raise ConfigError(f"the key of {quoted(override)} is no UTF-8 text", where, "`lrtrain schema` lists the keys")
    if len(parts) > yaml.MAX_DEPTH:
        raise ConfigError(
            f"{quoted(override)} is nested more than {yaml.MAX_DEPTH} deep", where, "is it the right key?"
        )
    try:
        value = yaml.parse(text, where).data if text.strip() else None
    except ConfigError as error:
        raise ConfigError(replace(problem, where=where) for problem in error.problems) from None
    parent: Any = document.data
    for depth, part in enumerate(parts[:-1]):
        child = _child(parent, part, where)
        if child is None or isinstance(child, str):
            child = {} if child is None else {"name": child}
            parent[part] = child
            document.overrides[parts[: depth + 1]] = override
        parent = child
    _child(parent, parts[-1], where)
    parent[parts[-1]] = value
    for places in (document.lines, document.overrides):  # of what is no longer there
        for loc in [loc for loc in places if len(loc) > len(parts) and loc[: len(parts)] == parts]:
            del places[loc]
    document.overrides[parts] = override


def _child(parent: Any, part: str | int, where: str) -> Any:
    if isinstance(parent, list) and isinstance(part, int):
        if part < len(parent):
            return parent[part]
        hint = f"items count from 0, so that the last is {len(parent) - 1}"
        raise ConfigError(f"there is no item {part}: the list has {len(parent)}", where, hint)
    if isinstance(parent, dict) and isinstance(part, str):
        return parent.get(part)
    kind = "a list: name an item by its number" if isinstance(parent, list) else "not a mapping"
    hint = "such as --set optimizer.lr=0.05 or --set schedule.0.gamma=0.5"
    raise ConfigError(f"cannot set {quoted(part)}: what holds it is {kind}", where, hint)
