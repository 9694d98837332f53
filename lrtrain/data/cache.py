"""Images after the deterministic transforms, kept in memory as uint8."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from lrtrain.data.loader import Order, Workshop, fulfilled
from lrtrain.errors import ConfigError, DataError, EnvironmentFault

Mode = Literal["auto", "memory", "off"]

AUTO_SHARE = 4  # auto fills at most one part in so many of the available memory
_ONE_SIZE = "begin the list with Resize and CenterCrop"
_CHUNK = 256  # images that a worker prepares at a time
_FEW = 2_000  # images that are decoded faster than workers start


def cached(workshop: Workshop, mode: Mode, workers: int, where: Callable[..., str]) -> torch.Tensor | None:
    """The prepared images of a split, uint8 (n, C, H, W), or None where they are not kept.

    Kept are images known to have one size after the deterministic beginning of their list: with `memory`
    always, with `auto` where they fit into a quarter of the available memory.

    Raises:
        ConfigError: `memory`, and the sizes differ.
        EnvironmentFault: `memory`, and it does not fit.
        DataError: an image cannot be read.
    """
    if mode == "off" or (mode == "auto" and workshop.stages.size is None):
        return None
    if workshop.stages.size is None:
        raise ConfigError(
            f"cache: memory needs images of one size before anything random is done to them; those of "
            f"{workshop.name} differ",
            where("cache"),
            f"{_ONE_SIZE}, or write `cache: auto`",
        )
    n = len(workshop.split)
    shape = tuple(workshop.stages.prepare(workshop.split.read(0)).shape)
    wanted, free = n * int(np.prod(shape)), available_bytes()
    if mode == "auto" and wanted > free // AUTO_SHARE:
        return None
    if wanted > free:
        what = f"cache: memory needs {_gib(wanted)} for {workshop.name}; {_gib(free)} are available"
        raise EnvironmentFault(what, where("cache"), "write `cache: auto`, or make the images smaller")
    return _filled(workshop, torch.empty((n, *shape), dtype=torch.uint8), workers if n > _FEW else 0)


def _filled(workshop: Workshop, images: torch.Tensor, workers: int) -> torch.Tensor:
    n = len(images)
    orders = [Order(np.arange(start, min(start + _CHUNK, n)), None) for start in range(0, n, _CHUNK)]
    words = f"decoding {workshop.name}"
    with tqdm(total=n, desc=words, unit=" images", disable=None, delay=1, leave=False) as bar:
        for order, part in zip(orders, fulfilled(workshop, orders, workers), strict=True):
            if part.shape[1:] != images.shape[1:]:
                name = workshop.split.path(int(order.index[0]))
                raise DataError(
                    f"{name} is {tuple(part.shape[1:])} where the first image is {tuple(images.shape[1:])}",
                    hint=_ONE_SIZE,
                )
            images[order.index[0] : order.index[-1] + 1] = part
            bar.update(len(order.index))
    return images


def available_bytes() -> int:
    """Memory that this process may still take, by the kernel and by its control group."""
    memory = Path("/proc/meminfo")
    if memory.exists():
        lines = dict(line.split(":", 1) for line in memory.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return max(free, 0)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
