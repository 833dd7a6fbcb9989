"""Random numbers by name: every component draws from a stream of its own.

A stream is a pure function of the run's seed and the component's name (and the step), so adding a component does
not shift another's numbers, and a resumed run needs no saved generator to continue as the uninterrupted one.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the component `names` of the run `seed`; the same on every machine."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniform(seed: int, *names: str | int) -> float:
    """A number from [0, 1) for the component `names`, the same on every rank; no generator is touched."""
    return (derive(seed, *names) >> 10) / 2**53


def seed_all(seed: int, *names: str | int) -> None:
    """Set the generators of torch (all devices), numpy and Python."""
    value = derive(seed, *names)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - libraries underneath draw from the legacy generator
    random.seed(value)


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Set the generators for a block; afterwards they are as they were."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        seed_all(seed, *names)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@lru_cache(maxsize=8)
def permutation(n: int, seed: int, *names: str | int) -> list[int]:
    """The numbers below `n` in an order of the component `names`' own; no generator is touched."""
    generator = torch.Generator().manual_seed(derive(seed, *names))
    return torch.randperm(n, generator=generator).tolist()
