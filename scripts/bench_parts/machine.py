"""What it ran on."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

# What decides how fast convolutions are, in fp32 and in bf16.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
PACKAGES = ("torch", "torchvision", "lightning", "fastai", "timm", "pillow", "numpy")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, str]:
    """Processor, memory, system and versions, in words."""
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "processor": f"{info.get('model name') or platform.processor() or platform.machine()}, {cores()} cores",
        "flags": " ".join(flag for flag in FLAGS if flag in flags) or "none of those that matter is named",
        "memory": f"{memory:.0f} GiB",
        "load": f"{os.getloadavg()[0]:.2f} processes wanted to run in the last minute",
        "system": f"{platform.system()} {platform.release()}, Python {sys.version.split()[0]}",
        "versions": versions,
    }


def version(package: str) -> str:
    """A package's version, or that there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpuinfo() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    pairs = (line.split(":", 1) for line in file.read_text().split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
