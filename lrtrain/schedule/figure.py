"""The LR curve as a picture file."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrtrain.errors import ConfigError, EnvironmentFault, printable, what_to_do
from lrtrain.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Values = Sequence[float] | NDArray[np.float64]

SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, told apart by people who are colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MOST_POINTS = 4000
_MOST_ENTRIES = 16
_MOST_LETTERS = 36


def check_suffix(path: Path) -> None:
    """Refuse a picture file whose suffix names no known format.

    Raises:
        ConfigError: the suffix is not .png, .svg or .pdf.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"a picture file ends in {', '.join(SUFFIXES)}; {path.name!r} does not",
            hint=f"write {path.with_suffix('.png').name if path.name else 'curve.png'}",
        )


def import_matplotlib() -> Any:
    """The package, which takes a while to import.

    Raises:
        EnvironmentFault: a person's own settings of it are wrong.
    """
    os.environ["MPLBACKEND"] = "agg"  # all pictures are files; Jupyter's, for one, may not be installed here
    # It would read a matplotlibrc of this folder first, which may be a run from elsewhere, and hand it to `eval`.
    elsewhere = chdir(os.path.abspath(os.sep)) if os.path.exists("matplotlibrc") else nullcontext()
    try:
        with elsewhere:
            import matplotlib as mpl
    except Exception as error:
        hint = "mend or remove the matplotlibrc"
        raise EnvironmentFault(f"matplotlib cannot be used: {error}", hint=hint) from error
    return mpl


@contextmanager
def plain_style() -> Iterator[None]:
    """As matplotlib is shipped: a person's own settings may ask for LaTeX, which may lack and reads names as code."""
    mpl = import_matplotlib()
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


@plain_style()
def save_curve(
    path: Path,
    series: Mapping[str, Values],
    steps_per_epoch: int,
    *,
    title: str,
    momentum: Mapping[str, Values] | None = None,
    live_from: int | None = None,
    monitor: str = "val_loss",
    phases: Sequence[tuple[str, int, int]] = (),
    log_y: bool = False,
) -> None:
    """Write the LR of every group over the epochs, with the phases named, and momentum below.

    Args:
        path: a .png, .svg or .pdf file.
        series: group -> one LR a step; equal ones share a line.
        steps_per_epoch: optimizer steps in one epoch.
        title: what stands above.
        momentum: group -> one momentum or beta1 a step, shown only when given.
        live_from: the first step whose LR depends on `monitor`.
        monitor: the metric that decides there.
        phases: (name, first step, step after its last) in order.
        log_y: logarithmic LR axis.

    Raises:
        ConfigError: the suffix is not .png, .svg or .pdf.
        EnvironmentFault: the file cannot be written.
    """
    check_suffix(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5 if momentum else 4.5), layout="constrained")
    ratios = [3, 1] if momentum else [1]
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    figure.suptitle(plain(title), fontsize=12)
    lines = _lines(panels[0], series, steps_per_epoch, live_from)
    panels[0].set(ylabel="learning rate", yscale="log" if log_y else "linear")
    if not log_y and all(np.nanmin(np.asarray(values)) >= 0 for values in series.values()):
        panels[0].set_ylim(bottom=0)
    if momentum:
        _lines(panels[1], momentum, steps_per_epoch, live_from)
        panels[1].set_ylabel("momentum")
    end = max(map(len, series.values())) / steps_per_epoch
    panels[-1].set(xlabel="epoch", xlim=(0, end))
    for panel in panels:
        tidy(panel)
        for _, start, _ in phases[1:]:
            panel.axvline(start / steps_per_epoch, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)))
        if live_from is not None:
            panel.axvspan(min(live_from / steps_per_epoch, end), end, color="0.5", alpha=0.1, linewidth=0)
    if live_from is not None and live_from / steps_per_epoch < end:
        panels[0].annotate(
            f"live: {plain(monitor)}",
            (1, 0),
            (-6, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            color="0.35",
            fontsize=9,
        )
    _legend(figure, lines)
    if len(phases) > 1:
        middles = [(start + stop) / 2 / steps_per_epoch for _, start, stop in phases]
        label_above(figure, panels[0], list(zip(middles, [name for name, _, _ in phases], strict=True)))
    save(figure, path)


def label_above(
    figure: Figure, panel: Axes, labels: Sequence[tuple[float, str]], *, bold: str = "", leaders: bool = False
) -> None:
    """Write each text above the panel at its x, one line higher wherever it would touch another.

    Args:
        figure: the figure that the panel is part of.
        panel: where the x positions count.
        labels: (x in the panel's data, text), in any order.
        bold: the text that stands out.
        leaders: draw a line down from each text to the panel.
    """
    where: dict[str, Any] = {
        "xycoords": ("data", "axes fraction"),
        "textcoords": "offset points",
        "annotation_clip": False,
    }
    behind = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"} if leaders else None
    texts = [
        panel.annotate(
            plain(text),
            (x, 1),
            (0, 4),
            ha="center",
            va="bottom",
            fontsize=9,
            color="0.2",
            weight="bold" if text == bold else "normal",
            bbox=behind,
            **where,
        )
        for x, text in sorted(labels)
    ]
    with _letters_may_lack():
        figure.draw_without_rendering()
    inside, pixels_per_point = panel.get_window_extent(), figure.dpi / 72
    ends: list[float] = []
    for text in texts:
        box = text.get_window_extent()
        shift = max(0.0, inside.x0 - box.x0) - max(0.0, box.x1 - inside.x1)
        level = next((i for i, end in enumerate(ends) if end + 6 < box.x0 + shift), len(ends))
        ends[level : level + 1] = [box.x1 + shift]
        text.set_position((shift / pixels_per_point, 4 + 13 * level))
        if leaders:
            panel.annotate(
                "",
                text.xy,
                (0, 4 + 13 * level),
                zorder=0,
                arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.8},
                **where,
            )


def tidy(panel: Axes) -> None:
    """A panel with a light grid and without the frame's upper and right side."""
    panel.grid(visible=True, color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)


def plain(text: str) -> str:
    """`text` as matplotlib shows it letter by letter: nothing between dollars is read as mathematics."""
    return printable(text).replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, with its text kept as text in an SVG; what a link of that name leads to stays as it is.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    try:
        with import_matplotlib().rc_context({"svg.fonttype": "none"}), _letters_may_lack():
            figure.savefig(drawn := BytesIO(), format=path.suffix[1:].lower(), dpi=150)
        with replacing(path) as file:
            file.write(drawn.getvalue())
    except OSError as error:
        why = error.strerror or str(error)
        known = error.errno not in (errno.ENOENT, errno.ENOTDIR)
        hint = what_to_do(error, "try again") if known else "name a file in a folder that is there"
        raise EnvironmentFault(f"cannot write the picture: {why}", str(path), hint) from error


@contextmanager
def _letters_may_lack() -> Iterator[None]:
    """Letters that the font lacks are drawn as boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _lines(panel: Axes, series: Mapping[str, Values], steps_per_epoch: int, live_from: int | None) -> dict[str, Line2D]:
    """Draw each different series, and say which line has which names."""
    names: dict[bytes, list[str]] = {}
    for name, values in series.items():
        names.setdefault(np.asarray(values, dtype=np.float64).tobytes(), []).append(name)
    lines: dict[str, Line2D] = {}
    for i, (values, known_as) in enumerate(names.items()):
        y = np.frombuffer(values)
        colour = COLOURS[i] if len(names) <= len(COLOURS) else _graded(i / (len(names) - 1))
        split = len(y) if live_from is None else min(live_from, len(y))
        for start, stop, style in ((0, split, "-"), (split, len(y), (0, (1, 2)))):
            if start == stop:
                continue
            at = start + _kept(y[start:stop])
            # A step's LR holds until the next step, and the last one's until the end.
            epochs = np.append(at, stop) / steps_per_epoch
            held = np.append(y[at], y[min(stop, len(y) - 1)])
            (line,) = panel.plot(epochs, held, color=colour, ls=style, drawstyle="steps-post", linewidth=1.6)
            lines.setdefault(", ".join(known_as), line)
    return lines


def _graded(part: float) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["viridis"](0.9 * part)
    return red, green, blue, alpha


def _kept(y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of a few thousand values that draw the same line: an even grid and the sharpest bends."""
    if len(y) <= _MOST_POINTS:
        return np.arange(len(y))
    grid = np.linspace(0, len(y) - 1, _MOST_POINTS // 2).astype(np.int64)
    bends = np.argsort(-np.abs(np.diff(y, 2)), kind="stable")[: _MOST_POINTS // 4]
    return np.unique(np.concatenate([grid, bends, bends + 1, bends + 2]))


def _cut(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 3] + "..."


def _legend(figure: Figure, lines: Mapping[str, Line2D]) -> None:
    """Names beside the panels, where they hide nothing; none for a single line."""
    if len(lines) < 2:
        return
    from matplotlib.lines import Line2D

    # matplotlib hides names that begin with an underscore; a space before them shows them.
    entries = [(plain(" " * name.startswith("_") + _cut(name)), line) for name, line in lines.items()]
    if len(entries) > _MOST_ENTRIES:
        half = _MOST_ENTRIES // 2
        between = (f"... {len(entries) - 2 * half} more ...", Line2D([], [], linestyle=""))
        entries = [*entries[:half], between, *entries[-half:]]
    texts, handles = zip(*entries, strict=True)
    figure.legend(handles, texts, loc="outside right upper", frameon=False, fontsize=9)
