"""A YAML file becomes plain data plus the line of every key.

YAML 1.2's core schema where it matters (`1e-3` is a number, `no` is text), duplicate keys refused, no aliases, no tags.
Size, depth and number of values are bounded, so that no file takes long to refuse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from lrtrain.errors import ConfigError, Problem, quoted

MAX_BYTES = 1_000_000
MAX_LINES = 50_000  # empty ones take time too
MAX_DEPTH = 20
MAX_VALUES = 20_000
MAX_DIGITS = 250  # of a whole number; more are read as a float, and every whole number can become one

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

    def overridden(self, *loc: str | int) -> bool:
        """Whether a `--set` put the value there, or something that holds it."""
        return any(loc[:depth] in self.overrides for depth in range(1, len(loc) + 1))

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
        name = part if isinstance(part, int) or len(part) <= 60 else part[:57] + "..."
        text += f"[{name}]" if isinstance(name, int) else f".{name}" if text else name
    return text


_GIVEN = "given "  # before a tag that the file gives


class _Loader(yaml.SafeLoader):
    """PyYAML's safe reader up to the node tree; the values are read by `scalar`, not by YAML 1.1's rules."""

    depth = values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.values += 1
        if what := self._refused():
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, what, mark)
        given = getattr(self.peek_event(), "tag", None)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if given is not None and node is not None:  # else it is what PyYAML takes the value for
            node.tag = _GIVEN + given
        self.depth -= 1
        return node

    def _refused(self) -> str | None:
        if self.check_event(yaml.AliasEvent):
            return "aliases (*name) are not allowed"
        if self.depth > MAX_DEPTH:
            return f"nested more than {MAX_DEPTH} deep"
        return f"more than {MAX_VALUES:,} values" if self.values > MAX_VALUES else None


# What words of PyYAML's, or ours above, mean to do; the first that is found counts.
_HINTS = {
    "'\\t'": "indent with spaces, not tabs",
    "aliases": "write the value out where it is used",
    "deep": "a config is at most five or six levels deep",
    "more than": "name a file that lists them, or use a pattern",
    "mapping values": "text with a colon and a space needs quotes; keys of one section start at the same column",
    "flow": "inside {...} and [...], text with any of { } [ ] , needs quotes; and every bracket must be closed",
    "escape": r"in double quotes write \\ for \; or take single quotes, such as '^fc\.'",
    "scalar": "close the quotes",
    "document": "a config is one document: leave out the --- between",
    "acceptable character": "remove it, or write it as an escape in double quotes",
    "": "look at the indentation, quotes and brackets here and in the line before",
}


def _hint(error: Exception) -> str:
    said = f"{getattr(error, 'problem', error)} {getattr(error, 'context', '')}"
    return next(hint for words, hint in _HINTS.items() if words in said)


def scalar(text: str) -> Any:
    """The value of a plain YAML 1.2 scalar.

    >>> scalar("1e-3"), scalar("no"), scalar("010"), scalar("true")
    (0.001, 'no', 10, True)
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text) and len(text) <= MAX_DIGITS:
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    return float(text) if _FLOAT.match(text) else text


def parse(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: the file's content.
        name: what errors call the file.

    Raises:
        ConfigError: not YAML, empty, several documents, duplicate keys, aliases, tags, too much or too deep.
    """
    if len(text) > MAX_BYTES:
        raise too_large(name)
    if (lines := len(text.splitlines())) > MAX_LINES:
        what = f"the config has {lines:,} lines; at most {MAX_LINES:,} are read"
        raise ConfigError(what, name, "is it the right file? Lists of files belong into a file of their own")
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        what = f"not YAML: {error.problem or error.context}"
        raise ConfigError(what, f"{name}:{mark.line + 1}" if mark else name, _hint(error)) from None
    except (ValueError, OverflowError):
        what, hint = "not YAML: an escape names no character of Unicode", 'such as "\\u00e9" in double quotes'
        raise ConfigError(what, name, hint) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())[:160]}", name, _hint(error)) from None
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
    if node.tag.startswith(_GIVEN):
        what = f"YAML tags are not allowed: {quoted(node.tag.removeprefix(_GIVEN))}"
        problems.append(Problem(what, document.where(*loc), "write plain values"))
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*loc, i), document, problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, loc, document, problems)
    assert isinstance(node, yaml.ScalarNode)
    if bad := UNWRITABLE.search(node.value):
        what = f"text cannot hold the character {bad[0]!a}; got {quoted(node.value)}"
        problems.append(Problem(what, document.where(*loc), "leave it out"))
    return scalar(node.value) if node.style is None else node.value


def _mapping(node: yaml.MappingNode, loc: Loc, document: Document, problems: list[Problem]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        is_text = isinstance(key, str) and not key_node.tag.endswith(":merge") and not key_node.tag.startswith(_GIVEN)
        if not is_text or UNWRITABLE.search(key):
            at = f"{document.name}:{line}  {dotted(loc)}".rstrip()
            problems.append(Problem(f"a key must be plain text; got {_shown(key_node)}", at, "write it as key: value"))
            continue
        inner = (*loc, key)
        if key in data:
            first = document.lines[inner]
            problems.append(
                Problem(
                    f"{quoted(key)} is given twice, on line {first} and on line {line}",
                    f"{document.name}:{line}  {dotted(inner)}",
                    "keep one of them",
                )
            )
            continue
        document.lines[inner] = line
        data[key] = _value(value_node, inner, document, problems)
    return data


def beyond_bounds(data: Any) -> str | None:
    """What of plain data that is no YAML file, such as JSON, is more than one could hold; None where nothing is."""
    values, left = 0, [(data, 1)]
    while left:
        item, depth = left.pop()
        values += 1
        if depth > MAX_DEPTH:
            return f"it is nested more than {MAX_DEPTH} deep"
        if values + len(left) > MAX_VALUES:
            return f"it has more than {MAX_VALUES:,} values"
        if isinstance(item, int) and abs(item) >= 10**MAX_DIGITS:
            return f"it has a whole number of more than {MAX_DIGITS} digits"
        if isinstance(item, dict):
            left += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple):
            left += [(part, depth + 1) for part in item]
    return None


def too_large(name: str) -> ConfigError:
    """The refusal of a file that no config is as large as."""
    return ConfigError(
        f"the config is longer than {MAX_BYTES:,} bytes; at most {MAX_BYTES:,} are read",
        name,
        "is it the right file? Lists of files belong into a file of their own",
    )


def _shown(node: yaml.Node) -> str:
    return quoted(node.value) if isinstance(node, yaml.ScalarNode) else "a mapping or list"


UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # no file name and no UTF-8 file can hold these
_BREAKS = re.compile("[\x85\u2028\u2029]")  # which YAML reads as a space, unless they are escaped


class _Dumper(yaml.SafeDumper):
    """Writes what `parse` reads back as the same data."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    tag = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    plain = scalar(text) == text and tag == dumper.DEFAULT_SCALAR_TAG and not _BREAKS.search(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def dump(data: Any) -> str:
    """Plain data as YAML; floats read back exactly."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
