"""How much memory there is for images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

# A control group's limit, what it uses, and what of that are pages of files that it gives up first: of version 2, of 1.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may still take, by the kernel and by its control groups.

    Args:
        root: of the file system in which `proc` and `sys` are.
    """
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):  # no Linux, or one without that line
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(min([free, *_left_in_groups(root)]), 0)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What the limit of the process's own group leaves, and of each above it, as a batch system or container sets."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        limit, used, inactive = _V1 if controllers else _V2
        path = PurePosixPath(own)
        for group in (path, *path.parents):  # in a container the first may not be there, and the last is its own
            with suppress(OSError, ValueError):  # "max" is no number
                folder = base / str(group).lstrip("/")
                most = int((folder / limit).read_text())
                yield most - int((folder / used).read_text()) + _counted(folder / "memory.stat", inactive)


def _counted(stat: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        return int(dict(entry.split() for entry in stat.read_text().splitlines()).get(name, 0))
    return 0
