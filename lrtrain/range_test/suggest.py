"""What LR a recorded sweep suggests: pure functions of the LRs and the losses that were seen at them.

The range test is Smith 2015 (arXiv:1506.01186). Smoothing, stop rule, trimming and the four suggestions are
those of fastai 2.8 (`lr_find`), so that numbers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BETA = 0.98
_LEAST_POINTS = 20
_LEAST_FALL = 0.01
_NOISE_FACTOR = 3.0
_MOST_SPREAD = 10.0


def smooth(losses: Sequence[float] | Floats, beta: float = _BETA) -> Floats:
    """The losses as a bias-corrected moving average.

    v_k = beta v_{k-1} + (1 - beta) L_k with v_0 = 0, and smooth_k = v_k / (1 - beta^k), k from 1; a loss that
    stays the same stays exactly the same.

    Args:
        losses: one a step, shape (n,).
        beta: share of the past, 0 <= beta < 1.

    >>> smooth([2.0, 4.0], beta=0.5).tolist()
    [2.0, 3.333333333333333]
    """
    rule, smoothed = StopRule(beta=beta), []
    for loss in losses:
        rule.stops(float(loss))
        smoothed.append(rule.smoothed)
    return np.array(smoothed, dtype=np.float64)


@dataclass
class StopRule:
    """Tells a sweep after each step whether the loss has blown up, in constant time.

    Stops when the smoothed loss is above `factor` times its smallest value so far, or is not finite.

    >>> rule = StopRule(factor=4.0, beta=0.0)
    >>> [rule.stops(loss) for loss in (2.0, 1.0, 4.0, 4.1)]
    [False, False, False, True]
    """

    factor: float = 4.0
    beta: float = _BETA
    steps: int = 0
    smoothed: float = 0.0
    best: float = math.inf

    def stops(self, loss: float) -> bool:
        """Take the loss of one more step; true means that the sweep is over."""
        self.steps += 1
        # v_k / (1 - beta^k), written as a step towards the new loss: equal losses leave no rounding noise.
        share = (1 - self.beta) / (1 - self.beta**self.steps)
        self.smoothed += share * (loss - self.smoothed)
        self.best = min(self.best, self.smoothed) if math.isfinite(self.smoothed) else self.best
        return not math.isfinite(self.smoothed) or self.smoothed > self.factor * self.best


def kept(smoothed: Floats, steps_planned: int) -> slice:
    """Which points the suggestions look at.

    All but the first tenth of the plan, the last five, and whatever follows the first that is not finite.
    """
    start, stop = steps_planned // 10, max(len(smoothed) - 5, 0)
    odd = np.flatnonzero(~np.isfinite(smoothed[start:stop]))
    return slice(min(start, stop), start + int(odd[0]) if len(odd) else stop)


def trimmed(lrs: Floats, smoothed: Floats, steps_planned: int) -> tuple[Floats, Floats]:
    """The LRs and smoothed losses that the suggestions look at.

    Args:
        lrs: shape (n,).
        smoothed: shape (n,), from `smooth`.
        steps_planned: steps the sweep would have had if nothing had stopped it, n or more.
    """
    part = kept(smoothed, steps_planned)
    return lrs[part], smoothed[part]


def steepest(lrs: Floats, losses: Floats) -> float | None:
    """The LR where the loss falls fastest per logarithm of LR.

    The left point of the smallest (L_{j+1} - L_j) / (ln lr_{j+1} - ln lr_j), the first of equal ones.
    """
    if len(lrs) < 2:
        return None
    return float(lrs[np.argmin(np.diff(losses) / np.diff(np.log(lrs)))])


def valley(lrs: Floats, losses: Floats) -> float | None:
    """An LR half-way down the longest descent.

    The descent is the longest strictly falling subsequence, the first to end of equally long ones. With its
    last index `end` and its length, start = end - length (fastai's definition; not the index of its first
    point), third = (end - start) / 3, and the answer is the LR at start + floor(third) + floor(third / 2).
    Where that lies before the curve, after a descent of only the first two points, there is no answer.
    """
    if len(lrs) < 2:
        return None
    length = np.ones(len(losses), dtype=np.int64)
    for i in range(1, len(losses)):
        length[i] += length[:i].max(where=losses[:i] > losses[i], initial=0)
    end = int(np.argmax(length))
    start = end - int(length[end]) if length[end] > 1 else 0
    third = (end - start) / 3
    index = start + int(third) + int(third / 2)
    return float(lrs[index]) if index >= 0 else None


def minimum_tenth(lrs: Floats, losses: Floats) -> float | None:
    """A tenth of the LR with the smallest loss."""
    return float(lrs[np.argmin(losses)]) / 10 if len(lrs) else None


def slide(
    lrs: Floats, losses: Floats, lr_diff: int = 15, threshold: float = 0.005, adjust: float = 1.0
) -> float | None:
    """The LR where the slope begins to change, seen from the high end.

    Two points `lr_diff` apart slide down from the end as long as the slopes there, G = np.gradient(L), differ
    by more than `threshold`; the answer is the last left point for which they did (the first left point where
    none did), times `adjust`.
    """
    if len(lrs) <= lr_diff:
        return None
    slope = np.gradient(losses)
    left = len(lrs) - 1 - lr_diff
    answer = lrs[left]
    while left >= 0 and abs(slope[left + lr_diff] - slope[left]) > threshold:
        answer = lrs[left]
        left -= 1
    return float(answer) * adjust


@dataclass(frozen=True, slots=True)
class Suggestions:
    """LRs that a sweep suggests, None where it is too short to say, and a reason to doubt them, if any."""

    steepest: float | None
    valley: float | None
    minimum_tenth: float | None
    slide: float | None
    caution: str | None
    steps_planned: int

    def lrs(self) -> dict[str, float]:
        """The suggested LRs by name, without those that are missing."""
        found = {
            "steepest": self.steepest,
            "valley": self.valley,
            "minimum_tenth": self.minimum_tenth,
            "slide": self.slide,
        }
        return {name: lr for name, lr in found.items() if lr is not None}


def suggest(lrs: Sequence[float] | Floats, losses: Sequence[float] | Floats, steps_planned: int) -> Suggestions:
    """All suggestions of a sweep.

    Args:
        lrs: the LR of each step taken, rising, shape (n,).
        losses: the loss seen at each step, not smoothed, shape (n,).
        steps_planned: steps the sweep would have had if nothing had stopped it.
    """
    rates, raw = np.asarray(lrs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    smoothed = smooth(raw)
    raw = raw[kept(smoothed, steps_planned)]
    rates, curve = trimmed(rates, smoothed, steps_planned)
    found = Suggestions(
        steepest(rates, curve),
        valley(rates, curve),
        minimum_tenth(rates, curve),
        slide(rates, curve),
        caution=None,
        steps_planned=steps_planned,
    )
    return replace(found, caution=_caution(rates, raw, curve, found.lrs()))


def _caution(lrs: Floats, raw: Floats, smoothed: Floats, found: dict[str, float]) -> str | None:
    """Why the curve gives no confident answer, in words."""
    if len(lrs) < _LEAST_POINTS:
        return f"only {len(lrs)} usable points: take more steps, or start the sweep at a lower LR"
    doubts = []
    lowest = int(np.argmin(smoothed))
    fall = smoothed[0] - smoothed[lowest]
    # A moving average over white noise of deviation s has deviation s sqrt((1 - beta) / (1 + beta)).
    step_noise = float(np.median(np.abs(np.diff(raw[: lowest + 1])))) / 0.954 if lowest else 0.0
    noise = step_noise * math.sqrt((1 - _BETA) / (1 + _BETA))
    if fall <= max(_LEAST_FALL * abs(smoothed[0]), _NOISE_FACTOR * noise):
        ends = f"{smoothed[0]:.4g} to {smoothed[lowest]:.4g}"
        doubts.append(f"the smoothed loss hardly fell ({ends}): take more steps, or check model and data")
    elif lowest == len(lrs) - 1:
        doubts.append(
            f"the smoothed loss was still falling at LR {lrs[-1]:.2g}, the last used: end the sweep at a higher LR"
        )
    # Slide is left out: where the slope at the high end does not settle, it is far from any descent.
    ranked = sorted((lr, name) for name, lr in found.items() if name != "slide")
    (low, lower), (high, higher) = ranked[0], ranked[-1]
    if high > _MOST_SPREAD * low:
        doubts.append(f"{lower} and {higher} lie {high / low:.0f}x apart: look at the plot")
    return "; ".join(doubts) or None
