"""What can be said of a schedule before any data is seen: units, ranges, contradictions, traps, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from lrtrain import lookup
from lrtrain.config.duration import Duration
from lrtrain.config.scheduler_arguments import Where, check_arguments
from lrtrain.config.schema import Phase, RunConfig, monitor_mode
from lrtrain.config.sequential import as_phases
from lrtrain.config.yaml import Loc
from lrtrain.errors import Problem

# torch cycles the momentum of these against the LR, unless told `cycle_momentum: false`.
CYCLES_MOMENTUM = ("OneCycleLR", "CyclicLR")
DEFAULT_MONITOR = "val_loss"

_NOT_IN_A_CHAIN = {
    "ReduceLROnPlateau": "it ticks at each evaluation, on a metric",
    "ChainedScheduler": "chains do not nest",
    "SequentialLR": "phases in sequence are a list under `schedule`",
}


def phases(config: RunConfig) -> list[tuple[Loc, Phase]]:
    """The phases as they run, each with its place: `warmup` written out, `fixed` where there is none."""
    if not config.schedule:
        return [(("schedule",), Phase.model_validate({"name": "fixed", "for": "rest"}))]
    places, first = _places(config), config.schedule[0]
    if len(places) == 1 and first.warmup is not None:
        return [
            (places[0], Phase.model_validate({"name": "LinearLR", "for": first.warmup})),
            (places[0], first.model_copy(update={"warmup": None, "length": "rest"})),
        ]
    last = config.schedule[-1]
    ending = last.model_copy(update={"length": "rest"}) if last.length is None else last
    return list(zip(places, (*config.schedule[:-1], ending), strict=True))


def _places(config: RunConfig) -> list[Loc]:
    data = config._document.data
    listed = not isinstance(data, dict) or isinstance(data.get("schedule"), list)
    return [("schedule", i) if listed else ("schedule",) for i in range(len(config.schedule))]


def check_schedule(config: RunConfig) -> list[Problem]:
    """Every problem of the schedule that needs no data; `make_plan` finds the others."""
    found = phases(config)
    problems = [
        problem
        for loc, phase in zip(_places(config), config.schedule, strict=True)
        for problem in check_phase(phase, loc, config.where)
    ]
    problems += _check_order(config, found)
    problems += _check_lengths(config, found)
    problems += [problem for loc, phase in found for problem in _check_momentum(config, phase, loc)]
    return problems + (deaf_problems(config) if config.optimizer.name == "Rprop" else [])


def deaf_problems(config: RunConfig) -> list[Problem]:
    """What cannot go with Rprop, which goes its own way after the first step, whatever the LR is then."""
    what = f"{config.optimizer.name} reads its LR at the first step alone, so that"
    problems = [
        Problem(f"{what} no schedule can reach it", config.where(*loc), "leave the schedule out, or " + _ANOTHER)
        for loc, phase in phases(config)
        if phase.name != "fixed"
    ]
    if config.on_nonfinite == "rollback":
        where = config.where("on_nonfinite")
        problems.append(Problem(f"{what} `rollback` cannot halve it", where, "write `stop`, or " + _ANOTHER))
    return problems


_ANOTHER = "take another optimizer"


def check_phase(phase: Phase, loc: Loc, where: Where) -> list[Problem]:
    """Every problem that needs only the phase itself.

    Args:
        phase: one phase, as written.
        loc: its keys in the config, such as ("schedule", 1).
        where: `RunConfig.where` or `Document.where`.
    """
    problems: list[Problem] = []
    for key, length in (("for", phase.length), ("warmup", phase.warmup)):
        if isinstance(length, Duration) and length.value == 0:
            problems.append(
                Problem(
                    f"a phase lasts longer than zero; got {length}",
                    where(*loc, key),
                    "leave the warmup out" if key == "warmup" else "leave the phase out",
                )
            )
    if phase.warmup is not None and phase.length not in (None, "rest"):
        problems.append(
            Problem(
                f"warmup: {phase.warmup} and for: {phase.length} contradict each other: warmup stands "
                "before a schedule that fills the whole run",
                where(*loc, "warmup"),
                _AS_PHASES,
            )
        )
    if phase.name == "SequentialLR":
        return [
            *problems,
            Problem("SequentialLR is written as a list of phases", where(*loc), as_phases(phase)),
        ]
    if phase.monitor is not None and phase.name != "ReduceLROnPlateau":
        problems.append(
            Problem(
                f"{phase.name} watches no metric; monitor is for ReduceLROnPlateau",
                where(*loc, "monitor"),
                "leave it out",
            )
        )
    if phase.name == "ChainedScheduler":
        return problems + list(_check_chain(phase, loc, where))
    problems += check_arguments(phase.name, phase.args, phase.every, loc, where)
    checks = {"ReduceLROnPlateau": _check_plateau, "OneCycleLR": _check_one_cycle}
    if phase.name in checks:
        problems += checks[phase.name](phase, loc, where)
    if phase.every == "epoch" and isinstance(phase.length, Duration) and _broken_epochs(phase.length):
        problems.append(
            Problem(
                f"`every: epoch` ticks at whole epochs, but the phase lasts {phase.length}",
                where(*loc, "for"),
                "use `every: step`, or whole epochs",
            )
        )
    return problems


def cycles_momentum(name: str, args: dict[str, Any]) -> bool:
    """Whether torch's scheduler also sets the momentum."""
    return name in CYCLES_MOMENTUM and args.get("cycle_momentum", True) is True


_AS_PHASES = "write the warm-up as the first of a list of phases: {name: LinearLR, for: 5ep, start_factor: 0.01}"


def _broken_epochs(length: Duration) -> bool:
    return length.unit == "ep" and length.value.denominator != 1


def _check_plateau(phase: Phase, loc: Loc, where: Where) -> Iterator[Problem]:
    if phase.every is not None:
        yield Problem(
            f"ReduceLROnPlateau ticks at each evaluation, not every {phase.every}",
            where(*loc, "every"),
            "leave `every` out; `eval_every` says how often the run is evaluated",
        )
    monitor = phase.monitor or DEFAULT_MONITOR
    mode = phase.args.get("mode", monitor_mode(monitor))
    if mode in ("min", "max") and mode != monitor_mode(monitor):
        yield Problem(
            f"mode: {mode} contradicts {monitor}: {'less' if mode == 'max' else 'more'} of it is better, "
            "so the LR would be reduced while the model improves",
            where(*loc, "mode"),
            "leave mode out; it follows from what is monitored",
        )


def _check_one_cycle(phase: Phase, loc: Loc, where: Where) -> Iterator[Problem]:
    for key in ("epochs", "steps_per_epoch"):
        if key in phase.args:
            yield Problem(
                f"OneCycleLR cannot take {key} here: the phase determines its length",
                where(*loc, key),
                "leave it out; `for` gives the length",
            )


def _check_chain(phase: Phase, loc: Loc, where: Where) -> Iterator[Problem]:
    for key in phase.args.keys() - {"schedulers"}:
        yield Problem(f"ChainedScheduler has no argument {key!r}", where(*loc, key), "it takes: schedulers")
    children = phase.args.get("schedulers")
    if not isinstance(children, list) or not children:
        yield Problem(
            "ChainedScheduler needs a list of schedulers whose factors multiply",
            where(*loc),
            "such as schedulers: [{name: ConstantLR, total_iters: 5ep}, {name: ExponentialLR, gamma: 0.99}]",
        )
        return
    for i, child in enumerate(children):
        here: Loc = (*loc, "schedulers", i)
        data = {"name": child} if isinstance(child, str) else child
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            yield Problem(
                "a scheduler in a chain is a mapping with a name",
                where(*here),
                "such as {name: ExponentialLR, gamma: 0.99}",
            )
        else:
            yield from _check_child(data, phase, here, where)


def _check_child(data: dict[str, Any], phase: Phase, loc: Loc, where: Where) -> Iterator[Problem]:
    name = data["name"]
    unknown = lookup.why_unknown("scheduler", name)
    refused = _NOT_IN_A_CHAIN.get(name) or ("it is a shape of ours" if name in lookup.ours("scheduler") else None)
    if unknown is not None or refused:
        what, hint = unknown or (
            f"{name} cannot stand in a ChainedScheduler: {refused}",
            "chain torch's own schedulers only",
        )
        yield Problem(what, where(*loc), hint)
        return
    takes = lookup.arguments("scheduler", name)
    for key in ("for", "every", "warmup", "monitor"):
        if key in data:
            yield Problem(
                f"a scheduler in a chain has no {key!r} of its own",
                where(*loc, key),
                "write it beside ChainedScheduler",
            )
    args = {key: value for key, value in data.items() if key not in ("name", "for", "every", "warmup", "monitor")}
    for key in args:
        if takes is not None and key not in takes.defaults:
            guess = lookup.closest(key, list(takes.defaults))
            yield Problem(
                f"{name} has no argument {key!r}",
                where(*loc, key),
                (f"did you mean {guess!r}? " if guess else "") + f"It takes: {', '.join(takes.defaults)}",
            )
    filled = {"T_max", "max_lr"}
    for key in () if takes is None else takes.required:
        if key not in args and key not in filled:
            yield Problem(f"{name} needs {key}", where(*loc), f"such as {key}: ...; it has no default")
    yield from check_arguments(name, args, phase.every, loc, where)


def _check_order(config: RunConfig, found: list[tuple[Loc, Phase]]) -> Iterator[Problem]:
    if len(config.schedule) > 1:
        for loc, phase in found:
            if phase.warmup is not None:
                yield Problem(
                    f"warmup is for a schedule of one phase; here there are {len(config.schedule)}",
                    config.where(*loc, "warmup"),
                    _AS_PHASES,
                )
    for loc, phase in found[:-1]:
        if phase.length is None:
            yield Problem(
                f"every phase but the last needs its length, and {phase.name} has none",
                config.where(*loc),
                "such as for: 5ep, or for: rest where it fills what the others leave",
            )
        if phase.name == "ReduceLROnPlateau":
            yield Problem(
                "ReduceLROnPlateau must be the last phase: what it does is not known in advance",
                config.where(*loc),
                "put the other phases before it",
            )
    rests = [loc for loc, phase in found if phase.length == "rest"]
    if len(rests) > 1:
        yield Problem(
            f"{len(rests)} phases last for the rest (the last does when it has no `for`); only one can",
            config.where(*rests[0]),
            "give the others a length, such as for: 5ep",
        )


def _check_lengths(config: RunConfig, found: list[tuple[Loc, Phase]]) -> Iterator[Problem]:
    """The phases against the run, as far as their units compare without knowing the steps of an epoch."""
    run = config.epochs or config.steps
    if run is None or (config.epochs and config.steps) or any(phase.length is None for _, phase in found):
        return
    unit, word = ("ep", "epochs") if config.epochs else ("step", "steps")
    lengths = [phase.length for _, phase in found if isinstance(phase.length, Duration)]
    known = [d.value * run / 100 if d.unit == "%" else d.value for d in lengths if d.unit in (unit, "%")]
    total = sum(known, Fraction(0))
    open_ended = len(lengths) < len(found)
    too_long = total > run or (total == run and (open_ended or len(known) < len(lengths)))
    too_short = not open_ended and len(known) == len(lengths) and total < run
    if too_long or too_short:
        sums = " + ".join(str(d) for d in lengths)
        least = "at least " if len(known) < len(lengths) else ""
        total_words = f" = {least}{float(total):g} {word}" if len(lengths) > 1 or lengths[0].unit != unit else ""
        leaves = ", which leaves nothing for the rest" if too_long and open_ended else ""
        warmup = config.schedule[0].warmup if len(config.schedule) == 1 else None
        what = f"the warm-up lasts {sums}" if warmup is not None else f"the phases last {sums}"
        loc = found[0][0] if warmup is not None else ("schedule",)
        has = f"{run} {word.removesuffix('s') if run == 1 else word}"
        yield Problem(
            f"{what}{total_words}, but the run has {has}{leaves}",
            config.where(*loc, "warmup") if warmup is not None else config.where(*loc),
            "the phases must fill the run exactly; `for: rest` takes what the others leave"
            if too_short
            else "shorten it, or give the run more " + word,
        )


def _check_momentum(config: RunConfig, phase: Phase, loc: Loc) -> Iterator[Problem]:
    """cycle_momentum where there is no momentum to cycle, as far as the optimizer's signature tells."""
    children = phase.args.get("schedulers")
    inner = [c for c in children if isinstance(c, dict)] if isinstance(children, list) else []
    if not any(cycles_momentum(c.get("name", ""), c) for c in [*inner, {"name": phase.name, **phase.args}]):
        return
    takes = lookup.arguments("optimizer", config.optimizer.name)
    if takes is None or "betas" in takes.defaults:
        return
    momentum = config.optimizer.args.get("momentum", takes.defaults.get("momentum"))
    if "momentum" not in takes.defaults or momentum in (0, "0", "0.0", "0.", None):
        yield no_momentum(
            phase.name,
            f"{config.optimizer.name} has "
            + ("momentum 0" if "momentum" in takes.defaults else "neither momentum nor betas"),
            config.where(*loc),
        )


def no_momentum(name: str, why: str, where: str) -> Problem:
    """The refusal to cycle a momentum that is not there."""
    return Problem(
        f"{name} cycles the momentum, but {why}: torch would silently train with a momentum of its own",
        where,
        "write `cycle_momentum: false`, or give the optimizer a momentum such as 0.9",
    )
