"""Our side of the benchmarks runs on the code as it is: the peers are not installed here.

Run: python -m pytest tests/test_benchmarks.py -m long
"""

import json
import math
from pathlib import Path

import pytest

from benchmarks import decoding, rollouts, step
from benchmarks.head import Rows
from benchmarks.on_policy import BATCH, deviations


def test_a_run_is_appended_to_the_rows_of_those_before(tmp_path: Path):
    for turn in range(2):
        Rows(tmp_path / "rows.jsonl", {"load": turn}).add({"kind": "time"}, {"wall": 1.5})
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    header, row = {"kind": "machine", "load": 1}, {"kind": "time", "said": {"wall": 1.5}}
    assert list(map(json.loads, lines)) == [{**header, "load": 0}, row, header, row]


@pytest.mark.long
def test_a_step():
    case = {**step.SMALL, "lengths": "variable", "precision": "fp32", "steps": 3, "objective": "fkl"}
    found = step.CONTENDERS["ours"]({**case, "contender": "ours"})
    assert len(found["times"]) == len(found["losses"]) == 3
    assert all(map(math.isfinite, found["losses"]))


@pytest.mark.long
def test_decoding():
    case = {**decoding.SMALL, "precision": "fp32", "rows": 3, "repeats": 1, "contender": "ours"}
    assert decoding.measured(case)["tokens"] == 3 * decoding.SMALL["new"]


ON_POLICY = {**rollouts.SMALL, "precision": "fp32", "window": BATCH, "objective": "rkl"}


@pytest.mark.long
def test_the_gate_of_on_policy_steps():
    found = deviations({**ON_POLICY, "gate": True, "steps": 1}, ["ours"])["ours"]
    assert found["loss"] <= rollouts.GATE["fp32"]["loss"]
    assert found["gradient"] <= rollouts.GATE["fp32"]["gradient"]


@pytest.mark.long
def test_an_on_policy_step():
    """`measured` raises where a step generated another number of tokens."""
    found = rollouts.measured({**ON_POLICY, "gate": False, "steps": 3, "contender": "ours"})
    assert len(found["times"]) == 3
