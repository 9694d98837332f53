"""Image files as a split, and what their headers say."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lrtrain.data.decode import decode
from lrtrain.errors import ConfigError, DataError, Problem

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2")
)
ARCHIVE_SUFFIXES = frozenset((".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar"))
MAX_PROBLEMS = 20
ALL_HEADERS_UP_TO = 10_000  # images; a second or two


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files below `root`, read by the rule of `decode`."""

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

    def stamp(self, i: int) -> str:
        """Where the file lies, its bytes, and when it was written.

        Not its content: to hash ImageNet would be to read 150 GB before every run. So what is missed is another
        image of as many bytes that was given the old one's time, as `cp -p`, `rsync -t` and `touch -r` can.

        Raises:
            DataError: the file is not there.
        """
        path = os.path.abspath(self.path(i))
        try:
            found = os.stat(path)
        except OSError as error:
            raise DataError(f"cannot read the image {path}: {error.strerror}", hint="restore the file") from error
        return f"{path}\0{found.st_size}\0{found.st_mtime_ns}"


def channels_for(color: str) -> int:
    """1 for gray, 3 for rgb.

    Raises:
        ConfigError: neither.
    """
    if color not in ("rgb", "gray"):
        raise ConfigError(f"color must be rgb or gray, not {color!r}")
    return 1 if color == "gray" else 3


def checked_root(root: str | Path, what: str = "the dataset's root") -> Path:
    """`root` as the folder that it must be, `~` expanded.

    Raises:
        DataError: missing, an archive, or no folder.
    """
    folder = Path(root).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file() and folder.suffix.lower() in ARCHIVE_SUFFIXES:
        raise DataError(
            f"{what} must be a folder; {str(folder)!r} is an archive",
            hint="unpack it, and give the folder that holds the class folders",
        )
    if folder.exists():
        raise DataError(f"{what} must be a folder; {str(folder)!r} is a file")
    near = next((str(p) for p in folder.absolute().parents if p.is_dir()), "/")
    raise DataError(
        f"{what} does not exist: {str(folder.absolute())!r}",
        hint=f"the part that exists is {near!r}; --set dataset.root=FOLDER gives another",
    )


def common_side(splits: Sequence[FileSplit]) -> int | None:
    """The side of the square that all images of the splits are, by their headers, or None.

    Every header is read up to `ALL_HEADERS_UP_TO` images; beyond that, about as many spread over all, and an
    image of another size is an error where it is met.

    Raises:
        DataError: names files whose header cannot be read.
    """
    paths = [split.path(i) for split in splits for i in range(len(split))]
    paths = [paths[i] for i in range(0, len(paths), -(-len(paths) // ALL_HEADERS_UP_TO))]
    sizes: set[tuple[int, int]] = set()
    problems: list[Problem] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in tqdm(paths, "reading headers", unit=" images", disable=None, delay=2, leave=False):
            try:
                with Image.open(path) as image:
                    sizes.add(image.size)
            except Exception:
                try:  # `decode` knows how to say what is wrong
                    decode(Path(path), 1)
                except DataError as error:
                    problems.extend(error.problems)
    if problems:
        raise DataError(shortened(problems))
    (width, height), *others = sizes
    return width if not others and width == height else None


def shortened(problems: Sequence[Problem]) -> list[Problem]:
    """The first problems, and how many more there are."""
    shown = list(problems[:MAX_PROBLEMS])
    more = len(problems) - len(shown)
    return shown + ([Problem(f"and {more:,} more of this kind")] if more else [])
