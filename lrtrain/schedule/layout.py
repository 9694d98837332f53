"""Phases get their place: the first and last optimizer step of each, once the steps of an epoch are known."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lrtrain.config.duration import Duration
from lrtrain.config.schedule_checks import phases
from lrtrain.config.schema import Phase, RunConfig
from lrtrain.config.yaml import Loc
from lrtrain.errors import ConfigError

# A table of this many steps takes a minute to make; ImageNet's 90 epochs at batch 256 are 450,000.
MOST_STEPS = 20_000_000
_HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A phase in its place: it sets the LR of steps `start` to `stop - 1` of a run of `total_steps`."""

    phase: Phase
    loc: Loc
    start: int
    stop: int
    steps_per_epoch: int
    total_steps: int

    @property
    def steps(self) -> int:
        """Length of the phase in optimizer steps."""
        return self.stop - self.start

    @property
    def tick_steps(self) -> int:
        """Optimizer steps for which a value is held; ticks are counted from the phase's start."""
        return self.steps_per_epoch if self.phase.every == "epoch" else 1

    @property
    def ticks(self) -> int:
        """Ticks that the phase begins."""
        return -(-self.steps // self.tick_steps)

    def count(self, value: Any) -> int:
        """A length in ticks: a bare integer is one already, a duration is converted.

        Raises:
            ValueError: it is no whole number of epochs though there is a tick an epoch, or rounds to 0.
        """
        if isinstance(value, int):
            return value
        duration = Duration.parse(value)
        if self.tick_steps == 1:
            ticks = duration.to_steps(self.steps_per_epoch, self.total_steps)
        else:
            exact = exact_steps(duration, self.steps_per_epoch, self.total_steps) / self.steps_per_epoch
            if exact.denominator != 1:
                raise ValueError(f"{duration} is {float(exact):.6g} epochs, but the scheduler ticks once an epoch")
            ticks = int(exact)
        if ticks == 0:
            raise ValueError(f"{duration} is less than half a step")
        return ticks

    def lasting(self, ticks: int) -> str:
        """Ticks of this phase in words."""
        return lasting(ticks * self.tick_steps, self.steps_per_epoch)

    def at(self, ticks: int) -> str:
        """The point of the run that lies so many ticks into this phase: `epoch 30`, or `step 500`."""
        step = self.start + ticks * self.tick_steps
        return f"step {step:,}" if step % self.steps_per_epoch else f"epoch {step // self.steps_per_epoch:,}"


def exact_steps(duration: Duration, steps_per_epoch: int, total_steps: int) -> Fraction:
    """A duration in optimizer steps, before rounding."""
    per_unit = {"ep": Fraction(steps_per_epoch), "step": Fraction(1), "%": Fraction(total_steps, 100)}
    return duration.value * per_unit[duration.unit]


def lasting(steps: int, steps_per_epoch: int) -> str:
    """A number of steps in words.

    >>> lasting(1955, 391), lasting(500, 391)
    ('5 epochs (1,955 steps)', '1.28 epochs (500 steps)')
    """
    epochs = steps / steps_per_epoch
    return (
        f"{epochs:.3g} epoch{'' if epochs == 1 else 's'} ({steps:,} step{'' if steps == 1 else 's'})"
        if epochs < 1000
        else f"{epochs:,.0f} epochs ({steps:,} steps)"
    )


def lay_out(config: RunConfig, steps_per_epoch: int) -> list[Stretch]:
    """Give every phase its first and last step; ends are rounded, not lengths, so nothing adds up.

    Raises:
        ConfigError: the phases do not fill the run exactly, or one is shorter than a step.
    """
    total = config.steps if config.steps is not None else (config.epochs or 0) * steps_per_epoch
    found = phases(config)
    exact = [
        exact_steps(phase.length, steps_per_epoch, total) if isinstance(phase.length, Duration) else None
        for _, phase in found
    ]
    given = sum((length for length in exact if length is not None), Fraction(0))
    if (None in exact and given >= total) or (None not in exact and given != total):
        raise _do_not_add_up(config, exact, given, total, steps_per_epoch)
    stretches, start, end = [], 0, Fraction(0)
    for (loc, phase), length in zip(found, exact, strict=True):
        end += total - given if length is None else length
        stop = int(end + _HALF)
        if stop == start:
            raise ConfigError(
                f"{phase.name} lasts {phase.length}, which is no whole step of this run: an epoch has "
                f"{steps_per_epoch:,} steps",
                config.where(*loc),
                "leave the phase out or make it longer",
            )
        stretches.append(Stretch(phase, loc, start, stop, steps_per_epoch, total))
        start = stop
    return stretches


def _do_not_add_up(
    config: RunConfig, exact: list[Fraction | None], given: Fraction, total: int, steps_per_epoch: int
) -> ConfigError:
    parts = [lasting(int(length + _HALF), steps_per_epoch) for length in exact if length is not None]
    sums = " + ".join(parts) + (f" = {lasting(int(given + _HALF), steps_per_epoch)}" if len(parts) > 1 else "")
    leaves = ", which leaves nothing for the rest" if None in exact else ""
    return ConfigError(
        f"the phases last {sums}, but the run has {lasting(total, steps_per_epoch)}{leaves}",
        config.where("schedule"),
        "`for: rest` takes what the other phases leave",
    )
