"""Names of classes that two people, or two file systems, would take for one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from lrtrain.errors import Problem, quoted

MOST_CHARACTERS = 1_000  # of a name
MOST_CLASSES = 30_000  # a checkpoint's manifest says of each split what each has
MOST_BYTES = 3_000_000  # of all names, as a checkpoint writes them: JSON in ASCII


def unfit(classes: Sequence[str]) -> list[Problem]:
    """A problem for each name that no checkpoint could hold, and for more of them than it can."""
    problems = [
        Problem(
            f"a class name must be text of at most {MOST_CHARACTERS:,} characters; "
            + (f"{quoted(name)} has {len(name):,}" if len(name) > MOST_CHARACTERS else f"{quoted(name)} is not UTF-8"),
            hint="rename the folder, or correct the label",
        )
        for name in classes
        if len(name) > MOST_CHARACTERS or any("\ud800" <= c <= "\udfff" for c in name)
    ]
    if len(classes) > MOST_CLASSES:
        what = f"there are {len(classes):,} classes, and at most {MOST_CLASSES:,} are trained"
        problems.append(Problem(what, hint="are these labels classes?"))
    size = sum(len(ascii(name)) + 4 for name in classes)
    if size > MOST_BYTES:
        what = f"the names of the {len(classes):,} classes take {size:,} bytes; at most {MOST_BYTES:,} can be saved"
        problems.append(Problem(what, hint="are these labels classes? shorter names are needed, or fewer"))
    return problems


def twins(classes: Iterable[str], where: str) -> list[Problem]:
    """A problem for each group of names that differ only in case, in spaces around them, or in how accents are coded.

    They are one class that a second hand, another operating system or an unpacked archive wrote another way: trained
    apart, each gets a part of the images, and the accuracy has a ceiling that nobody sees.
    """
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(folded(name), []).append(name)
    return [
        Problem(
            f"classes {' and '.join(map(repr, names))} in {where} differ only in {_difference(names)}",
            hint="make them one, or give them names that differ in more",
        )
        for names in groups.values()
        if len(names) > 1
    ]


def folded(name: str) -> str:
    """What is left of a name without case, spaces around it, and the coding of accents."""
    composed = unicodedata.normalize("NFC", name).casefold()
    return " ".join(unicodedata.normalize("NFC", composed).split())


def _difference(names: list[str]) -> str:
    if len({unicodedata.normalize("NFC", name) for name in names}) == 1:
        return f"how accents are coded ({' and '.join(map(ascii, names))})"
    return "spaces" if len({"".join(name.split()) for name in names}) == 1 else "case"
