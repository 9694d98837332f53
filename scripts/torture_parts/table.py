"""A table for people, a JSON file for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from torture_parts.case import Found
from torture_parts.sections import SECTIONS

SHOWN_FAILURES = 12  # of each section


def show_sections(console: Console, found: Sequence[Found], left_out: Sequence[str]) -> None:
    """What was done, how often, and how often it was survived."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("section")
    table.add_column("what", overflow="fold")
    for title in ("cases", "kills", "survived", "s each"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, section in SECTIONS.items():
        ours = [one for one in found if one.case.section == name]
        if name in left_out:
            table.add_row(name, section.title, "0", "", Text("left out", style="yellow"), "")
        elif ours:
            good = sum(not one.problems for one in ours)
            each = sum(one.seconds for one in ours) / len(ours)
            kills = sum(one.counts["kills"] for one in ours)
            survived = Text(f"{good} of {len(ours)}", style="green" if good == len(ours) else "red")
            table.add_row(name, section.title, f"{len(ours)}", f"{kills or ''}", survived, f"{each:.1f}")
    console.print(table)


def show_figures(console: Console, found: Sequence[Found]) -> None:
    """What the cases counted and measured."""
    counts, figures = totals(found)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("figure")
    table.add_column("", justify="right")
    rows = {
        "kills": counts["kills"],
        "resumed runs with the same bytes: model, optimizer, EMA, metrics.jsonl, best and last": counts["same bytes"],
        "moments at which the checkpoints were verified": counts["moments"],
        "of these, without a valid checkpoint": counts["moments without a checkpoint"],
        "LRs compared to the last bit with the plan": counts["LRs"],
    }
    rows |= {key: counts[key] for key in sorted(counts) if key not in ("same bytes", "LRs") and "moments" not in key}
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    for one in found:
        for note in one.notes:
            console.print(Text(note))


def totals(found: Sequence[Found]) -> tuple[Counter[str], dict[str, float]]:
    """Counts of all cases together, and their figures."""
    counts: Counter[str] = Counter()
    figures: dict[str, float] = {}
    for one in found:
        counts.update(one.counts)
        figures |= one.figures
    return counts, figures


def show_failures(console: Console, found: Sequence[Found], how: str) -> None:
    """What was not survived, where it lies, and how to see it again."""
    shown: Counter[str] = Counter()
    for one in found:
        if not one.problems:
            continue
        shown[one.case.section] += 1
        if shown[one.case.section] > SHOWN_FAILURES:
            continue
        console.print()
        console.print(Text(f"{one.case.section} {one.case.number}: {one.case.name}", style="bold red"))
        for problem in one.problems[:6]:
            console.print(Text(f"  {problem}"))
        console.print(Text(f"  folder {one.folder}", style="dim"))
        again = f"scripts/torture {how} --only {one.case.section} --case {one.case.number}"
        console.print(Text(f"  again  {again}", style="dim"))
    for section, count in shown.items():
        if count > SHOWN_FAILURES:
            console.print(Text(f"\n{count - SHOWN_FAILURES} more failures of {section} are in --json"))


def verdict(console: Console, found: Sequence[Found], left_out: Sequence[str], seconds: float, *, judged: bool) -> bool:
    """One line; whether everything was survived."""
    failed = sum(bool(one.problems) for one in found)
    kills = totals(found)[0]["kills"]
    good = not failed and bool(found)
    words = "everything was survived" if good else f"{failed} of {len(found)} cases were not survived"
    if left_out:
        words += f"; left out: {', '.join(left_out)}"
    if not judged:
        words += "; one case only"
    console.print()
    style = "bold green" if good else "bold red"
    console.print(Text(f"{words}: {len(found):,} cases, {kills:,} kills, {seconds / 60:.1f} minutes", style=style))
    return good


def write_json(path: Path, facts: Mapping[str, str], found: Sequence[Found], left_out: Sequence[str]) -> None:
    """Everything."""
    counts, figures = totals(found)
    cases: list[dict[str, Any]] = [
        {
            **{key: value for key, value in vars(one).items() if key != "case"},
            "section": one.case.section,
            "number": one.case.number,
            "name": one.case.name,
        }
        for one in found
    ]
    content = {"machine": facts, "counts": counts, "figures": figures, "left_out": list(left_out), "cases": cases}
    path.write_text(json.dumps(content, indent=1) + "\n")
