"""The loss of a sweep over its LRs, as a picture file and in the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from lrtrain.range_test.suggest import Floats, Suggestions, kept
from lrtrain.schedule.draw import draw, short
from lrtrain.schedule.figure import COLOURS, check_suffix, label_above, plain, plain_style, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RESAMPLED = 600


@plain_style()
def save_range_test(
    path: Path,
    lrs: Floats,
    losses: Floats,
    smoothed: Floats,
    suggestions: Suggestions,
    *,
    title: str,
    chosen: str,
) -> None:
    """Write the losses of a sweep over the LR, with each suggestion marked.

    Args:
        path: a .png, .svg or .pdf file.
        lrs: the LR of each step taken, above zero, shape (n,).
        losses: the loss seen at each step, shape (n,).
        smoothed: from `smooth`, shape (n,).
        suggestions: from `suggest`.
        title: what stands above.
        chosen: the suggestion that stands out, such as `valley`.

    Raises:
        ConfigError: the suffix is not .png, .svg or .pdf.
        EnvironmentFault: the file cannot be written.
    """
    check_suffix(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    panel = figure.subplots()
    tidy(panel)
    figure.suptitle(plain(title), fontsize=12)
    ends = (float(lrs[0]), float(lrs[-1])) if lrs[0] < lrs[-1] else (lrs[0] / 2, lrs[0] * 2)
    panel.set(xscale="log", xlim=ends, ylim=loss_window(losses, smoothed))
    panel.set(xlabel="learning rate", ylabel="loss")
    panel.plot(lrs, losses, ".", color="0.55", markersize=4, alpha=0.7, label="loss of each step")
    panel.plot(lrs, smoothed, color=COLOURS[0], linewidth=2, label="smoothed")
    _mark_unused(panel, lrs, smoothed, suggestions.steps_planned)
    if len(lrs) < suggestions.steps_planned:
        _mark_stop(panel, float(lrs[-1]))
    labels = _mark_suggestions(panel, lrs, smoothed, suggestions, chosen)
    if suggestions.caution:
        figure.supxlabel("\n".join(wrap(plain(suggestions.caution), 110)), fontsize=9, color=COLOURS[1])
    panel.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    label_above(
        figure,
        panel,
        [label[:2] for label in labels],
        bold=next((text for _, text, names in labels if chosen in names), ""),
        leaders=True,
    )
    save(figure, path)


def draw_range_test(
    lrs: Floats,
    smoothed: Floats,
    suggestions: Suggestions | None = None,
    *,
    width: int,
    height: int = 10,
    unicode: bool = True,
) -> str:
    """The smoothed loss over the LR, logarithmic, for a terminal; numbers below mark the suggestions.

    Args:
        lrs: the LR of each step taken, above zero, shape (n,).
        smoothed: from `smooth`, shape (n,).
        suggestions: from `suggest`; none are marked when absent.
        width: cells to fill.
        height: lines of the plot, without axis and legend.
        unicode: false where the terminal can only show ASCII.
    """
    finite = np.isfinite(smoothed)
    if finite.sum() < 2:
        return ""
    log_lrs = np.log10(lrs[finite])
    even = np.linspace(log_lrs[0], log_lrs[-1], _RESAMPLED)
    curve = np.interp(even, log_lrs, smoothed[finite])
    curve[curve > loss_window(smoothed, smoothed)[1]] = np.nan
    decades = np.arange(math.ceil(even[0] - 1e-9), even[-1] + 1e-9)
    suggested = _by_lr(suggestions) if suggestions else {}
    marks = {str(i): lr_names for i, lr_names in enumerate(suggested.items(), start=1)}

    def place(log_lr: float) -> float:
        return float((log_lr - even[0]) / (even[-1] - even[0]))

    return draw(
        {"loss": curve},
        width=width,
        height=height,
        unicode=unicode,
        x_ticks=[(place(power), short(10.0**power)) for power in decades],
        x_marks={place(math.log10(lr)): mark for mark, (lr, _) in marks.items() if lr >= lrs[0]},
        notes=[f"{mark} {_words(names)} {short(lr)}" for mark, (lr, names) in marks.items()],
    )


def loss_window(losses: Floats, smoothed: Floats) -> tuple[float, float]:
    """The ends of a loss axis that shows the descent, and cuts off the explosion after it."""
    values = smoothed[np.isfinite(smoothed)]
    if not len(values):
        return 0.0, 1.0
    lowest = int(np.argmin(values))
    start = float(np.max(values[: lowest + 1]))
    fall = start - float(values[lowest])
    span = fall if fall > 0.05 * abs(start) else 0.25 * abs(start) or 1.0
    high = min(start + 0.6 * span, max(float(np.max(values)), start) + 0.1 * span)
    seen = float(np.min(losses, where=np.isfinite(losses), initial=float(values[lowest])))
    return max(seen, start - 3 * span) - 0.15 * span, high


def _mark_unused(panel: Axes, lrs: Floats, smoothed: Floats, steps_planned: int) -> None:
    """Shade the points that the suggestions leave out."""
    part, last = kept(smoothed, steps_planned), len(lrs) - 1
    spans = [(0, part.start), (part.stop - 1, last)] if part.start < part.stop else [(0, last)]
    for (start, stop), label in zip(spans, ("not looked at", "_"), strict=False):
        if start < stop:
            panel.axvspan(lrs[start], lrs[stop], color="0.5", alpha=0.12, linewidth=0, label=label)


def _mark_stop(panel: Axes, lr: float) -> None:
    panel.axvline(lr, color=COLOURS[1], linestyle="--", linewidth=1.2)
    panel.annotate(
        f"stopped at LR {short(lr)}",
        (lr, 0),
        (-5, 6),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        rotation=90,
        fontsize=9,
        color=COLOURS[1],
    )


def _mark_suggestions(
    panel: Axes, lrs: Floats, smoothed: Floats, suggestions: Suggestions, chosen: str
) -> list[tuple[float, str, list[str]]]:
    """Put a point on the line for each suggested LR, and say which text belongs where."""
    labels = []
    finite = np.isfinite(smoothed)
    for lr, names in _by_lr(suggestions).items():
        text = f"{_words(names)} {short(lr)}"
        if lr < lrs[0]:
            labels.append((float(lrs[0]), f"{text} (below the sweep)", names))
            continue
        height = float(np.interp(math.log(lr), np.log(lrs[finite]), smoothed[finite]))
        panel.plot([lr, lr], [height, panel.get_ylim()[1]], color="0.6", linewidth=0.8)
        panel.plot(
            lr, height, "o", color=COLOURS[1], markeredgecolor="white", zorder=4, markersize=9 if chosen in names else 6
        )
        labels.append((lr, text, names))
    return labels


def _by_lr(suggestions: Suggestions) -> dict[float, list[str]]:
    """Suggested LR -> the names of the suggestions that share it, from the lowest LR."""
    shared: dict[float, list[str]] = {}
    for name, lr in sorted(suggestions.lrs().items(), key=lambda pair: pair[1]):
        shared.setdefault(lr, []).append(name)
    return shared


def _words(names: list[str]) -> str:
    return " = ".join("minimum/10" if name == "minimum_tenth" else name for name in names)
