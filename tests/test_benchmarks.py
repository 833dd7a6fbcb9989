"""Our side of the benchmarks runs on the code as it is: the peers are not installed here.

Run: python -m pytest tests/test_benchmarks.py -m long
"""

import math

import pytest

from benchmarks import decoding, step

pytestmark = pytest.mark.long


def test_a_step():
    case = {**step.SMALL, "lengths": "variable", "precision": "fp32", "steps": 3, "objective": "fkl"}
    found = step.CONTENDERS["ours"]({**case, "contender": "ours"})
    assert len(found["times"]) == len(found["losses"]) == 3
    assert all(map(math.isfinite, found["losses"]))


def test_decoding():
    case = {**decoding.SMALL, "precision": "fp32", "rows": 3, "repeats": 1, "contender": "ours"}
    assert decoding.measured(case)["tokens"] == 3 * decoding.SMALL["new"]
