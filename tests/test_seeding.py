import hashlib
import random

import numpy as np
import pytest
import torch

from kd.seeding import derive, seed_all, seeded


def drawn() -> tuple[float, float, float]:
    """A number of each generator."""
    return torch.rand(()).item(), np.random.random(), random.random()  # noqa: NPY002


def stream(*names: str | int) -> list[tuple]:
    with seeded(*names):
        return [drawn() for _ in range(3)]


def test_a_stream_depends_on_seed_and_name_alone():
    alone = stream(1, "student")
    torch.rand(7), stream(1, "objective"), seed_all(5, "elsewhere")
    assert stream(1, "student") == alone
    others = [stream(2, "student"), stream(1, "teacher"), stream(1, "student", 0), stream(1, "student", 1)]
    assert all(other != alone for other in others)
    assert len({tuple(other) for other in others}) == 4


def test_a_block_leaves_the_generators_as_they_were():
    seed_all(0, "outside")
    expected = [drawn(), drawn()]
    seed_all(0, "outside")
    first = drawn()
    with seeded(0, "inside"):
        inside = drawn()
        with seeded(0, "deeper"):
            drawn()
        second_inside = drawn()
    with pytest.raises(ZeroDivisionError), seeded(0, "failing"):
        drawn()[0] / 0
    assert [first, drawn()] == expected
    assert stream(0, "inside")[:2] == [inside, second_inside]


def test_every_generator_is_set():
    seed_all(3, "x")
    first = drawn()
    seed_all(3, "x")
    assert drawn() == first
    seed_all(3, "y")
    assert all(one != other for one, other in zip(drawn(), first, strict=True))


def test_derived_seeds_are_those_of_sha256():
    """Stated by its definition, so that it is the same in every process, on every machine, in every version."""
    digest = hashlib.sha256(b"7/step/3/0").hexdigest()
    assert derive(7, "step", 3, 0) == int(digest[:16], 16) // 2


def test_derived_seeds_are_distinct_and_fit_every_generator():
    seeds = {derive(seed, "step", step, rank) for seed in range(5) for step in range(100) for rank in range(4)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # and use the whole range
