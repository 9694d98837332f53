"""Functions that run in a forked process, with whichever copy of lrtrain it has; each answers in plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def batch_hashes(config: str, workers: int, steps: int) -> list[str]:
    """SHA-256 of every batch that training and evaluation get."""
    from lrtrain.build import build
    from lrtrain.config.load import load

    batches = build(load(Path(config), [f"workers={workers}"])).batches
    return [_digest([batch]) for made in (batches.train(0, steps), batches.evaluate("val")) for batch in made]


def rank_hashes(config: str, ranks: int, steps: int) -> list[str]:
    """SHA-256 of every batch, put together from the parts that several processes get."""
    from lrtrain.build import build
    from lrtrain.config.load import load
    from lrtrain.data.batches import Batches
    from lrtrain.world import World

    config_ = load(Path(config))
    pipeline = build(config_).pipeline
    parts = [
        Batches(
            pipeline,
            batch_size=config_.batch_size,
            where=config_.where,
            drop_last=config_.drop_last,
            cache="memory",
            channels_last=True,
            world=World(rank, ranks, rank),
        ).train(0, steps)
        for rank in range(ranks)
    ]
    return [_digest(together) for together in zip(*parts, strict=True)]


def _digest(parts: Sequence[Any]) -> str:
    """Of images, labels and which ones they are, in the order of the batch."""
    digest = hashlib.sha256()
    for kind in ("index", "labels", "images"):
        for part in parts:
            value = getattr(part, kind)
            digest.update((value if kind == "index" else value.contiguous().numpy()).tobytes())
    return digest.hexdigest()
