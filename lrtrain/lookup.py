"""A YAML name becomes an object: torch's or torchvision's own, then a file of ours, then `pkg.mod:attr`.

Names and arguments are read from the installed packages' source, so that a config is checked before torch is imported.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from lrtrain.errors import ConfigError, EnvironmentFault, quoted
from lrtrain.own_code import look_there_too

Kind = Literal["scheduler", "optimizer", "model", "dataset", "transform"]
PLURALS: dict[Kind, str] = {
    "scheduler": "schedules",
    "optimizer": "optimizers",
    "model": "models",
    "dataset": "datasets",
    "transform": "transforms",
}


@dataclass(frozen=True, slots=True)
class _Home:
    """Where the names of one kind live: their package's folder, and our own folder of one file a name."""

    package: str
    files: str
    exports: str
    base: str
    ours: str | None = None
    supplied: tuple[str, ...] = ()


_HOMES: dict[Kind, _Home] = {
    "scheduler": _Home(
        "torch.optim",
        "lr_scheduler.py",
        "lr_scheduler.py",
        "class",
        "lrtrain.schedule.shapes",
        ("optimizer", "last_epoch", "verbose", "t", "steps"),
    ),
    "optimizer": _Home("torch.optim", "*.py", "__init__.py", "class", None, ("params",)),
    "model": _Home(
        "torchvision.models",
        "*.py",
        "__init__.py",
        "def",
        "lrtrain.models",
        ("weights", "progress", "num_classes", "in_channels"),
    ),
    "dataset": _Home(
        "torchvision.datasets",
        "*.py",
        "__init__.py",
        "class",
        "lrtrain.data.sources",
        ("transform", "target_transform", "transforms", "loader", "is_valid_file", "seed"),
    ),
    "transform": _Home("torchvision.transforms.v2", "*.py", "__init__.py", "class"),
}
_EXTRAS = {("dataset", "webdataset"): "webdataset"}  # ours that need a package, which is the extra's name too
_KNOWN_PACKAGES = ("lrtrain", "timm", "torch", "torchvision")  # whose names need no import path
_imported: set[str] = set()  # where the code of import paths lies, once it is imported: folders or files
_NOT_OFFERED: dict[Kind, dict[str, str]] = {
    "scheduler": {"LRScheduler": "it is the base class", "_LRScheduler": "it is the base class"},
    "optimizer": {
        "Optimizer": "it is the base class",
        "LBFGS": "it evaluates the loss several times a step, so a step would not be a step",
        "SparseAdam": "it takes sparse gradients only, and these models have none",
    },
    "model": {},
    "dataset": dict.fromkeys(
        ("LSUN", "LSUNClass"), "torchvision executes a file of the working folder when it opens it; export its images"
    ),
    "transform": {"Transform": "it is the base class"},
}


# Words that no spelling leads from to the name that is meant.
_MEANT: dict[Kind, dict[str, str]] = {"scheduler": dict.fromkeys(("off", "no", "none", "constant"), "fixed")}


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a name takes: argument names with their default's source text, None where a value is required.

    `annotations` are source text, too, of the arguments that have one.
    """

    defaults: dict[str, str | None]
    open: bool
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """The arguments without a default."""
        return tuple(name for name, default in self.defaults.items() if default is None)


def names(kind: Kind) -> tuple[str, ...]:
    """Every name of a kind that needs no import path, torch's first, then ours."""
    return (*_theirs(kind), *ours(kind))


@lru_cache
def ours(kind: Kind) -> tuple[str, ...]:
    """The names that are files of ours, which define a function of that name."""
    package = _HOMES[kind].ours
    if package is None:
        return ()
    files = _folder(package).glob("[a-z]*.py")
    return tuple(sorted(p.stem for p in files if f"\ndef {p.stem}(" in p.read_text(encoding="utf-8")))


@lru_cache
def _theirs(kind: Kind) -> tuple[str, ...]:
    home = _HOMES[kind]
    defined = _definitions(home.package, home.files)
    if kind == "model":
        found = [name for name, definition in defined.items() if definition.is_model]
    else:
        exported = _exported(_folder(home.package) / home.exports)
        found = [name for name in exported if name in defined and defined[name].is_class]
    return tuple(sorted(name for name in found if not name.startswith("_") and name not in _NOT_OFFERED[kind]))


def is_path(name: str) -> bool:
    """Whether `name` is an import path, `pkg.mod:attr`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name) is not None


def texts(value: Any) -> Iterator[str]:
    """Every text in plain data, such as a config's."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def why_unknown(kind: Kind, name: str, *, guess: bool = True) -> tuple[str, str] | None:
    """What is wrong with a name and the hint, or None where it can be found; to `guess` takes long."""
    from_timm = kind == "model" and name.startswith("timm/")
    package = "timm" if from_timm else _EXTRAS.get((kind, name))
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{kind} {quoted(name)} needs the package {package}", f"pip install 'lrtrain[{package}]'"
    if from_timm or is_path(name) or name in names(kind):
        return None
    if name in _NOT_OFFERED[kind]:
        return (
            f"{kind} {name!r} cannot be used here: {_NOT_OFFERED[kind][name]}",
            f"`lrtrain list {PLURALS[kind]}` shows all",
        )
    meant = _MEANT[kind].get(name.lower()) if kind in _MEANT else None
    meant = meant or (closest(name, names(kind)) if guess else None)
    hint = f"did you mean {meant!r}? " if meant else ""
    return (
        f"there is no {kind} {quoted(name)}",
        f"{hint}`lrtrain list {PLURALS[kind]}` shows all; pkg.mod:attr names code of yours",
    )


def closest(word: str, known: tuple[str, ...] | list[str]) -> str | None:
    """The known name that `word` was probably meant to be."""
    folded = _folded(tuple(known))
    plain = _plain(word)
    if plain in folded:
        return folded[plain]
    match = difflib.get_close_matches(plain, folded, 1, 0.7)
    stem = plain.removesuffix("lr")
    if not match and len(stem) >= 4:
        match = [name for name in folded if name.startswith(stem)][:1]
    return folded[match[0]] if match else None


@lru_cache
def _folded(known: tuple[str, ...]) -> dict[str, str]:
    return {_plain(name): name for name in known}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


@lru_cache
def arguments(kind: Kind, name: str) -> Arguments | None:
    """The arguments that a config may give `name`, or None where only an import can tell."""
    home = _HOMES[kind]
    if is_path(name) or name.startswith("timm/"):
        return None
    theirs = name in _theirs(kind)
    if theirs:
        defined = _definitions(home.package, home.files)
        node: ast.AST | None = _node(defined[name].path, name)
        while isinstance(node, ast.ClassDef) and (init := _method(node, "__init__")) is None:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in defined]
            node = _node(defined[bases[0]].path, bases[0]) if bases else None
        function = init if isinstance(node, ast.ClassDef) else node
    elif name not in ours(kind):
        return None
    else:
        tree = ast.parse((_folder(str(home.ours)) / f"{name}.py").read_text())
        function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name), None)
    if not isinstance(function, ast.FunctionDef):
        return Arguments({}, open=False)
    found = _signature(function, home.supplied)
    # Which arguments make which split of a torchvision dataset is ours to say.
    return replace(found, defaults={**found.defaults, "splits": "None"}) if kind == "dataset" and theirs else found


def _signature(function: ast.FunctionDef, supplied: tuple[str, ...]) -> Arguments:
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    return Arguments(
        {
            arg.arg: None if default is None else ast.unparse(default)
            for arg, default in pairs
            if arg.arg != "self" and arg.arg not in supplied
        },
        open=spec.kwarg is not None,
        annotations={arg.arg: ast.unparse(arg.annotation) for arg, _ in pairs if arg.annotation is not None},
    )


def find(kind: Kind, name: str) -> Any:
    """Import what a name stands for.

    Raises:
        ConfigError: there is no such name, or its import path leads nowhere.
    """
    if is_path(name):
        return _import_path(name)
    unknown = why_unknown(kind, name)
    if unknown is not None:
        raise (EnvironmentFault if "needs the package" in unknown[0] else ConfigError)(unknown[0], hint=unknown[1])
    home = _HOMES[kind]
    if name in _theirs(kind):
        module = "torch.optim.lr_scheduler" if kind == "scheduler" else home.package
        return getattr(importlib.import_module(module), name)
    return getattr(importlib.import_module(f"{home.ours}.{name}"), name)


def _import_path(path: str) -> Any:
    module, _, attribute = path.partition(":")
    look_there_too()
    try:
        found: Any = importlib.import_module(module)
        top = sys.modules[module.partition(".")[0]]
        if top.__name__ not in _KNOWN_PACKAGES:
            places = getattr(top, "__path__", [getattr(top, "__file__", None)])
            _imported.update(place for place in places if place)  # a module that is built in has none
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"cannot import {quoted(path)}: {why}", hint="the module must be installed, or lie on PYTHONPATH"
        ) from error
    return found


def came_by_path(file: str) -> bool:
    """Whether a source file is of a module or package from which an import path has been imported."""
    return any(file == place or file.startswith(place + os.sep) for place in _imported)


def _folder(package: str) -> Path:
    """The folder of a package, found without importing it (which `find_spec` does for a dotted name's parents)."""
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentFault(f"the package {top} is not installed", hint=f"pip install {top}")
    return Path(spec.submodule_search_locations[0], *rest)


@dataclass(frozen=True, slots=True)
class _Definition:
    """A class or function at the top level of a file."""

    path: Path
    is_class: bool
    is_model: bool
    """It is decorated with torchvision's `register_model`."""


_TOP_LEVEL = re.compile(r"^(?:(@register_model)\b|(class|def) (\w+))", re.MULTILINE)


@lru_cache
def _definitions(package: str, pattern: str) -> dict[str, _Definition]:
    """Every class and function at the top level of a package's files, found by their lines alone.

    Parsing the hundred files that torch and torchvision have takes most of a second; see `_node`.
    """
    found: dict[str, _Definition] = {}
    for path in sorted(_folder(package).glob(pattern)):
        registered = False
        for decorator, keyword, name in _TOP_LEVEL.findall(path.read_text(encoding="utf-8")):
            if not decorator:
                found[name] = _Definition(path, keyword == "class", registered)
            registered = bool(decorator)
    return found


def _node(path: Path, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The definition of `name` in a file."""
    nodes = (node for node in _parsed(path).body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return next((node for node in nodes if node.name == name), None)


@lru_cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _exported(path: Path) -> set[str]:
    """The names that a file imports or lists in `__all__`."""
    found: set[str] = set()
    for node in _parsed(path).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple):
            found |= {e.value for e in node.value.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)}
    return found


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name), None)
