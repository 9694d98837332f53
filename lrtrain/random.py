"""Random numbers as pure functions of counters: nothing depends on what was drawn before.

Every use has its own key, `key(seed, "order", epoch)`, and what is drawn from it depends on that key alone.
Raw 64-bit streams only: numpy promises that a bit generator's stream never changes, unlike its distributions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(*parts: str | int) -> int:
    """A 63-bit key for what `parts` name, such as `key(seed, "order", epoch)`: the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    data = text.encode("utf-8", "surrogateescape")  # the name of a file may be no UTF-8
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def permutation(seed_key: int, n: int) -> NDArray[np.int64]:
    """A uniformly random order of `range(n)`.

    Ranks of n raw 64-bit Philox numbers (Salmon et al. 2011); ties, at odds of n^2 in 2^65, keep their order.
    """
    return np.argsort(np.random.Philox(key=seed_key).random_raw(n), kind="stable").astype(np.int64)


def uniforms(seed_key: int, counters: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """`draws` uniform numbers in [0, 1) for each counter, whatever other counters stand beside it.

    splitmix64's finalizer (Steele et al. 2014) over (key, counter, draw), taken twice.

    Args:
        seed_key: from `key`.
        counters: which sample each row is for, shape (n,).
        draws: numbers per sample.

    Returns:
        float64, shape (n, draws).
    """
    with np.errstate(over="ignore"):
        rows = _mix(np.uint64(seed_key) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        columns = (np.arange(1, draws + 1, dtype=np.uint64)) * np.uint64(0xD1B54A32D192ED03)
        bits = _mix(_mix(rows[:, None] ^ columns[None, :]) + _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def seed(seed_key: int) -> None:
    """Start torch's CPU generator, numpy's and Python's, which code of others draws from, at `seed_key`."""
    torch.default_generator.manual_seed(seed_key)
    np.random.seed(seed_key & 0xFFFFFFFF)
    random.seed(seed_key)


def seed_model(model_key: int, device: torch.device) -> None:
    """Have what a network draws, such as dropout, depend on the key, such as of a step, and not on what was drawn."""
    seed(model_key)
    if device.type == "cuda":
        torch.cuda.manual_seed(model_key)
    elif device.type == "mps":
        torch.mps.manual_seed(model_key)


@contextmanager
def put_back() -> Iterator[None]:
    """Afterwards the generators that `seed` starts are as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@contextmanager
def seeded(seed_key: int) -> Iterator[None]:
    """Inside, the generators start from `seed_key`; afterwards they are as they were."""
    with put_back():
        seed(seed_key)
        yield
