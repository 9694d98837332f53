"""`lrtrain check CONFIG|FOLDER`: everything that is wrong with a dataset, at once."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from lrtrain.build import refuse_unfit
from lrtrain.config.schema import RunConfig
from lrtrain.data.files import MAX_PROBLEMS
from lrtrain.data.open import found_source
from lrtrain.data.skip_list import written
from lrtrain.data.source import Source, absent_note
from lrtrain.data.sources.imagefolder import unsplit
from lrtrain.data.survey import KINDS, Finding, Survey, survey
from lrtrain.errors import ConfigError, DataError, LrtrainError, Problem, printable
from lrtrain.sinks.console import Screen, counted
from lrtrain.sinks.run_dir import refuse_unwritable
from lrtrain.writing import write_atomically

Problems = tuple[Problem, ...]

FOLDER_WORKERS = 2
EXAMPLES = 5  # images of each kind that are named
_COLOURS = {"problem": "red", "warning": "yellow", "note": None}


@dataclass(frozen=True)
class Checked:
    """All that was found.

    Attributes:
        problems: of the dataset as a whole, which keep it from being trained on.
        config_problems: where config and data contradict each other.
        warnings: of the dataset as a whole.
        notes: for a person.
    """

    source: Source
    survey: Survey
    problems: Problems
    config_problems: Problems
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def count(self, level: str) -> int:
        """How many problems or warnings there are: each kind of image is one."""
        own = {"problem": len(self.problems) + len(self.config_problems), "warning": len(self.warnings)}
        return own.get(level, 0) + sum(found.level == level for found in self.survey.findings)


def run(
    target: RunConfig | Path, json: Path | None, skip_list: Path | None, *, strict: bool, weights: bool = True
) -> int:
    """Look at every image of a config's dataset, or of a folder, and say all that was found; the exit code.

    Args:
        target: what is looked at.
        json: a file for what was found.
        skip_list: a file for the names of images that cannot be read.
        strict: whether warnings refuse.
        weights: whether a file of weights that the config names is to be looked at, too.
    """
    refuse_unwritable(json, "--json")
    refuse_unwritable(skip_list, "--write-skip-list")
    screen = Screen()
    if isinstance(target, Path):
        checked = _checked(unsplit(target), None, weights)
    else:
        checked = _checked(found_source(target.dataset, target.seed, target.where), target, weights)
    _show(checked, screen)
    code = _code(checked, strict)
    if skip_list is not None:
        used = target.dataset.args.get("skip_list") if isinstance(target, RunConfig) else None
        _write_skip_list(checked, skip_list, used, screen)
    if json is not None:
        write_atomically(json, json_module.dumps(_plain(checked, code), indent=1) + "\n", then="try again")
        screen.print(f"wrote {json}")
    screen.print()
    screen.print(_verdict(checked, strict, code), "bold red" if code else "bold green")
    return code


def refuse_taken(skip_list: Path | None) -> None:
    """Refuse to write a skip list where a file is.

    Raises:
        ConfigError: names it.
    """
    if skip_list is not None and skip_list.exists():
        what = f"{str(skip_list)!r} is there already, and somebody may have reviewed it"
        raise ConfigError(what, hint="name another file: --write-skip-list FILE")


def _checked(source: Source, config: RunConfig | None, weights: bool) -> Checked:
    found = survey(source, FOLDER_WORKERS if config is None else config.workers)
    absent = _absent(source)
    of_images, of_config = ((), ()) if config is None else _of_config(source, config, found, weights)
    return Checked(
        source,
        found,
        (*source.problems, *of_images),
        of_config,
        tuple(absent.values()),
        tuple(note for note in source.notes if not note.startswith(tuple(f"no {name} images of" for name in absent))),
    )


def _absent(source: Source) -> dict[str, str]:
    """By split, a warning of classes that are trained on and not evaluated."""
    counts = source.counts()
    trained = tuple(name for name, n in counts["train"].items() if n)
    each = {
        split: absent_note(split, trained, {name for name, n in own.items() if n})
        for split, own in counts.items()
        if split != "train" and any(own.values())
    }
    return {split: warning for split, warning in each.items() if warning}


def _of_config(source: Source, config: RunConfig, found: Survey, weights: bool) -> tuple[Problems, Problems]:
    """What is wrong with the images for a config, and with its model, groups, schedule, batches and transforms."""
    if not len(source.train):
        return (), ()
    try:
        left = found.without_unreadable(source)
        refuse_unfit(config, source, left, {split: facts.telling for split, facts in found.splits.items()}, weights)
    except DataError as error:
        return error.problems, ()
    except LrtrainError as error:
        return (), error.problems
    return (), ()


def _code(checked: Checked, strict: bool) -> int:
    data = bool(checked.problems) or any(found.level == "problem" for found in checked.survey.findings)
    if data or (strict and checked.count("warning")):
        return 3
    return 2 if checked.config_problems else 0


def _show(checked: Checked, screen: Screen) -> None:
    screen.print(_table(checked.survey, checked.source))
    notes = [f"{_words(found)}{_named(found)}" for found in checked.survey.findings if found.level == "note"]
    notes += checked.notes
    if notes:
        screen.print()
        screen.facts([("note", note) for note in notes])
    for warning in checked.warnings:
        screen.print(f"\nwarning: {printable(warning)}", _COLOURS["warning"])
    for level in ("warning", "problem"):
        for found in checked.survey.findings:
            if found.level == level:
                _show_finding(found, screen)
    problems = (*checked.problems, *checked.config_problems)
    for problem in problems[:MAX_PROBLEMS]:
        screen.print()
        screen.print(str(problem), _COLOURS["problem"], whole=True)
    if len(problems) > MAX_PROBLEMS:
        screen.print(f"\nerror: and {len(problems) - MAX_PROBLEMS:,} more of these", _COLOURS["problem"])


def _show_finding(found: Finding, screen: Screen) -> None:
    label = "error" if found.level == "problem" else found.level
    screen.print(f"\n{label}: {_words(found)}", _COLOURS[found.level])
    for name, detail in found.images[:EXAMPLES]:
        # Whole, so that it can be copied.
        screen.print(f"  {printable(_example(found.kind, name, detail))}", whole=True)
    if found.count > EXAMPLES:
        screen.print(f"  and {found.count - EXAMPLES:,} more")
    if hint := KINDS[found.kind][2]:
        screen.facts([("  hint", hint)])


def _words(found: Finding) -> str:
    return f"{counted(found.count, 'image')} {KINDS[found.kind][1]}"


def _named(found: Finding) -> str:
    """The first image, of a kind whose images are not listed."""
    name = printable(found.images[0][0]) if found.images else ""
    return f"; it is {name}" if found.count == 1 and name else f", such as {name}" if name else ""


def _example(kind: str, name: str, detail: str) -> str:
    if not detail:
        return name
    return {"unreadable": f"{name}: {detail}", "damaged": f"{name}: {detail}", "extension": f"{name} is {detail}"}.get(
        kind, f"{name} = {detail}"
    )


def _table(found: Survey, source: Source) -> Table:
    """Numbers by split."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    splits = {name: facts for name, facts in found.splits.items() if facts.images or name == "train"}
    for name in splits:
        table.add_column(name, justify="right", overflow="fold")
    table.add_row("images", *(f"{facts.images:,}" for facts in splits.values()))
    table.add_row("classes", *(f"{sum(n > 0 for n in facts.per_class.values()):,}" for facts in splits.values()))
    table.add_row("per class", *(_range(list(facts.per_class.values())) for facts in splits.values()))
    if any(facts.unreadable for facts in splits.values()):
        table.add_row("unreadable", *(f"{facts.unreadable:,}" for facts in splits.values()))
    for kind in sorted({kind for facts in splits.values() for kind in facts.formats}):
        table.add_row(kind, *(f"{facts.formats[kind]:,}" for facts in splits.values()))
    table.add_row("smallest", *(_size(facts.smallest) for facts in splits.values()))
    table.add_row("largest", *(_size(facts.largest) for facts in splits.values()))
    return table


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _size(size: tuple[int, int] | None) -> str:
    return "" if size is None else f"{size[0]}x{size[1]}"


def _verdict(checked: Checked, strict: bool, code: int) -> str:
    """One line."""
    images = sum(facts.images for facts in checked.survey.splits.values())
    what = f"{counted(images, 'image')} in {len(checked.source.classes):,} classes"
    warnings = checked.count("warning")
    said = counted(warnings, "warning")
    if problems := checked.count("problem"):
        return f"{what}: {counted(problems, 'problem')}, {said}; `lrtrain fit` would refuse"
    if code and strict:
        return f"{what}: {said}, which --strict refuses"
    return f"{what}: {said}, no problem" if warnings else f"{what}: nothing wrong"


def _write_skip_list(checked: Checked, path: Path, used: str | None, screen: Screen) -> None:
    screen.print()
    unreadable = checked.survey.unreadable()
    if not unreadable:
        screen.print(f"no image that cannot be read: {path} is not written")
        return
    write_atomically(path, written(unreadable), then="try again")
    count = counted(len(unreadable), "image")
    then = f"leave them out with `skip_list: {path}` inside `dataset`" if used is None else f"add its lines to {used}"
    screen.print(f"wrote {path}, {count}: review it, then {then}")


def _plain(checked: Checked, code: int) -> dict[str, Any]:
    """What was found, for programs."""
    return {
        "exit_code": code,
        "classes": list(checked.source.classes),
        "splits": {
            name: {
                "images": facts.images,
                "classes": facts.per_class,
                "unreadable": facts.unreadable,
                "formats": dict(facts.formats),
                "smallest": facts.smallest,
                "largest": facts.largest,
            }
            for name, facts in checked.survey.splits.items()
        },
        "problems": [
            {"what": problem.what, "where": problem.where, "hint": problem.hint}
            for problem in (
                *checked.problems,
                *checked.config_problems,
                *(Problem(_words(f), None, KINDS[f.kind][2]) for f in checked.survey.findings if f.level == "problem"),
            )
        ],
        "warnings": list(checked.warnings),
        "notes": list(checked.notes),
        "findings": [
            {
                "kind": found.kind,
                "level": found.level,
                "words": KINDS[found.kind][1],
                "count": found.count,
                "images": [{"name": name, "detail": detail} for name, detail in found.images],
            }
            for found in checked.survey.findings
        ],
    }
