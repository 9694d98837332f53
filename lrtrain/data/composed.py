"""A list of transforms in which some stand in a Compose, read as one list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def flat(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each entry, a Compose's in its place, and where it stands in `entries`."""
    for i, entry in enumerate(entries):
        inner = entry.get("transforms")
        if entry["name"] == "Compose" and isinstance(inner, list):
            named = [{"name": item} if isinstance(item, str) else item for item in inner]
            yield from ((i, one) for _, one in flat(named))
        else:
            yield i, entry
