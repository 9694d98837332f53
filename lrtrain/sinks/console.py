"""What a person sees: the plan, a bar while an epoch runs, a line an epoch, and how it ended."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from lrtrain.engine.events import (
    EpochEnded,
    Evaluated,
    Evaluating,
    Event,
    Reduced,
    Stepped,
)
from lrtrain.errors import printable


class Screen:
    """stdout, for people: never an error, whatever has become of it."""

    def __init__(self) -> None:
        self.width = shutil.get_terminal_size().columns
        self._console = Console(highlight=False, markup=False, emoji=False, width=max(self.width, 20), soft_wrap=False)
        encoding = (sys.stdout.encoding or "ascii").lower()
        self.unicode = "utf" in encoding

    def print(self, text: object = "", style: str | None = None, *, whole: bool = False) -> None:
        """Print text, escaped, or a rich table; `whole` lines are never broken, so that they can be copied."""
        shown = Text("\n".join(map(printable, text.split("\n"))), style=style or "") if isinstance(text, str) else text
        try:
            self._console.print(shown, soft_wrap=whole)
            sys.stdout.flush()
        except (OSError, ValueError):
            return

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Print names and values in two columns."""
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, Text(printable(value)))
        self.print(table)


def number(value: float) -> str:
    """Three significant digits, short: 0.1, 0.0333, 1e-05."""
    return "0" if value == 0 else f"{value:.3g}"


def counted(n: float, what: str) -> str:
    """`1 step`, `1,955 steps`, `2.5 epochs`."""
    shown = f"{n:,}" if isinstance(n, int) else f"{n:g}"
    return f"{shown} {what}" if n == 1 else f"{shown} {what}s"


def loss_words(loss: float) -> str:
    """A loss in at most nine characters."""
    return f"{loss:.4f}" if abs(loss) < 1000 else f"{loss:.3g}"


def clock(seconds: float) -> str:
    """1:05 or 2:03:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def lr_words(lr: Mapping[str, float]) -> str:
    """The LR of one group, or the range over several."""
    low, high = min(lr.values()), max(lr.values())
    return number(high) if low == high else f"{number(low)}..{number(high)}"


class Progress:
    """A bar while an epoch runs and a line when it ends."""

    COLUMNS = (
        ("epoch", 7),
        ("LR", 9),
        ("train loss", 10),
        ("val loss", 9),
        ("val acc1", 9),
        ("images/s", 9),
        ("left", 8),
    )

    def __init__(self, screen: Screen, total_steps: int, steps_per_epoch: int, start: int, several_groups: bool):
        self._screen, self._total, self._per_epoch = screen, total_steps, steps_per_epoch
        self._step = self._first = start
        self._images, self._train_seconds = 0, 0.0
        self._began = self._mark = time.perf_counter()
        self._evaluated: Evaluated | None = None
        self._bar: tqdm[Any] | None = None
        self._eval_bar: tqdm[Any] | None = None
        wanted = [(name, 18 if name == "LR" and several_groups else width) for name, width in self.COLUMNS]
        dropped = ["images/s", "train loss", "left", "val loss"]
        while sum(width + 1 for _, width in wanted) > screen.width and dropped:
            gone = dropped.pop(0)
            wanted = [column for column in wanted if column[0] != gone]
        self._columns = wanted
        self._print({name: name for name, _ in wanted}, style="bold")

    def __call__(self, event: Event) -> None:
        match event:
            case Stepped():
                self._on_step(event)
            case Evaluating():
                self._on_evaluating(event)
            case Evaluated():
                self._close_bars()
                self._evaluated = event
                if event.step % self._per_epoch:
                    self._line(event.step, f"{event.epoch:.2f}", "", event.train_loss)
            case EpochEnded():
                self._close_bars()
                self._line(event.step, str(event.epoch), lr_words(event.lr), event.train_loss)
            case Reduced():
                self._screen.print(f"        LR lowered to {lr_words(event.lr)}: {event.monitor} has not improved")

    def _on_step(self, event: Stepped) -> None:
        if self._bar is None:
            epoch, done = divmod(event.step - 1, self._per_epoch)
            self._mark = time.perf_counter()
            self._bar = tqdm(
                total=min(self._per_epoch, self._total - epoch * self._per_epoch),
                initial=done,
                desc=f"epoch {epoch + 1}",
                unit="step",
                leave=False,
                disable=None,
                dynamic_ncols=True,
            )
        self._step = event.step
        self._images += event.images
        self._bar.update()

    def _on_evaluating(self, event: Evaluating) -> None:
        if self._eval_bar is None:
            self._pause()
            self._eval_bar = tqdm(
                total=event.total, desc="evaluating", unit="img", leave=False, disable=None, dynamic_ncols=True
            )
        self._eval_bar.update(event.done - self._eval_bar.n)

    def _pause(self) -> None:
        if self._bar is not None:
            self._train_seconds += time.perf_counter() - self._mark
            self._bar.close()
            self._bar = None

    def _close_bars(self) -> None:
        self._pause()
        if self._eval_bar is not None:
            self._eval_bar.close()
            self._eval_bar = None

    def close(self) -> None:
        """Leave the terminal clean."""
        self._close_bars()

    def _line(self, step: int, epoch: str, lr: str, train_loss: float) -> None:
        evaluated = self._evaluated if self._evaluated is not None and self._evaluated.step == step else None
        elapsed = time.perf_counter() - self._began
        left = elapsed / max(self._step - self._first, 1) * (self._total - self._step)
        speed = self._images / self._train_seconds if self._train_seconds else 0.0
        self._print(
            {
                "epoch": epoch,
                "LR": lr,
                "train loss": loss_words(train_loss),
                "val loss": loss_words(evaluated.metrics.loss) if evaluated else "",
                "val acc1": f"{evaluated.metrics.acc1:.4f}" + ("*" if evaluated.best else " ") if evaluated else "",
                "images/s": f"{speed:,.0f}",
                "left": clock(left),
            }
        )
        self._images, self._train_seconds = 0, 0.0

    def _print(self, cells: Mapping[str, str], style: str | None = None) -> None:
        line = " ".join(f"{cells[name]:>{width}}" for name, width in self._columns)
        self._screen.print(line.rstrip(), style)
