"""What is found in a dataset as a whole: counts, and each kind of problem with the images that have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lrtrain.data.build import some
from lrtrain.data.inspect import DIGEST_BYTES, Look, looks
from lrtrain.data.source import InFiles, Part, Source, Split, unwrapped

Level = Literal["problem", "warning", "note"]
MOST_NAMED = 1000  # images of a kind that are kept by name, but for those that cannot be read

# What one image, or several of them, may be found to be: how bad that is, in words after a count, and what to do.
KINDS: dict[str, tuple[Level, str, str]] = {
    "unreadable": ("problem", "cannot be read", "restore or remove them; --write-skip-list FILE lists them for review"),
    "damaged": (
        "warning",
        "damaged, and read as far as that goes",
        "look at them; restore them, or leave them out with `skip_list`",
    ),
    "extension": ("warning", "with another content than the extension says", "content decides; rename the files"),
    "blank": ("warning", "of one colour throughout", "look at them; `skip_list` leaves images out"),
    "link": ("warning", "behind links that lead out of the root", "elsewhere they may lead to other images, or none"),
    "leak": ("warning", "in train and in a split that is evaluated", "remove them from one, or accuracy is too good"),
    "two classes": (
        "warning",
        "in two classes at once",
        "one label is wrong: remove the image from that class",
    ),
    "twice": ("warning", "repeated in the same split and class", "remove them, or they count more than others"),
    "16 bits": ("note", "of gray of more than 8 bits: scaled to 8", ""),
    "palette": ("note", "with a palette: colours are looked up", ""),
    "colour space": ("note", "in CMYK, YCbCr, LAB or HSV: converted to RGB", ""),
    "alpha": ("note", "with transparency: put on white", ""),
    "frames": ("note", "with several frames or pages: the first counts", ""),
    "turned": ("note", "turned or mirrored by EXIF: put upright", ""),
    "gray": ("note", "in gray: repeated in three channels", ""),
    "colour": ("note", "in colour: made gray", ""),
}


@dataclass
class Finding:
    """The images of one kind: how many, and some by name, each with what is to be said of it."""

    kind: str
    count: int = 0
    images: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, detail: str = "") -> None:
        """One more."""
        self.count += 1
        if self.kind == "unreadable" or len(self.images) < MOST_NAMED:
            self.images.append((name, detail))

    @property
    def level(self) -> Level:
        """How bad it is."""
        return KINDS[self.kind][0]


@dataclass
class SplitFacts:
    """A split in numbers: images, of each class and format, and the sizes in px with fewest and most pixels.

    `able` are the numbers of the images that can be read, and `telling` which of these, counted among them, transforms
    may be tried on: those with the least and the most height, width and width in proportion to it, and some more.
    """

    images: int
    per_class: dict[str, int]
    unreadable: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    able: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64), compare=False)
    telling: tuple[int, ...] = ()
    _ends: dict[tuple[str, bool], tuple[float, int]] = field(default_factory=dict)

    def add(self, i: int, look: Look) -> None:
        """One more image, number i."""
        if look.why:
            self.unreadable += 1
            return
        if look.format:
            self.formats[look.format] += 1

        def pixels(size: tuple[int, int]) -> tuple[int, int]:
            return size[0] * size[1], size[0]

        self.smallest = min(self.smallest or look.size, look.size, key=pixels)
        self.largest = max(self.largest or look.size, look.size, key=pixels)
        width, height = look.upright
        for what, value in (("width", width), ("height", height), ("shape", width / max(1, height))):
            for least in (True, False):
                end = self._ends.get((what, least))
                if end is None or (value < end[0] if least else value > end[0]):
                    self._ends[what, least] = value, i

    def finish(self, read: NDArray[np.bool_]) -> None:
        """After all of them, of which some could be read."""
        self.able = np.flatnonzero(read)
        ends = np.searchsorted(self.able, [i for _, i in self._ends.values()]).tolist()
        self.telling = tuple(sorted({*some(len(self.able)), *ends}))

    @property
    def common(self) -> tuple[int, int] | None:
        """Height and width of all images, as they are read; None where they differ."""
        ends = {key: value for key, (value, _) in self._ends.items()}
        sides = [ends.get((what, True)) for what in ("height", "width")]
        same = sides == [ends.get((what, False)) for what in ("height", "width")]
        return (int(sides[0]), int(sides[1])) if same and sides[0] and sides[1] else None


@dataclass
class Survey:
    """All that looking at a dataset finds: numbers by split, and findings by kind, the worst first."""

    splits: dict[str, SplitFacts]
    findings: list[Finding]

    def without_unreadable(self, source: Source) -> Source:
        """What is left of the source that was looked at; the source itself where all images can be read."""
        if not self.unreadable():
            return source
        left = {name: Part(split, self.splits[name].able) for name, split in source.splits().items()}
        sizes = {facts.common for facts in self.splits.values() if len(facts.able)}
        size = next(iter(sizes)) if len(sizes) == 1 else None
        return replace(source, train=left["train"], val=left["val"], test=left.get("test"), measured=lambda: size)

    def unreadable(self) -> list[tuple[str, str]]:
        """The images that cannot be read, by name, and why."""
        return next((found.images for found in self.findings if found.kind == "unreadable"), [])


def survey(source: Source, workers: int) -> Survey:
    """Look at every image of every split once.

    Args:
        source: may have problems.
        workers: processes that read and decode.

    Raises:
        EnvironmentFault: a worker died.
    """
    splits = source.splits()
    counts = source.counts()
    facts = {name: SplitFacts(len(split), counts[name]) for name, split in splits.items()}
    findings = {kind: Finding(kind) for kind in KINDS}
    called = _Names(list(splits.values()))
    digests = np.zeros((len(called), DIGEST_BYTES), dtype=np.uint8)
    read = np.zeros(len(called), dtype=np.bool_)
    by_split = np.repeat(np.arange(len(splits)), [len(split) for split in splits.values()])
    of_split = list(facts.values())
    firsts = np.cumsum([0, *map(len, splits.values())]).tolist()
    found = looks(list(splits.values()), source.channels, workers)
    with tqdm(total=len(called), desc="checking", unit=" images", disable=None, leave=False, dynamic_ncols=True) as bar:
        for i, look in enumerate(found):
            at = int(by_split[i])
            of_split[at].add(i - firsts[at], look)
            if look.why:
                findings["unreadable"].add(called[i], look.why)
            else:
                digests[i], read[i] = np.frombuffer(look.digest, dtype=np.uint8), True
            for remark in look.remarks:
                findings[remark].add(called[i], {"extension": look.format, "damaged": look.complaint}.get(remark, ""))
            bar.update()
    for at, one in enumerate(of_split):
        one.finish(read[firsts[at] : firsts[at + 1]])
    labels = np.concatenate([split.labels for split in splits.values()])
    for group in _equal(digests, np.flatnonzero(read)):
        _same(group, by_split[group], labels[group], called, findings)
    return Survey(facts, [found for found in findings.values() if found.count])


class _Names:
    """What each image of some splits is called: the path from the dataset's root where it has one."""

    def __init__(self, splits: Sequence[Split]):
        self._parts = [unwrapped(split) for split in splits]
        self._firsts = np.cumsum([0, *map(len, splits)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, i: int) -> str:
        at = int(np.searchsorted(self._firsts, i, side="right")) - 1
        images, indices = self._parts[at]
        j = int(indices[i - int(self._firsts[at])])
        return images.name(j) if isinstance(images, InFiles) else images.path(j)


def _equal(digests: NDArray[np.uint8], among: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Groups of images with equal digests, two or more, each in the order of the images."""
    words = digests[among].view("<u8")
    order = np.lexsort(words.T)  # stable, so that each group is in order
    ordered = words[order]
    starts = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))) if len(among) else among
    sizes = np.diff(np.append(starts, len(among)))
    groups = [among[order[start : start + size]] for start, size in zip(starts, sizes, strict=True) if size > 1]
    yield from sorted(groups, key=lambda group: int(group[0]))


def _same(
    group: NDArray[np.int64],
    splits: NDArray[np.int64],
    labels: NDArray[np.int64],
    called: _Names,
    findings: dict[str, Finding],
) -> None:
    """Images of the same content: copies, leaks, and labels that contradict each other."""
    first: dict[tuple[int, int], int] = {}
    for i, split, label in zip(group.tolist(), splits.tolist(), labels.tolist(), strict=True):
        if (earlier := first.setdefault((split, label), i)) != i:
            findings["twice"].add(called[i], called[earlier])
    if splits[0] == 0:  # train comes first
        for i in group[splits > 0].tolist():
            findings["leak"].add(called[i], called[int(group[0])])
    for (_, label), i in first.items():
        if label != labels[0]:
            findings["two classes"].add(called[i], called[int(group[0])])
