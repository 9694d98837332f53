"""Parameters in named groups, each with its own LR and arguments."""

from __future__ import annotations

import difflib
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lrtrain import lookup
from lrtrain.config import schema
from lrtrain.config.duration import Duration
from lrtrain.errors import ConfigError, quoted
from lrtrain.optim.layers import layer_numbers

Where = Callable[..., str]

NORM_AND_BIAS = "norm_and_bias"
MAX_PATTERN = 1000  # characters
MATCH_SECONDS = 2.0  # for all groups' patterns together

# What optimizers read once for all groups, so that a group's own value would be without effect.
_FOR_ALL_GROUPS = ("fused", "foreach", "capturable", "differentiable", "initial_accumulator_value")


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that train alike: `lr` is their peak LR, `options` arguments of their own."""

    name: str
    lr: float
    parameter_names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    options: dict[str, Any]
    frozen_until: Duration | None


def make_groups(module: nn.Module, optimizer: schema.Optimizer, where: Where) -> tuple[ParamGroup, ...]:
    """Sort a network's trainable parameters into the config's groups; the first match wins.

    Groups come in the config's order, then `default` with what is left. With `layer_decay` each becomes one
    group per layer, `<group>.layer0` being the stem, with

        lr = group lr * layer_decay ** (head's layer - layer)

    (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT). Tied parameters count once.

    Raises:
        ConfigError: a pattern is no regular expression or matches nothing, a name is taken twice, or a group
            has an argument that the optimizer does not take.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("the model has no trainable parameters", where("model"))
    rest = dict(trainable)
    groups: list[ParamGroup] = []
    owner: dict[str, str] = {}
    patience = _Patience()
    for i, group in enumerate(optimizer.groups):
        name, at = group.name or group.params, where("optimizer", "groups", i, "params")
        matched = _matching(group.params, trainable, at, patience)
        taken = [n for n in matched if n in rest]
        if not taken:
            holders = ", ".join(dict.fromkeys(repr(owner[n]) for n in matched))
            raise ConfigError(
                f"no parameters are left for group {name!r}: what it matches is in {holders}",
                at,
                "the first match wins: move this group up",
            )
        owner |= dict.fromkeys(taken, name)
        lr = group.lr if group.lr is not None else optimizer.lr * (group.lr_scale or 1.0)
        groups.append(
            ParamGroup(
                name,
                lr,
                tuple(taken),
                tuple(rest.pop(n) for n in taken),
                _options(optimizer.name, group, i, where),
                group.frozen_until,
            )
        )
    if rest:
        groups.append(ParamGroup("default", optimizer.lr, tuple(rest), tuple(rest.values()), {}, None))
    _refuse_same_names(groups, where)
    if optimizer.layer_decay is None:
        return tuple(groups)
    layers = layer_numbers(module)
    return tuple(part for group in groups for part in _by_layer(group, layers, optimizer.layer_decay))


def plain(value: Any) -> Any:
    """A value as torch's optimizers take it: YAML's lists are tuples there."""
    return tuple(plain(item) for item in value) if isinstance(value, list) else value


def plain_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as torch's optimizers take them; betas of 0 are no whole numbers there."""
    values = {name: plain(value) for name, value in args.items()}
    if isinstance(betas := values.get("betas"), tuple):
        values["betas"] = tuple(float(beta) if isinstance(beta, int) else beta for beta in betas)
    return values


def _matching(pattern: str, parameters: dict[str, nn.Parameter], at: str, patience: _Patience) -> list[str]:
    """The names that a group's `params` matches, at least one."""
    if pattern == NORM_AND_BIAS:
        matched = [name for name, p in parameters.items() if p.ndim <= 1]
    else:
        matched = _searched(pattern, parameters, at, patience)
    if not matched:
        raise ConfigError(f"no trainable parameter matches {quoted(pattern)}", at, _near(pattern, list(parameters)))
    return matched


def _searched(pattern: str, names: Iterable[str], at: str, patience: _Patience) -> list[str]:
    """The names in which a regular expression is found.

    Python's engine takes time exponential in a name's length for some, such as `(a+)+$`, and no rule tells which
    without refusing good ones; so the time is what is bounded. The engine looks for signals while it searches.
    """
    if len(pattern) > MAX_PATTERN:
        what = f"`params` must have at most {MAX_PATTERN:,} characters; got {len(pattern):,}"
        raise ConfigError(what, at, "write one group for each part of the model")
    try:
        regex = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"`params` must be a regular expression, and {quoted(pattern)} is none: {error}",
            at,
            r"a dot is written \. and a bracket \(",
        ) from None
    try:
        with _bounded(patience):
            return [name for name in names if regex.search(name)]
    except _TookLongError:
        raise ConfigError(
            f"searching the parameters' names for {quoted(pattern)}, and what is above it, takes longer than "
            f"{MATCH_SECONDS:g} s",
            at,
            "repeat nothing that repeats: in place of (a+)+ write a+, in place of (.*)* write .*",
        ) from None


class _TookLongError(Exception):
    """The processor's time is used up."""


@dataclass
class _Patience:
    """Seconds of computing that are left for patterns."""

    left: float = MATCH_SECONDS


@contextmanager
def _bounded(patience: _Patience) -> Iterator[None]:
    """Bound what is done inside by the time that this process computes; Python allows it in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TookLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, max(patience.left, 1e-6))
    try:
        yield
    finally:
        patience.left, _ = signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _near(pattern: str, names: list[str]) -> str:
    """The parameter names that a pattern was probably meant for, else the model's parts."""
    word = re.sub(r"[^\w.]", "", pattern.replace("\\.", ".")).strip(".")
    modules = dict.fromkeys(part for name in names for part in (name.rpartition(".")[0], name))
    near = difflib.get_close_matches(word, modules, 4, 0.6)
    parts = list(dict.fromkeys(name.partition(".")[0] for name in names))
    start = f"near it are {', '.join(near)}; " if near else ""
    return f"{start}the model's parts are {', '.join(parts[:12])}{' ...' if len(parts) > 12 else ''}"


def _options(optimizer: str, group: schema.Group, i: int, where: Where) -> dict[str, Any]:
    """A group's own arguments of the optimizer."""
    known = lookup.arguments("optimizer", optimizer)
    for name in group.args:
        at = where("optimizer", "groups", i, name)
        if name in _FOR_ALL_GROUPS:
            raise ConfigError(
                f"`{name}` holds for the whole optimizer, not for one group",
                at,
                f"write `{name}` beside `optimizer.lr`",
            )
        if known is not None and name not in known.defaults:
            possible = [n for n in known.defaults if n not in _FOR_ALL_GROUPS]
            guess = lookup.closest(name, [*possible, "name", "params", "lr", "lr_scale", "frozen_until"])
            hint = (f"did you mean {guess!r}? " if guess else "") + f"takes {', '.join(possible)}"
            raise ConfigError(f"{optimizer} has no argument {name!r}", at, hint)
    return plain_args(group.args)


def _refuse_same_names(groups: list[ParamGroup], where: Where) -> None:
    names = [group.name for group in groups]
    for i, name in enumerate(names):
        if (first := names.index(name)) != i:
            at = where("optimizer", "groups", first if name == "default" else i, "name")
            what = (
                f"two groups are called {name!r}"
                if name != "default"
                else "a group is called 'default', which is the name of what no group matches"
            )
            raise ConfigError(what, at, "give each group a `name` of its own")


def _by_layer(group: ParamGroup, layers: dict[str, int], decay: float) -> Iterable[ParamGroup]:
    head = max(layers.values())
    pairs = list(zip(group.parameter_names, group.parameters, strict=True))
    for layer in sorted({layers[name] for name in group.parameter_names}):
        own = [(name, p) for name, p in pairs if layers[name] == layer]
        yield replace(
            group,
            name=f"{group.name}.layer{layer}",
            lr=group.lr * decay ** (head - layer),
            parameter_names=tuple(name for name, _ in own),
            parameters=tuple(p for _, p in own),
        )
