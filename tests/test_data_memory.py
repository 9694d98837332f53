"""How much memory there is for images: what the kernel says, and what control groups leave of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lrtrain.data.memory import available_bytes

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of a file system that says that 8 GiB are left, of which no control group takes any away."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 9999 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    return tmp_path


def test_memory_that_is_available_is_known(root: Path) -> None:
    assert 2**20 < available_bytes() < 2**50
    assert available_bytes(root) == 8 * GIB
    for text in ("", "MemTotal: 9999 kB\nMemFree: 5 kB\n"):  # as of an old kernel, or none
        (root / "proc/meminfo").write_text(text)
        assert 2**20 < available_bytes(root) < 2**50


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/", {"": (3 * GIB, 2 * GIB)}),  # a container's own
        ("0::/slurm/job/step", {"slurm/job": (3 * GIB, 2 * GIB), "slurm/job/step": ("max", GIB)}),
        ("0::/a", {"a": (1.5 * GIB, GIB), "": (9 * GIB, GIB)}),
        ("5:cpu:/x\n4:cpuset,memory:/docker/1\n0::/", {"memory": (3 * GIB, 2 * GIB)}),  # version 1, in a container
        ("0::/a\udcff\n0::\nx", {"a\udcff": (3 * GIB, 2 * GIB)}),
        ("4:memory:/job", {"memory/job": (3 * GIB, 2 * GIB), "memory": (2**63 - 4096, 5 * GIB)}),
    ],
)
def test_memory_is_what_every_control_group_above_leaves(
    root: Path, own: str, files: dict[str, tuple[Any, float]]
) -> None:
    (root / "proc/self/cgroup").write_text(f"{own}\n", errors="surrogateescape")
    assert available_bytes(root) == 8 * GIB
    for folder, (limit, used) in files.items():
        group = root / "sys/fs/cgroup" / folder
        group.mkdir(parents=True, exist_ok=True)
        names = ("limit_in_bytes", "usage_in_bytes") if folder.startswith("memory") else ("max", "current")
        for name, value in zip(names, (limit, used), strict=True):
            (group / f"memory.{name}").write_text(f"{value if value == 'max' else int(value)}\n")
    assert available_bytes(root) == min(8 * GIB, *(int(m - u) for m, u in files.values() if m != "max"))
    for folder in files:  # the pages of files that have been read make room
        (root / "sys/fs/cgroup" / folder / "memory.stat").write_text("total_inactive_file 100\ninactive_file 100\n")
    assert available_bytes(root) == 100 + min(8 * GIB, *(int(m - u) for m, u in files.values() if m != "max"))
