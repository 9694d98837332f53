"""The LR curve as a picture of characters, for terminals of any width, with and without Unicode."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from lrtrain.errors import printable

Values = Sequence[float] | NDArray[np.float64]

MOST_SERIES = 4
_FAR = 20  # between the peaks of groups
MIN_WIDTH = 20
# The eight dots of a braille character, U+2800 plus the sum of: rows downwards, left then right.
_BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
# Dots drawn and dots in a period, along the line: solid, dashed, dotted, close dashes.
_STROKES = ((1, 1), (5, 8), (1, 3), (3, 4))
_LIVE_STROKE = (1, 4)


@dataclass(frozen=True, slots=True)
class _Style:
    """Characters of one picture, and dots per character across and down."""

    across: int
    down: int
    side: str
    corner: str
    floor: str
    tick: str
    level: str
    samples: tuple[str, ...]
    live: str


_UNICODE = _Style(2, 4, "│", "└", "─", "┬", "┤", ("⠒⠒⠒⠒", "⠒⠒⠂ ", "⠂⠐ ⠂", "⠒⠂⠒⠂"), "⠂ ⠂ ")
_ASCII = _Style(1, 1, "|", "+", "-", "+", "+", ("***", "ooo", "+++", "xxx"), "...")


def draw(
    series: Mapping[str, Values],
    *,
    width: int,
    height: int = 10,
    unicode: bool = True,
    steps_per_epoch: int | None = None,
    log_y: bool = False,
    live_from: int | None = None,
    monitor: str = "val_loss",
    x_ticks: Sequence[tuple[float, str]] | None = None,
    x_marks: Mapping[float, str] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """One curve a series over the steps of a run: lines of at most `width` cells, joined by newlines.

    The line of a column reaches from the smallest to the largest value in it, so that no spike is lost. Equal
    series share a line; of more than four, four are drawn, evenly spread from the highest to the lowest.

    Args:
        series: name -> one value a step; values that are not finite are left out.
        width: cells to fill; nothing fits below 20, and the picture is empty.
        height: lines of the plot, without axis and legend.
        unicode: false where the terminal can only show ASCII.
        steps_per_epoch: the x axis counts epochs when given, and steps otherwise.
        log_y: logarithmic y axis; zero lies on its lowest line.
        live_from: the first step whose value depends on `monitor` and is only drawn in dots.
        monitor: the metric that decides there.
        x_ticks: (position from 0 to 1, label) instead of epochs or steps.
        x_marks: position from 0 to 1 -> the letter that stands on the axis there.
        notes: what the legend says besides.

    >>> print(draw({"lr": [0.0, 0.1, 0.2, 0.3]}, width=20, height=4, unicode=False))
     0.3 +           ***
         |       ****
    0.15 +    ***
       0 +****
         ++------------+
          0        4step
    """
    lines, missing = _told_apart(series)
    lines = {name: values for name, values in lines.items() if np.isfinite(values).any()}
    if width < MIN_WIDTH or height < 2 or not lines:
        return ""
    style = _UNICODE if unicode else _ASCII
    low, high = _limits(lines, log_y)
    logged = log_y and low > 0
    labels = _y_labels(low, high, logged, height)
    gutter = max(map(len, labels)) + 2
    columns = width - gutter
    steps = max(map(len, lines.values()))
    ticks = x_ticks if x_ticks is not None else _x_ticks(steps, steps_per_epoch, columns)
    scaled = [_scaled(values, low, high, logged) for values in lines.values()]
    shape = (height * style.down, columns * style.across)
    if unicode:
        strokes = zip(scaled, _STROKES, strict=False)
        rows = _braille([_dots(line, shape, stroke, live_from) for line, stroke in strokes])
    else:
        rows = _inked([_dots(line, shape, (1, 1), None) for line in scaled], style, steps, live_from)
    picture = [
        f"{label:>{gutter - 2}} {style.level if label else style.side}{row}".rstrip()
        for label, row in zip(labels, rows, strict=True)
    ]
    picture += [line.rstrip() for line in _axis(ticks, x_marks or {}, gutter, columns, style)]
    live = monitor if live_from is not None and live_from < steps else None
    return "\n".join(picture + _packed([*_legend(list(lines), missing, live, style), *notes], width))


def short(value: float, digits: int = 3) -> str:
    """A number in few characters.

    >>> short(0.1), short(0.001), short(2.5e-5), short(0)
    ('0.1', '1e-3', '2.5e-5', '0')
    """
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def _told_apart(series: Mapping[str, Values]) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Names -> values with equal series under one name, at most four, and how many are missing."""
    different: list[tuple[list[str], NDArray[np.float64]]] = []
    steps = max(map(len, series.values()), default=0)
    for name, values in series.items():
        array = np.full(steps, np.nan)
        array[: len(values)] = values
        for names, known in different:
            if np.array_equal(known, array, equal_nan=True):
                names.append(name)
                break
        else:
            different.append(([name], array))
    if len(different) > MOST_SERIES:
        different.sort(key=lambda pair: -np.max(pair[1], initial=-math.inf, where=np.isfinite(pair[1])))
    shown = min(len(different), MOST_SERIES)
    picked = [different[i * (len(different) - 1) // max(shown - 1, 1)] for i in range(shown)]
    return {", ".join(names): values for names, values in picked}, len(different) - shown


def far_apart(series: Mapping[str, Values]) -> bool:
    """Whether the peaks of the curves differ so much that the lowest would lie flat on a linear axis."""
    peaks = [float(np.max(values)) for values in map(np.asarray, series.values()) if np.size(values)]
    lit = [peak for peak in peaks if peak > 0]
    return len(lit) > 1 and max(lit) >= _FAR * min(lit)


def _limits(lines: Mapping[str, NDArray[np.float64]], log_y: bool) -> tuple[float, float]:
    """The ends of the y axis; a linear one starts at zero unless the values stay far from it."""
    values = [array[np.isfinite(array)] for array in lines.values()]
    low, high = (float(limit) for limit in (min(map(np.min, values)), max(map(np.max, values))))
    if log_y and high > 0:
        # What the lowest curve ends with may be 1e-10: four decades below its peak are enough to read.
        low = float(min(np.min(array[array > 0], initial=high) for array in values))
        low = max(low, 1e-4 * float(min(peak for array in values if (peak := np.max(array)) > 0)))
        return (low, high) if low < high else (high / 10, high)
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
        return (low, high) if low < high else (0.0, 1.0)
    return (0.0 if 0 < low < high / 2 else low), high


def _scaled(values: NDArray[np.float64], low: float, high: float, logged: bool) -> NDArray[np.float64]:
    """Values as heights from 0 to 1."""
    inside = np.clip(values, low, high)
    if logged:
        return np.asarray((np.log(inside) - math.log(low)) / (math.log(high) - math.log(low)))
    return np.asarray((inside - low) / (high - low))


def _y_labels(low: float, high: float, logged: bool, height: int) -> list[str]:
    """One label a line, from the top: the highest, middle and lowest value, and empty text elsewhere."""
    middle = math.sqrt(low) * math.sqrt(high) if logged else (low + high) / 2
    labels = [""] * height
    digits = next((d for d in (3, 4, 5, 6) if len({short(v, d) for v in (low, middle, high)}) == 3), 8)
    if height > 3:
        labels[height // 2] = short(middle, digits)
    labels[0], labels[-1] = short(high, digits), short(low, digits)
    return labels


def _x_ticks(steps: int, steps_per_epoch: int | None, columns: int) -> list[tuple[float, str]]:
    """Positions from 0 to 1 and labels at round numbers, eight cells apart or more; the last has the unit."""
    length = steps / (steps_per_epoch or 1)
    unit = "ep" if steps_per_epoch else "step"
    most = max(columns // 8, 1)
    power = 10.0 ** math.floor(math.log10(length / most))
    round_ones = [m * power for m in (1, 2, 3, 5, 10, 20, 30, 50) if length / (m * power) <= most]
    if steps_per_epoch is None:
        round_ones = [max(spacing, 1.0) for spacing in round_ones]
    ending_at_the_end = [s for s in round_ones[:3] if abs(length / s - round(length / s)) < 1e-9]
    spacing = min([*ending_at_the_end, round_ones[0]][0], length)
    count = int(length / spacing + 1e-9)
    values = [round(i * spacing, 10) for i in range(count + 1)]
    texts = [f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}" for value in values]
    texts[-1] += " " * texts[-1].endswith("k") + unit
    return [(value / length, text) for value, text in zip(values, texts, strict=True)]


def _dots(
    heights: NDArray[np.float64], shape: tuple[int, int], stroke: tuple[int, int], live_from: int | None
) -> NDArray[np.bool_]:
    """The line as dots, shape (rows, columns), row 0 on top."""
    rows, columns = shape
    starts = np.arange(columns) * len(heights) // columns
    finite = np.isfinite(heights)
    lowest = np.minimum.reduceat(np.where(finite, heights, np.inf), starts)
    highest = np.maximum.reduceat(np.where(finite, heights, -np.inf), starts)
    dots = np.zeros((rows, columns), dtype=np.bool_)
    travelled, before = 0, None
    for column in range(columns):
        if lowest[column] > highest[column]:
            before = None
            continue
        top, bottom = (round((1 - h) * (rows - 1)) for h in (highest[column], lowest[column]))
        drawn = (top, bottom)
        if before is not None:  # reach the last column's line, so that a jump is one line, not two ends
            top, bottom = min(top, before[1] + 1), max(bottom, before[0] - 1)
        live = live_from is not None and starts[column] >= live_from
        on, period = _LIVE_STROKE if live else stroke
        for row in range(top, bottom + 1):
            dots[row, column] = travelled % period < on
            travelled += 1
        before = drawn
    return dots


def _braille(dots: Sequence[NDArray[np.bool_]]) -> list[str]:
    rows, columns = dots[0].shape
    cells = np.logical_or.reduce(dots).reshape(rows // 4, 4, columns // 2, 2)
    codes = np.einsum("rdca,da->rc", cells.astype(np.int64), _BRAILLE)
    return ["".join(chr(0x2800 + int(code)) if code else " " for code in row) for row in codes]


def _inked(dots: Sequence[NDArray[np.bool_]], style: _Style, steps: int, live_from: int | None) -> list[str]:
    rows, columns = dots[0].shape
    live = np.arange(columns) * steps // columns >= (steps if live_from is None else live_from)
    cells = np.full((rows, columns), " ")
    for line, sample in reversed(list(zip(dots, style.samples, strict=False))):
        cells[line] = sample[0]
        cells[line & live] = style.live[0]
    return ["".join(row) for row in cells]


def _axis(
    ticks: Sequence[tuple[float, str]], marks: Mapping[float, str], gutter: int, columns: int, style: _Style
) -> tuple[str, str]:
    """The x axis and its labels; a label that would touch another is left out, but never the last."""
    line, labels = [style.floor] * columns, [" "] * (gutter + columns)
    free, end = 0, gutter + columns
    for position, text in [*ticks[-1:], *ticks[:-1]]:
        column = min(int(position * columns), columns - 1)
        start = min(gutter + column - (len(text) // 2 if column else 0), gutter + columns - len(text))
        last = end == gutter + columns
        line[column] = style.tick
        if start < free or (not last and start + len(text) >= end):
            continue
        labels[start : start + len(text)] = text
        free, end = (0, start) if last else (start + len(text) + 1, end)
    for position, letter in marks.items():
        line[min(int(position * columns), columns - 1)] = letter
    return " " * (gutter - 1) + style.corner + "".join(line), "".join(labels)


def _legend(names: list[str], missing: int, live: str | None, style: _Style) -> Iterator[str]:
    """Which stroke is which series; nothing for a single one."""
    if len(names) > 1:
        for sample, name in zip(style.samples, names, strict=False):
            yield f"{sample} {_plain(name, style is _UNICODE)}"
    if missing:
        yield f"and {missing} more between them"
    if live is not None:
        yield f"{style.live} live: {live}"


def _packed(entries: list[str], width: int) -> list[str]:
    """The legend's entries in lines of at most `width` cells."""
    lines: list[str] = []
    for entry in entries:
        text = entry if cell_len(entry) <= width else set_cell_size(entry, width - 2) + ".."
        if lines and cell_len(lines[-1]) + 3 + cell_len(text) <= width:
            lines[-1] += "   " + text
        else:
            lines.append(text)
    return lines


def _plain(text: str, unicode: bool) -> str:
    shown = printable(text).replace("\n", "\\n")
    return shown if unicode else shown.encode("ascii", "backslashreplace").decode()
