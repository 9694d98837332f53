"""A YAML file becomes plain data plus the line of every key.

YAML 1.2's core schema where it matters (`1e-3` is a number, `no` is text), duplicate keys refused, no aliases, no tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from lrtrain.errors import ConfigError, Problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

Loc = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + dot: float(sign + "inf") for sign in ("", "+", "-") for dot in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass
class Document:
    """Plain data read from one file: `data`, and the line on which each key or item starts."""

    name: str
    data: Any
    lines: dict[Loc, int] = field(default_factory=dict)
    overrides: dict[Loc, str] = field(default_factory=dict)

    def where(self, *loc: str | int) -> str:
        """`configs/a.yaml:14  schedule[1].T_max`, or the `--set` that put the value there."""
        known: Loc = loc
        while known not in self.lines and known not in self.overrides and known:
            known = known[:-1]
        if known in self.overrides:
            return f"--set {self.overrides[known]}"
        line = self.lines.get(known)
        return f"{self.name}:{line}  {dotted(loc)}".rstrip() if line else f"{self.name}  {dotted(loc)}".rstrip()


def dotted(loc: Loc) -> str:
    """`("schedule", 1, "T_max")` as people write it: `schedule[1].T_max`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe reader up to the node tree; the values are read by `scalar`, not by YAML 1.1's rules."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def scalar(text: str) -> Any:
    """The value of a plain YAML 1.2 scalar.

    >>> scalar("1e-3"), scalar("no"), scalar("010"), scalar("true")
    (0.001, 'no', 10, True)
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text) and len(text) < 400:
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    return float(text) if _FLOAT.match(text) else text


def parse(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: the file's content.
        name: what errors call the file.

    Raises:
        ConfigError: not YAML, empty, several documents, duplicate keys, aliases, tags, too large or too deep.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"the config is {len(text):,} bytes; at most {MAX_BYTES:,} are read", name)
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        what = f"not YAML: {error.problem or error.context}"
        hint = "indent with spaces, not tabs" if "'\\t'" in what else None
        raise ConfigError(what, f"{name}:{mark.line + 1}" if mark else name, hint) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())[:160]}", name) from None
    if node is None:
        raise ConfigError("the config is empty", name, "`lrtrain init --example` writes one to start from")
    document = Document(name, None)
    problems: list[Problem] = []
    document.data = _value(node, (), document, problems)
    if problems:
        raise ConfigError(problems)
    return document


def _value(node: yaml.Node, loc: Loc, document: Document, problems: list[Problem]) -> Any:
    document.lines.setdefault(loc, node.start_mark.line + 1)
    if node.tag not in PLAIN_TAGS:
        problems.append(Problem(f"YAML tags are not allowed: {node.tag}", document.where(*loc), "write plain values"))
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*loc, i), document, problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, loc, document, problems)
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return scalar(node.value) if plain else node.value


def _mapping(node: yaml.MappingNode, loc: Loc, document: Document, problems: list[Problem]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key, str) or key_node.tag.endswith(":merge"):
            problems.append(Problem("a key must be plain text", f"{document.name}:{line}  {dotted(loc)}".rstrip()))
            continue
        inner = (*loc, key)
        if key in data:
            first = document.lines[inner]
            problems.append(
                Problem(
                    f"{key!r} is given twice, on line {first} and on line {line}",
                    f"{document.name}:{line}  {dotted(inner)}",
                    "keep one of them",
                )
            )
            continue
        document.lines[inner] = line
        data[key] = _value(value_node, inner, document, problems)
    return data


PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
}


class _Dumper(yaml.SafeDumper):
    """Writes what `parse` reads back as the same data."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    tag = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    plain = scalar(text) == text and tag == dumper.DEFAULT_SCALAR_TAG
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def dump(data: Any) -> str:
    """Plain data as YAML; floats read back exactly."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
