"""Arguments, the cases of each section two at a time, and the tables."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from tqdm import tqdm

from bench_parts import machine
from bench_parts.table import show_facts
from torture_parts.case import Case, Found
from torture_parts.lab import Lab
from torture_parts.sections import SECTIONS
from torture_parts.table import show_failures, show_figures, show_sections, verdict, write_json
from torture_parts.trial import Trial
from torture_parts.watch import supported


def main() -> int:
    """Try everything that was asked for; 1 where anything was not survived."""
    args = _arguments()
    tqdm.monitor_interval = 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    missing = supported()
    facts = machine.describe() | {
        "cases": f"{'few of each kind' if args.quick else 'all'}, seed {args.seed}, {args.jobs} at a time",
        "watched": f"no: {missing}; sections that need it are left out" if missing else "every change of a file",
    }
    show_facts(console, facts)
    work = Path(tempfile.mkdtemp(prefix="lrtrain-torture-", dir=args.work)).resolve()
    began = time.monotonic()
    lab = Lab(work, seed=args.seed, jobs=args.jobs, quick=args.quick, watching=not missing)
    found: list[Found] = []
    left_out: list[str] = []
    try:
        for name in args.only:
            section = SECTIONS[name]
            if section.watching and missing:
                left_out.append(name)
                continue
            found += _try_all(name, section.cases, lab, args)
    finally:
        lab.close()
    console.print()
    show_sections(console, found, left_out)
    console.print()
    show_figures(console, found)
    show_failures(console, found, "--quick" if args.quick else "--full")
    good = verdict(console, found, left_out, time.monotonic() - began, judged=args.case is None)
    if args.json:
        write_json(args.json, facts, found, left_out)
    if good and not args.keep:
        shutil.rmtree(work)
    return int(not good)


def _try_all(name: str, cases: Callable[[Lab], list[Case]], lab: Lab, args: argparse.Namespace) -> list[Found]:
    try:
        chosen = [case for case in cases(lab) if args.case in (None, case.number)]
    except Exception as error:
        broken = Found(Case(name, -1, "preparing the section", print))
        broken.problems.append(f"{type(error).__name__}: {error}")
        return [broken]
    found: list[Found] = []
    with (
        ThreadPoolExecutor(lab.jobs) as pool,
        tqdm(total=len(chosen), desc=f"{name:12}", unit="case", disable=None, dynamic_ncols=True) as bar,
    ):
        waiting = [pool.submit(_try, case, lab, args.keep) for case in chosen]
        for done in as_completed(waiting):
            found.append(done.result())
            bar.update()
            if failed := sum(bool(one.problems) for one in found):
                bar.set_postfix(failed=failed)
    if not sys.stderr.isatty():
        seconds = sum(one.seconds for one in found)
        print(f"  {name}: {len(found)} cases, {seconds:.0f} s of runs", file=sys.stderr, flush=True)
    return sorted(found, key=lambda one: one.case.number)


def _try(case: Case, lab: Lab, keep: bool) -> Found:
    found = Found(case)
    folder = lab.work / f"{case.section}-{case.number}"
    folder.mkdir()
    found.folder = str(folder)
    with lab.zygote() as zygote:
        began = time.monotonic()
        try:
            case.try_it(Trial(lab, found, folder, zygote))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found.problems.append(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        found.seconds = time.monotonic() - began
    if not found.problems and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/torture",
        description="Kill, starve and damage runs of a small network, and hold each against an uninterrupted one, "
        "byte for byte.",
        epilog="Ends with 1 where anything was not survived; its folder is kept then.",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="a few cases of each kind, two minutes on two cores")
    length.add_argument("--full", action="store_true", help="all cases; the default")
    parser.add_argument("--only", metavar="A,B", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--case", type=int, metavar="N", help="one case of the section that --only names")
    parser.add_argument("--seed", type=int, default=1, help="of what is chosen by chance (1)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time (2)")
    parser.add_argument("--keep", action="store_true", help="keep the folder of every case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the folder of the runs is made")
    args = parser.parse_args(argv)
    args.only = args.only.split(",") if args.only else list(SECTIONS)
    if unknown := set(args.only) - set(SECTIONS):
        parser.error(f"--only {','.join(sorted(unknown))}: choose from {','.join(SECTIONS)}")
    if args.jobs < 1:
        parser.error("--jobs is at least 1")
    if args.case is not None and len(args.only) != 1:
        parser.error("--case needs --only with one section")
    return args
