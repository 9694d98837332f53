"""Read thousands of damaged configs, checkpoints and images, in processes of their own that a watchdog looks after.

Each must load or be refused by an error of lrtrain's own, within 2 s of computing and 512 MB of memory. What is not so
is kept in a folder and named with its seed and number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fuzz_parts.watch import Outcome, watched

KINDS = {"yaml": 10_000, "checkpoints": 2_000, "images": 2_000}


def main() -> int:
    """Try what was asked for; 1 where anything was found."""
    args = _arguments()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="lrtrain-fuzz-") as work:
        for kind in KINDS:
            if count := getattr(args, kind):
                found[kind] = watched(kind, args.seed, range(args.first, args.first + count), Path(work), args.keep)
    _show(console, found, args)
    return int(any(outcome.findings for outcome in found.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind, count in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"damaged {kind} ({count:,})")
    parser.add_argument("--seed", type=int, default=0, help="of the damage; a case follows from seed and number")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="number of the first case, to try one again")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), metavar="DIR", help="what was found")
    return parser.parse_args()


def _show(console: Console, found: dict[str, Outcome], args: argparse.Namespace) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for title in ("cases", "loaded", "refused", "found", "slowest s", "memory MB"):
        table.add_column(title, justify="right")
    for kind, outcome in found.items():
        counts = (outcome.cases, outcome.loaded, outcome.refused, len(outcome.findings))
        figures = (f"{outcome.slowest:.2f}", f"{outcome.growth_mb:,.0f}")
        table.add_row(kind, *(f"{count:,}" for count in counts), *figures)
    console.print(table)
    console.print()
    for kind, outcome in found.items():
        for finding in outcome.findings:
            again = f"scripts/fuzz {_only(kind)} --seed {args.seed} --first {finding.number}"
            console.print(Text(f"found in {kind}: {finding.what}\n  kept   {finding.kept}\n  again  {again}"))
    total = sum(len(outcome.findings) for outcome in found.values())
    console.print(f"{total} found" if total else "nothing found", style="red" if total else "green")


def _only(kind: str) -> str:
    return " ".join(f"--{name} {int(name == kind)}" for name in KINDS)
