"""How the C library treats memory that tensors give back."""

from __future__ import annotations

import ctypes
import sys

# mallopt(3), malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Let what large tensors give back be used again, instead of being returned to the system and asked for anew.

    Activations are allocated and freed at every step. glibc makes each above 32 MiB a mapping of its own, whose pages
    the system fills with zeros at their first use: a fifth of a step on two cores, with activations of 126 MB.
    Other C libraries have no `mallopt`, or another one; nothing happens there.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 64 * 2**20)
