"""Arguments, what is measured with them, and the table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from bench_parts import beside, folders, machine, training
from bench_parts.rows import Check, Row
from bench_parts.table import show_checks, show_facts, show_rows, write_json
from bench_parts.task import Task
from bench_parts.training import Window

SECTIONS = ("a", "b", "c", "lr-control", "start-up", "checkpoint", "range-test", "evaluation", "cache")
ON_GPU = ("gpu-small", "gpu-large", "gpu-profile")
TITLES = {
    "a": "(a) CIFAR-10 folder, resnet18 at 32 px",
    "b": "(b) CIFAR-10 folder, small CNN at 32 px",
    "c": "(c) photos, resnet18 at 224 px",
    "gpu-small": "GPU, CIFAR-10 folder, resnet18 at 32 px",
    "gpu-large": "GPU, photos, resnet50 at 224 px",
}
CIFAR_BATCH, PHOTO_BATCH, GPU_PHOTO_BATCH = 128, 32, 128
TEST_SHARE = 5  # training images for each test image, as in CIFAR-10

Outcome = tuple[list[Row], list[Check]]


def main() -> int:
    """Measure what was asked for; 1 where something failed, whatever the thresholds say."""
    args = _arguments()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    device = "cuda" if set(args.only) & set(ON_GPU) else "cpu"
    facts = machine.describe() | {
        "threads": f"{args.threads}, workers {args.workers}",
        "measured": f"{args.repeats} repeats in turns, a fresh process each; "
        f"{args.steps} steps after {args.warm_up} to warm up; {args.photo_images:,} photos; device {device}",
    }
    show_facts(console, facts)
    rows: list[Row] = []
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="lrtrain-bench-", dir=args.work) as work:
        for section, measure in _measurements(args, Path(work)).items():
            console.print(f"\nmeasuring {section}", style="bold")
            found, thresholds = measure()
            rows, checks = rows + found, checks + thresholds
            if args.json:
                write_json(args.json, facts, rows, checks)
    console.print()
    show_rows(console, rows)
    console.print()
    show_checks(console, checks)
    return int(any(row.note.startswith("failed") for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--cifar10", type=Path, metavar="DIR", help="CIFAR-10 as images in train/CLASS and test/CLASS")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photos in train/CLASS and val/CLASS")
    parser.add_argument("--only", metavar="A,B", help=f"some of {','.join(SECTIONS)}; on a GPU {','.join(ON_GPU)}")
    parser.add_argument("--repeats", type=int, default=None, help="of every measurement (5; 1 with --quick)")
    parser.add_argument("--steps", type=int, default=None, help="measured steps of (a) and (b): an epoch (390; 20)")
    parser.add_argument("--photo-images", type=int, default=None, help="photos in an epoch of (c) (2000; 96)")
    parser.add_argument("--quick", action="store_true", help="a look at whether all works; the figures mean nothing")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="threads that each process computes with")
    parser.add_argument("--workers", type=int, default=2, help="data workers of each contestant")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, after each section")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where temporary folders are made")
    args = parser.parse_args()
    args.repeats = args.repeats or (1 if args.quick else 5)
    args.steps = args.steps or (20 if args.quick else 390)
    args.photo_images = args.photo_images or (96 if args.quick else 2000)
    args.warm_up = 3 if args.quick else 10
    args.only = args.only.split(",") if args.only else list(SECTIONS)
    if unknown := set(args.only) - {*SECTIONS, *ON_GPU}:
        parser.error(f"--only {','.join(sorted(unknown))}: choose from {','.join((*SECTIONS, *ON_GPU))}")
    if args.steps < 2 or min(args.repeats, args.threads, args.photo_images) < 1 or args.workers < 0:
        parser.error("--steps is at least 2, --repeats, --threads and --photo-images are at least 1")
    for name, sections in (
        ("cifar10", {*SECTIONS, "gpu-small"} - {"c", "start-up"}),
        ("photos", {"c", "gpu-large"}),
    ):
        folder = getattr(args, name)
        if folder is None and sections & set(args.only):
            parser.error(f"--{name} DIR is needed for {','.join(s for s in args.only if s in sections)}")
        if folder is not None and not (folder / "train").is_dir():
            parser.error(f"--{name} {folder}: there is no train/ in it")
    return args


def _measurements(args: argparse.Namespace, work: Path) -> dict[str, Callable[[], Outcome]]:
    """What is measured, in order, as functions still to be called."""
    repeats = args.repeats
    wanted = set(args.only)
    made: dict[str, Callable[[], Outcome]] = {}
    if wanted - {"c", "start-up", *ON_GPU}:
        cifar = _cifar(args, work)
        every = min(50, args.steps // 2)
        saved = min(args.steps, 4 * every)
        few = 100 if not args.quick else 20
        made = {
            "a": partial(_train, "a", cifar, _after_warm_up("a", args), repeats),
            "b": partial(_train, "b", replace(cifar, model="small_cnn"), _after_warm_up("b", args), repeats),
            "lr-control": partial(beside.lr_control, replace(cifar, steps=few), repeats, _tell),
            "checkpoint": partial(
                beside.checkpoint, replace(cifar, steps=args.warm_up + saved), args.warm_up, every, repeats, _tell
            ),
            "range-test": partial(beside.range_test, replace(cifar, steps=few), repeats, _tell),
            "evaluation": partial(beside.evaluation, cifar, repeats, _tell),
            "cache": partial(beside.cache, cifar, repeats, _tell),
        }
    if "c" in wanted:
        photos = _photos(args, work, args.photo_images, PHOTO_BATCH)
        epoch = photos.per_epoch
        windows = [
            Window(f"{TITLES['c']}, batch {photos.batch}, {name}", start, start + epoch)
            for name, start in (("first epoch", 0), ("later epochs", epoch))
        ]
        made["c"] = partial(_train, "c", photos, windows, repeats)
    made |= _on_gpu(args, work, wanted)
    made["start-up"] = partial(beside.start_up, work, args.threads, repeats, _tell)
    return {section: made[section] for section in (*SECTIONS, *ON_GPU) if section in wanted}


def _on_gpu(args: argparse.Namespace, work: Path, wanted: set[str]) -> dict[str, Callable[[], Outcome]]:
    """Both tasks are profiled, or those of the folders that are given."""
    made: dict[str, Callable[[], Outcome]] = {}
    tasks: list[Task] = []
    profiled = "gpu-profile" in wanted
    if "gpu-small" in wanted or (profiled and args.cifar10):
        tasks.append(replace(_cifar(args, work), device="cuda"))
        made["gpu-small"] = partial(_train, "gpu-small", tasks[-1], _after_warm_up("gpu-small", args), args.repeats)
    if "gpu-large" in wanted or (profiled and args.photos):
        # ImageNet has ten thousand steps an epoch: no end of one, with its checkpoint, is among those measured here.
        photos = _photos(args, work, 100 * GPU_PHOTO_BATCH, GPU_PHOTO_BATCH)
        photos = replace(photos, model="resnet50", augment="resized_crop_of_256", device="cuda", steps=100)
        tasks.append(photos)
        made["gpu-large"] = partial(
            _train, "gpu-large", photos, [Window(f"{TITLES['gpu-large']}, batch {photos.batch}", 30, 100)], args.repeats
        )
    made["gpu-profile"] = partial(_profiled, tasks, args.repeats)
    return made


def _profiled(tasks: list[Task], repeats: int) -> Outcome:
    found = [beside.gpu_steps(replace(task, steps=150), repeats, _tell) for task in tasks]
    return [row for rows, _ in found for row in rows], [check for _, checks in found for check in checks]


def _train(key: str, task: Task, windows: list[Window], repeats: int) -> Outcome:
    rows = training.train_all(key, task, windows, repeats, _tell)
    return rows, training.checks(key, rows, windows)


def _after_warm_up(key: str, args: argparse.Namespace) -> list[Window]:
    return [Window(f"{TITLES[key]}, batch {CIFAR_BATCH}", args.warm_up, args.warm_up + args.steps)]


def _cifar(args: argparse.Namespace, work: Path) -> Task:
    """An epoch has as many steps as are measured, so that exactly one of its ends is among them."""
    most = folders.count(args.cifar10 / "train") // CIFAR_BATCH
    if args.steps > most:
        raise SystemExit(f"--steps {args.steps}: {args.cifar10} has images for {most} steps of {CIFAR_BATCH}")
    root, images = work / "cifar10", args.steps * CIFAR_BATCH
    classes = folders.linked(args.cifar10 / "train", root / "train", images)
    folders.linked(args.cifar10 / "test", root / "test", images // TEST_SHARE)
    common = {"model": "resnet18", "size": 32, "augment": "crop", "batch": CIFAR_BATCH, "classes": classes}
    return _task(args, root, work, steps=args.warm_up + args.steps, per_epoch=args.steps, **common)


def _photos(args: argparse.Namespace, work: Path, images: int, batch: int) -> Task:
    """Two epochs of the photos, repeated until there are enough."""
    root, per_epoch = work / f"photos-{batch}", -(-images // batch)
    classes = folders.linked(args.photos / "train", root / "train", per_epoch * batch)
    folders.linked(args.photos / "val", root / "test", batch)
    common = {"model": "resnet18", "size": 224, "augment": "resized_crop", "batch": batch, "classes": classes}
    return _task(args, root, work, steps=2 * per_epoch, per_epoch=per_epoch, **common)


def _task(args: argparse.Namespace, root: Path, work: Path, **fields: Any) -> Task:
    return Task(
        part="",
        root=str(root.resolve()),
        work=str(work.resolve()),
        workers=args.workers,
        threads=args.threads,
        **fields,
    )


def _tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
