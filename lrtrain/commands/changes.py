"""How a config and a dataset differ from those that a run began with: told, or refused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrtrain import lookup
from lrtrain.checkpoint.format import Checkpoint
from lrtrain.checkpoint.manifest import COPY
from lrtrain.commands.origin import flat, free_to_change
from lrtrain.config.load import DEFAULT, load, resolve
from lrtrain.config.schema import RunConfig
from lrtrain.config.yaml import Document
from lrtrain.data.fingerprint import differences
from lrtrain.data.source import Source
from lrtrain.data.sources.webdataset import absolute
from lrtrain.data.transforms import completed, is_ending
from lrtrain.errors import CheckpointError, ConfigError, LrtrainError, Problem, printable, quoted
from lrtrain.sinks.console import Screen
from lrtrain.sinks.run_dir import RunDir

MOST_DIFFERENCES = 10
# Where our own datasets take their images, and the lists of them, from.
_PLACES = tuple(f"dataset.{key}" for key in ("root", "manifest", "skip_list", "classes", "train", "val", "test"))

# Where torchvision's do; what the arguments of one's own mean, nobody knows.
_ROOTS = ("dataset.root", *(f"dataset.splits.{split}.root" for split in ("train", "val", "test")))


def refuse_edits(found: Checkpoint, began: RunConfig, run_dir: RunDir) -> RunConfig:
    """The config that a checkpoint was made with; refused where config.yaml says something else.

    Between them may lie an extension that no checkpoint has been saved in yet.

    Raises:
        ConfigError: config.yaml was edited.
        CheckpointError: the manifest's config is none.
    """
    try:
        made = resolve(Document(str(found.path / "manifest.json"), found.manifest["config"]))
    except ConfigError as error:
        what = f"the manifest's config is not one: {error.problems[0].what}"
        raise CheckpointError(what, str(found.path), COPY) from error
    earlier, later = made.extended or (), (began.extended or ())[len(made.extended or ()) :]
    is_longer = (began.extended or ())[: len(earlier)] == earlier and all(e.at >= found.step for e in later)
    # Where the weights lie that a run started from, an earlier lrtrain wrote anew where they had moved.
    same_weights = Path(str(made.model.weights)).name == Path(str(began.model.weights)).name
    refuse_differences(
        made,
        began,
        (*["extended"] * is_longer, *["model.weights"] * same_weights),
        f"{{key}} is {{new}} in config.yaml, and was {{old}} when {found.path.name} was saved",
        "config.yaml is written by lrtrain: put the value back; to train otherwise, begin another run: "
        f"lrtrain fit {run_dir.config} --out DIR",
    )
    return made


def refuse_differences(before: RunConfig, now: RunConfig, free: Sequence[str], what: str, hint: str) -> None:
    """Refuse configs that differ in more than what may change always, and what is `free` now.

    Args:
        before: the earlier config.
        now: the later one, whose lines errors point to.
        free: further keys.
        what: the error, with places for `key`, `old` and `new`.
        hint: how to mend it.
    """
    old, new = flat(before.dump()), flat(now.dump())
    # The images are held against those of then by their names and sizes, wherever they lie.
    name = before.dataset.name
    moved = _PLACES if name in lookup.ours("dataset") else () if lookup.is_path(name) else _ROOTS
    free = (*free_to_change(before), *free, *moved)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and key not in free]
    if changed:
        raise ConfigError(
            Problem(
                what.format(key=key, old=quoted(old.get(key, "absent")), new=quoted(new.get(key, "absent"))),
                now.where(*key.split(".")),
                hint,
            )
            for key in changed
        )


def weights_moved(began: str | None, given: str | None) -> bool:
    """Whether a file of weights is the same one elsewhere: it has the name of one that is gone."""
    if began is None or given is None:
        return False
    before, now = (Path(os.path.abspath(os.path.expanduser(path))) for path in (began, given))
    return before != now and before.name == now.name and not os.path.lexists(before)


def tell_of_edits(run_dir: RunDir, screen: Screen) -> None:
    """Say what ./lrtrain.yaml says otherwise by now, where the run goes on by its own config."""
    try:
        began, now = (flat(load(path).dump()) for path in (run_dir.config, DEFAULT))
    except LrtrainError:  # there is none, or it is being edited
        return
    edited = [key for key in sorted(began.keys() | now.keys()) if not _says_the_same(key, began.get(key), now.get(key))]
    if edited:
        more = f" and {len(edited) - MOST_DIFFERENCES} more" * (len(edited) > MOST_DIFFERENCES)
        what = f"{', '.join(map(printable, edited[:MOST_DIFFERENCES]))}{more}"
        screen.print(f"note: the run goes on as it began; what {DEFAULT} says otherwise is not used: {what}", "yellow")


def _says_the_same(key: str, began: Any, now: Any) -> bool:
    """Whether a config says of a key what a run resolved it to: decided what was automatic, paths from / on."""
    if began == now or key == "extended":
        return True
    if key in ("device", "precision", "deterministic"):
        # On the CPU every run repeats, whatever is written.
        return now in (None, "auto") or (key == "deterministic" and now is False)
    if key.startswith("dataset.transforms"):
        return now is None or (isinstance(now, list) and isinstance(began, list) and _is_in(now, began))
    if isinstance(now, str) and (key in _PLACES or key in _ROOTS or key == "model.weights"):
        return began in (str(Path(os.path.expanduser(now)).absolute()), absolute(now))
    return isinstance(now, list) and began == absolute(now)


def _is_in(written: Sequence[Any], resolved: Sequence[Any]) -> bool:
    """Whether a complete list of transforms is what is written and the conversions that lists get without."""
    rest = iter(resolved)
    for one in (entry for i, entry in completed(written, lambda _: (), 3) if i is not None):
        for other in rest:
            if one.items() <= other.items():
                break
            if not is_ending(other):
                return False
        else:
            return False
    return all(map(is_ending, rest))


def refuse_other_data(found: Checkpoint, source: Source, now: Mapping[str, Any]) -> None:
    """Refuse to go on with other images than a checkpoint was trained on.

    Raises:
        CheckpointError: says how they differ.
    """
    if changed := changes_of_data(found, source, now):
        raise CheckpointError(
            "the dataset is not the one that the run began with:\n" + "\n".join(changed[:MOST_DIFFERENCES]),
            str(found.path),
            "restore the dataset, or start a new run",
        )


def changes_of_data(found: Checkpoint, source: Source, now: Mapping[str, Any]) -> list[str]:
    """How a dataset differs from the one that a checkpoint was trained on, a line for each class of each split.

    What is held back as test may differ: no result of the run depends on it, and it may come later.

    Args:
        found: its manifest says what the dataset was.
        source: the dataset.
        now: its fingerprint.

    Raises:
        CheckpointError: what its manifest says of that cannot be read.
    """
    before, classes = found.manifest["classes"], list(source.classes)
    were, are = set(before), set(classes)
    lost, new = [c for c in before if c not in are], [c for c in classes if c not in were]
    said = [
        f"{len(names)} of its classes are {word}: {', '.join(map(quoted, names[:4]))}{' ...' * (len(names) > 4)}"
        for names, word in ((lost, "gone"), (new, "new"))
        if names
    ]
    if not said and before != classes:
        said = ["the order of its classes differs"]
    kept = (
        {split: classes for split, classes in parts.items() if split != "test"}
        for parts in (found.manifest["dataset"], now)
    )
    return said or differences(*kept)
