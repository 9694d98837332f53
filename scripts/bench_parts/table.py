"""One table for people, one JSON file for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench_parts.rows import Check, Row

STYLES = {"met": "green", "not met": "red", "not measured": "yellow"}


def show_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Names and values in two columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(value))
    console.print(grid)


def show_rows(console: Console, rows: Sequence[Row]) -> None:
    """The table."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", overflow="fold")
    for title in ("median", "least to most"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("unit", "ratio to"):
        table.add_column(title, overflow="fold")
    for title in ("start-up s", "peak MiB", "loss"):
        table.add_column(title, justify="right")
    section = None
    for row in rows:
        if row.section != section:
            table.add_section()
            table.add_row(Text(row.section, style="bold"))
            section = row.section
        table.add_row(*map(Text, _cells(row)))
    console.print(table)


def _cells(row: Row) -> list[str]:
    if row.median is None:
        return [f"  {row.name}: {row.note}"]
    return [
        f"  {row.name}" + (f" ({row.note})" if row.note else ""),
        short(row.median),
        f"{short(min(row.values))} to {short(max(row.values))}",
        row.unit,
        ", ".join(f"{short(value)} {name}" for name, value in row.ratios.items()),
        "" if row.start_up_seconds is None else f"{row.start_up_seconds:.1f}",
        "" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
        "" if row.loss is None else f"{row.loss[0]:.2f} -> {row.loss[1]:.2f}",
    ]


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """The thresholds that were agreed on."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("threshold", "wanted", "measured", ""):
        table.add_column(title, justify="left" if title in ("threshold", "") else "right")
    for check in checks:
        sign = ">=" if check.at_least else "<"
        measured = "" if check.value is None else f"{short(check.value)}{check.unit}"
        verdict = Text(check.verdict, style=STYLES[check.verdict])
        table.add_row(Text(check.what), f"{sign} {check.limit:g}{check.unit}", measured, verdict)
    console.print(table)


def write_json(path: Path, facts: Mapping[str, Any], rows: Sequence[Row], checks: Sequence[Check]) -> None:
    """Everything, with the value of each repeat."""
    found = {"machine": facts, "rows": [row.dump() for row in rows], "thresholds": [check.dump() for check in checks]}
    path.write_text(json.dumps(found, indent=1) + "\n")


def short(value: float) -> str:
    """Three significant digits or all whole ones: 0.0123, 1.92, 4,044."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
