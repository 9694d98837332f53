"""Arguments, the runs, and the verdict."""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from accuracy_parts.lists import LISTS, NORMALIZE, Entry
from accuracy_parts.runs import Run, Setting, run
from accuracy_parts.verdict import CONFIDENCE, WIDEST, Comparison, compare
from bench_parts import folders, machine
from bench_parts.table import STYLES, show_facts

OURS, PLAIN, WITHOUT = "lrtrain", "torchvision", "lrtrain, without augmentation"
MEANINGLESS = "--quick: the figures mean nothing, and nothing is judged"


def main() -> int:
    """Train both ways and compare; 1 where a verdict is not met."""
    args = _arguments()
    import torch

    torch.set_num_threads(args.threads)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    show_facts(console, facts := _facts(args))
    with tempfile.TemporaryDirectory(prefix="lrtrain-accuracy-", dir=args.work) as work:
        folders.linked(args.cifar10 / "train", Path(work) / "train", args.images)
        folders.linked(args.cifar10 / "test", Path(work) / "test", args.test_images)
        setting = Setting(str(Path(work).resolve()), args.epochs, args.batch, args.workers)
        accuracies, compared = _all_runs(args, setting)
    console.print()
    _show_accuracies(console, accuracies, args.seeds)
    console.print()
    _show_verdicts(console, compared, judged=not args.quick)
    if args.json:
        unjudged = {"verdict": "not judged"} if args.quick else {}
        comparisons = [one.dump() | unjudged for one in compared]
        found = {"machine": facts, "accuracies": accuracies, "comparisons": comparisons}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(not args.quick and any(one.verdict != "met" for one in compared))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/accuracy",
        description="Train a small CNN on CIFAR-10 through lrtrain's engine, with lrtrain's batched and cached "
        "augmentation and with plain torchvision sample by sample, and compare the test accuracy.",
        epilog=f"Met: 0 lies in the {CONFIDENCE:.0%} interval of the difference, which is known to {WIDEST:g} point. "
        "Ends with 1 where that is not so. About 15 minutes on two cores.",
    )
    parser.add_argument("--cifar10", type=Path, metavar="DIR", required=True, help="images in train/CLASS, test/CLASS")
    parser.add_argument("--only", metavar="A,B", help=f"some of {','.join(LISTS)}")
    parser.add_argument("--seeds", type=int, default=None, help="runs of each kind (5; 2 with --quick)")
    parser.add_argument("--images", type=int, default=None, help="training images (5000; 128)")
    parser.add_argument("--test-images", type=int, default=None, help="test images, if so many are there (10000; 128)")
    parser.add_argument("--epochs", type=int, default=None, help="passes over the training images (7; 1)")
    parser.add_argument("--quick", action="store_true", help="a look at whether all works; the figures mean nothing")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="threads that training computes with")
    parser.add_argument("--workers", type=int, default=2, help="data workers, at least 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the temporary folder is made")
    args = parser.parse_args()
    for name, usual, quick in (("seeds", 5, 2), ("images", 5000, 128), ("test_images", 10_000, 128), ("epochs", 7, 1)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else usual)
    args.batch = 32 if args.quick else 128
    args.only = args.only.split(",") if args.only else list(LISTS)[: 1 if args.quick else None]
    if unknown := set(args.only) - set(LISTS):
        parser.error(f"--only {','.join(sorted(unknown))}: choose from {','.join(LISTS)}")
    if args.seeds < 2 or min(args.epochs, args.test_images, args.threads, args.workers) < 1:
        parser.error("--seeds is at least 2; --epochs, --test-images, --threads and --workers are at least 1")
    if args.images < args.batch:
        parser.error(f"--images {args.images}: less than one batch of {args.batch}")
    for split in ("train", "test"):
        if not (args.cifar10 / split).is_dir():
            parser.error(f"--cifar10 {args.cifar10}: there is no {split}/ in it")
    if args.images > (there := folders.count(args.cifar10 / "train")):
        parser.error(f"--images {args.images}: {args.cifar10 / 'train'} has {there}")
    args.test_images = min(args.test_images, folders.count(args.cifar10 / "test"))
    if importlib.util.find_spec("scipy") is None:
        parser.error("the interval needs scipy: scripts/install bench, or pip install scipy")
    return args


def _facts(args: argparse.Namespace) -> dict[str, str]:
    measured = (
        f"{args.seeds} seeds, small_cnn, {args.images:,} training and {args.test_images:,} test images, "
        f"epochs {args.epochs} of {args.images // args.batch} steps of {args.batch}; device cpu"
    )
    facts = machine.describe() | {"threads": f"{args.threads}, workers {args.workers}", "measured": measured}
    return facts | ({"quick": MEANINGLESS} if args.quick else {})


def _all_runs(args: argparse.Namespace, setting: Setting) -> tuple[dict[str, dict[str, list[float]]], list[Comparison]]:
    """Accuracies by list and way, and their comparisons. Both ways take turns, seed by seed."""
    accuracies: dict[str, dict[str, list[float]]] = {}
    compared: list[Comparison] = []
    for name in args.only:
        pairs = [
            _pair(setting, LISTS[name], seed, f"{name}, seed {seed} of {args.seeds}")
            for seed in range(1, args.seeds + 1)
        ]
        ours, plain = ([one.accuracy for one in runs] for runs in zip(*pairs, strict=True))
        accuracies[name] = {OURS: ours, PLAIN: plain}
        compared.append(compare(name, ours, plain))
    # What augmentation changes here at all: the comparison says little where that is less than its interval.
    seeds = range(1, args.seeds + 1)
    without = [_told(f"no list, seed {seed}", setting, NORMALIZE, seed, plain=False).accuracy for seed in seeds]
    accuracies["no list"] = {WITHOUT: without}
    return accuracies, compared


def _pair(setting: Setting, entries: Sequence[Entry], seed: int, what: str) -> tuple[Run, Run]:
    ours, plain = (_told(what, setting, entries, seed, plain=plain) for plain in (False, True))
    if (ours.initial, ours.steps) != (plain.initial, plain.steps):
        raise SystemExit(f"{what}: the two ways differ in more than their images: {ours}, {plain}")
    return ours, plain


def _told(what: str, setting: Setting, entries: Sequence[Entry], seed: int, *, plain: bool) -> Run:
    found = run(setting, entries, seed, plain=plain)
    way = PLAIN if plain else OURS
    print(f"  {what}, {way}: {found.accuracy:.2f} % in {found.seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def _show_accuracies(console: Console, accuracies: dict[str, dict[str, list[float]]], seeds: int) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("test accuracy, %")
    for title in (*(f"seed {seed}" for seed in range(1, seeds + 1)), "mean", "deviation"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, ways in accuracies.items():
        for way, values in ways.items():
            figures = (*values, statistics.mean(values), statistics.stdev(values))
            table.add_row(Text(f"{name}: {way}"), *(f"{value:.2f}" for value in figures))
    console.print(table)


def _show_verdicts(console: Console, compared: Sequence[Comparison], *, judged: bool) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in (f"{OURS} - {PLAIN}, points", "difference", f"{CONFIDENCE:.0%} interval", "half of it", ""):
        table.add_column(title, justify="left" if title in ("", f"{OURS} - {PLAIN}, points") else "right")
    for one in compared:
        verdict = Text(": ".join(filter(None, (one.verdict, "; ".join(one.reasons)))), style=STYLES[one.verdict])
        table.add_row(
            Text(one.name),
            f"{one.difference:+.2f}",
            f"{one.low:+.2f} to {one.high:+.2f}",
            f"{one.half_width:.2f}",
            verdict if judged else Text("not judged", style="yellow"),
        )
    console.print(table)
    if not judged:
        console.print(MEANINGLESS)
