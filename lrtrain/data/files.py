"""Image files as a split, and what their headers say."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lrtrain import foreign
from lrtrain.data.decode import decode, header, refuse_long, upright_size
from lrtrain.data.default_transforms import SMALL, Size
from lrtrain.data.source import Split
from lrtrain.errors import BEYOND_FILES, ConfigError, DataError, Problem, printable
from lrtrain.foreign import user_path

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2")
)
ARCHIVE_SUFFIXES = frozenset((".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar"))
MAX_PROBLEMS = 20
ALL_HEADERS_UP_TO = 10_000  # images; a second or two


class Measured(Split, Protocol):
    """Images whose size is known without decoding them."""

    def size_of(self, i: int) -> tuple[int, int]:
        """Width and height of image i, by its header; any exception where it cannot be read."""
        ...


def relative(root: Path, name: str) -> str:
    """A file's path from `root`; absolute where it lies elsewhere."""
    return name.removeprefix(os.path.join(os.path.abspath(root), "")) if os.path.isabs(name) else name


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files below `root`, read by the rule of `decode`; `names` are their paths from there, or absolute."""

    root: Path
    names: Sequence[str]
    labels: NDArray[np.int64]
    channels: int

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> torch.Tensor:
        """Image i, uint8 (channels, height, width)."""
        return decode(self.path(i), self.channels)

    def path(self, i: int) -> str:
        """The file's path."""
        return os.path.join(self.root, self.names[i])

    def name(self, i: int) -> str:
        """The path from `root`; absolute where the file lies elsewhere."""
        return relative(self.root, self.names[i])

    def bytes_of(self, i: int) -> int:
        """The file's size.

        Raises:
            DataError: the file is not there.
        """
        return self._found(i).st_size

    def content(self, i: int) -> bytes:
        """The file's bytes.

        Raises:
            DataError: it cannot be read.
            OSError: the machine lacks what it takes to open it.
        """
        path = self.path(i)
        try:
            with foreign.opened(Path(path), links=True) as file:
                refuse_long(os.fstat(file.fileno()).st_size)
                return file.read()
        except ValueError as error:  # too large, or its name holds what no path can, from a list of torchvision's
            raise DataError(f"cannot read the image {printable(path)}: {error}", hint="remove it") from error
        except OSError as error:
            if error.errno in BEYOND_FILES:
                raise
            raise DataError(
                f"cannot read the image {printable(path)}: {error.strerror}", hint="restore the file"
            ) from error

    def leads_out(self, i: int) -> bool:
        """Whether a link on the way to the file leads out of `root`."""
        real = os.path.realpath(self.path(i))
        # What is written with its whole path, or with `..` in it, lies elsewhere on purpose.
        meant = os.path.isabs(self.names[i]) or ".." in self.names[i].split("/")
        return not meant and not real.startswith(os.path.join(_real(os.path.abspath(self.root)), ""))

    def size_of(self, i: int) -> tuple[int, int]:
        """Width and height, by the file's header."""
        with foreign.opened(Path(self.path(i)), links=True) as file, header(file) as image:
            return upright_size(image)

    def stamp(self, i: int) -> str:
        """Where the file lies, its bytes, when it was written, and when anything of it changed last.

        Not its content: to hash ImageNet would be to read 150 GB before every run. The last is there because another
        image of as many bytes may have been given the old one's mtime, as `cp -p`, `rsync -t` and `touch -r` can.

        Raises:
            DataError: the file is not there.
        """
        found = self._found(i)
        return f"{os.path.abspath(self.path(i))}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}"

    def _found(self, i: int) -> os.stat_result:
        path = self.path(i)
        try:
            return os.stat(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"cannot read the image {printable(path)}: {why}", hint="restore the file") from error


@cache
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def channels_for(color: str) -> int:
    """1 for gray, 3 for rgb.

    Raises:
        ConfigError: neither.
    """
    if color not in ("rgb", "gray"):
        raise ConfigError(f"color must be rgb or gray, not {color!r}")
    return 1 if color == "gray" else 3


def checked_root(root: str | Path, fix: str = "--set dataset.root=FOLDER gives another") -> Path:
    """`root` as the folder that it must be, `~` expanded; where there is none, `fix` says what to do.

    Raises:
        DataError: missing, an archive, or no folder.
    """
    folder = user_path(root)
    if folder.is_dir():
        return folder
    if folder.is_file() and folder.suffix.lower() in ARCHIVE_SUFFIXES:
        raise DataError(
            f"the dataset's root must be a folder; {str(folder)!r} is an archive",
            hint="unpack it, and give the folder that holds the class folders",
        )
    if folder.exists():
        raise DataError(f"the dataset's root must be a folder; {str(folder)!r} is a file")
    near = next((str(p) for p in folder.absolute().parents if p.is_dir()), "/")
    raise DataError(
        f"the dataset's root does not exist: {str(folder.absolute())!r}",
        hint=f"the part that exists is {near!r}; {fix}",
    )


def common_size(splits: Sequence[Measured]) -> Size | None:
    """Height and width that all images of the splits have, by their headers, or None.

    Every header is read up to `ALL_HEADERS_UP_TO` images; beyond that, about as many spread over all, and an
    image of another size is an error where it is met.

    Raises:
        DataError: names images whose header cannot be read.
    """
    places = [(split, i) for split in splits for i in range(len(split))]
    step = -(-len(places) // ALL_HEADERS_UP_TO)
    sizes: set[Size] = set()
    problems: list[Problem] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for split, i in tqdm(places[::step], "reading headers", unit=" images", disable=None, delay=2, leave=False):
            try:
                width, height = split.size_of(i)
                sizes.add((height, width))
            except Exception:
                try:  # `decode` knows how to say what is wrong
                    split.read(i)
                except DataError as error:
                    problems.extend(error.problems)
    if problems:
        raise DataError(shortened(problems))
    return concluded(sizes, of_all=step == 1)


def concluded(sizes: Set[Size], *, of_all: bool) -> Size | None:
    """The one size of all images, by the sizes of all or some of them, or None.

    Of some it is not concluded where it is large and no square: photos of a camera are alike until it is turned.
    """
    size, *others = sizes
    if others or not (of_all or size[0] == size[1] or max(size) <= SMALL):
        return None
    return size


def shortened(problems: Sequence[Problem]) -> list[Problem]:
    """The first problems, and how many more there are."""
    shown = list(problems[:MAX_PROBLEMS])
    more = len(problems) - len(shown)
    return shown + ([Problem(f"and {more:,} more of this kind")] if more else [])
