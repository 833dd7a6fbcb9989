"""Divergence, agreement and entropy by position: by hand, in parts, and equal to the numbers of the table.

Run: python -m pytest tests/evaluation/test_positions.py
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from kd.evaluation.evaluate import Evaluation, Session
from kd.evaluation.excess_error import accumulated, with_excess_error
from kd.evaluation.likelihood import score_references, tabulate
from kd.evaluation.positions import SUMS, added, binned, by_position
from kd.evaluation.teacher_rows import TeacherRows, teacher_rows
from kd.generators.settings import Decoding
from kd.kernels.logits import DenseLogits
from kd.runs.positions import PositionBin, positions_csv, read_positions
from kd.types import Batch, Head, Sequences
from tests.evaluation.conftest import RECORDS, TenIntegers, record, silenced

LN2, LN3 = math.log(2), math.log(3)


def logits(*probabilities: float) -> torch.Tensor:
    """Rows of a vocabulary of two ids, of which the first has these probabilities."""
    first = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([first, 1 - first], -1).log()


def responses(*lengths: int) -> Batch:
    """A batch of responses of so many tokens, each after a prompt of one; labels are id 0."""
    width = max(lengths)
    mask = torch.tensor([[t < n for t in range(width)] for n in lengths])
    zeros = torch.zeros(len(lengths), width, dtype=torch.long)
    rows = Sequences(zeros, zeros, mask, torch.tensor(lengths))
    return Batch(rows, rows, tuple(record(str(i), "?", "a") for i in range(len(lengths))))


def test_by_hand_on_a_vocabulary_of_two() -> None:
    """Teacher (1/2, 1/2); student (3/4, 1/4) at the first token, (1/4, 3/4) at the others but (1/2, 1/2) at the fourth.

    KL(p || q) = 1/2 ln(2/3) + 1/2 ln 2 = ln 2 - 1/2 ln 3, KL(q || p) = ln 2 - H(q), H(q) = 2 ln 2 - 3/4 ln 3. Where
    the teacher is even, id 0 is its most probable one. One response has three tokens, the other four.
    """
    batch = responses(3, 4)
    student = DenseLogits(logits(0.75, 0.25, 0.25, 0.75, 0.25, 0.25, 0.5))
    where = {"0": slice(0, 3), "1": slice(3, 7)}
    even = TeacherRows(logits(*[0.5] * 7), Head(torch.eye(2, dtype=torch.float64)), where)
    table = tabulate(list(batch.records), [(batch, student)], teacher_rows=even, chunk=2)
    found = by_position(table["positions"])
    apart = {"forward_kl": LN2 - LN3 / 2, "reverse_kl": 0.75 * LN3 - LN2, "entropy": 2 * LN2 - 0.75 * LN3}
    third = {name: 2 / 3 * value for name, value in apart.items()} | {"entropy": (2 * apart["entropy"] + LN2) / 3}
    expected = [
        {"first": 1, "last": 1, "n": 2, "top1": 1.0, "teacher_entropy": LN2, **apart},
        {"first": 2, "last": 2, "n": 2, "top1": 0.0, "teacher_entropy": LN2, **apart},
        {"first": 3, "last": 4, "n": 3, "top1": 1 / 3, "teacher_entropy": LN2, **third},
    ]
    for one, wanted in zip(found, expected, strict=True):
        assert one == pytest.approx(wanted, rel=1e-12)


def test_bins_double_and_hold_each_token_once() -> None:
    """A response of 300 tokens with their positions as values: bins 1, 2, 3-4, …, 129-256, 257-300 (of 257-512)."""
    values = torch.arange(1.0, 301.0, dtype=torch.float64)[:, None].expand(300, len(SUMS))
    found = by_position([binned(values)])
    ends = [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 256), (257, 512)]
    assert [(one["first"], one["last"]) for one in found] == ends
    for one in found:
        inside = [p for p in range(1, 301) if one["first"] <= p <= one["last"]]
        assert (one["n"], one["top1"]) == (len(inside), pytest.approx(sum(inside) / len(inside)))
    assert binned(values[:0]) == []
    assert by_position([]) == []


def overall(bins: Sequence[Any], name: str) -> float:
    """The mean over bins, weighted by n."""
    return sum(one["n"] * one[name] for one in bins) / sum(one["n"] for one in bins)


@pytest.fixture
def session(student, teacher, encoder):
    def start(**settings: Any) -> Session:
        skill = TenIntegers(student, 4, right=(2,))
        evaluation = Evaluation(**{"items": None, "answers": 4, "max_new_tokens": 4, "batch_size": 5, **settings})
        given = {"train": RECORDS, "test": [*skill.load("test"), *RECORDS], "encoder": encoder}
        return evaluation.session(skill=skill, teacher=teacher, teacher_identity="teacher", **given)

    return start


def test_the_mean_over_bins_is_the_number_of_the_table(session, student, teacher) -> None:
    one = session()
    uniform, floor = one.uniform(), one.floor()
    systems = [one.measure(student, identity="student"), one.measure(teacher, identity="teacher"), floor, uniform]
    for measured in systems:
        bins = measured.positions["references"]
        assert sum(each["n"] for each in bins) == measured.tokens
        for name in ("top1", "forward_kl", "reverse_kl"):
            assert overall(bins, name) == pytest.approx(measured.scores[name].value, rel=1e-12, abs=1e-15)
    own, theirs, *_ = (measured.positions["references"] for measured in systems)
    assert overall(own, "teacher_entropy") == pytest.approx(overall(theirs, "entropy"), rel=1e-9)
    assert [each["entropy"] for each in theirs] == [each["teacher_entropy"] for each in theirs]
    assert [each["entropy"] for each in uniform.positions["references"]] == pytest.approx([math.log(261)] * len(own))


def test_parts_add_up_however_they_are_divided_and_cached_ones_are_the_same(session, student, teacher, encoder) -> None:
    """Items that were measured in two parts, as by two ranks or before and after a stop, and those of the cache."""
    rows = teacher_rows(teacher, "t", encoder, RECORDS)
    whole = by_position(score_references(student, encoder, RECORDS, teacher_rows=rows)["positions"])
    for parts in (([0, 2], [1, 3]), ([3], [0, 1, 2])):
        tables = [score_references(student, encoder, [RECORDS[i] for i in part], teacher_rows=rows) for part in parts]
        divided = by_position([added(table["positions"]) for table in tables])
        joined = by_position(pd.concat(tables)["positions"])
        for one, other, expected in zip(divided, joined, whole, strict=True):
            assert one == pytest.approx(expected, rel=1e-12)
            assert other == pytest.approx(expected, rel=1e-12)
    first = session().measure(student, identity="student").positions
    assert session().measure(silenced(student), identity="student").positions == first


def test_without_a_teacher_there_is_the_entropy_alone(student, encoder) -> None:
    skill = TenIntegers(student, 4, right=())
    evaluation = Evaluation(items=None, answers=0, max_new_tokens=4, batch_size=5)
    one = evaluation.session(skill=skill, train=RECORDS, test=RECORDS, encoder=encoder)
    bins = one.measure(student, identity="student").positions["references"]
    assert all(math.isnan(each[name]) for each in bins for name in SUMS if name != "entropy")
    assert all(0 < each["entropy"] < math.log(261) for each in bins)


def test_on_generated_answers_they_sum_to_the_excess_errors_own_sums(session, student, teacher, encoder) -> None:
    one = session(excess_error=3)
    found = with_excess_error(one, student, one.measure(student, identity="student"), identity="student")
    assert list(found.positions) == ["references", "own", "teacher"]
    table = accumulated(student, teacher, encoder, one.prompts, Decoding(4, 3, batch_size=5), seed=0)
    for responses, column in (("own", "own"), ("teacher", "oracle")):
        bins = found.positions[responses]
        total = sum(each["n"] * each["forward_kl"] for each in bins)
        assert total / 3 == pytest.approx(table[column].sum(), rel=1e-9)
        assert bins[0]["n"] == 3 * len(one.prompts)  # each response has a first token
        assert bins[-1]["last"] == 4  # max_new_tokens


# --- the file ---

ROW = {"skill": "s", "system": "after", "responses": "references", "first": 3, "last": 4, "n": 7}
NUMBERS = {"top1": 0.5, "forward_kl": 0.1, "reverse_kl": 0.2, "entropy": 1.0, "teacher_entropy": math.nan}


def test_the_file_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_positions(tmp_path) == []
    rows = [{**ROW, **NUMBERS}, {**ROW, **NUMBERS, "system": "a, b", "forward_kl": 0.1 + 0.2}]
    (tmp_path / "positions.csv").write_text(positions_csv(rows))
    assert read_positions(tmp_path) == [PositionBin(**{**row, "teacher_entropy": None}) for row in rows]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"first": 5}, "first=5 is above last=4"),
        ({"top1": 1.5}, "top1=1.5 is no share"),
        ({"responses": "answers"}, "'references', 'own' or 'teacher'"),
        ({"first": 0}, "greater than 0"),
    ],
)
def test_a_row_that_cannot_be_is_neither_written_nor_read(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        positions_csv([{**ROW, **NUMBERS, **change}])
    whole = positions_csv([{**ROW, **NUMBERS}])
    header, line = whole.splitlines()
    cells = dict(zip(header.split(","), line.split(","), strict=True)) | {k: str(v) for k, v in change.items()}
    (tmp_path / "positions.csv").write_text(f"{header}\n{','.join(cells.values())}\n")
    with pytest.raises(ValueError, match=f"positions.csv is torn.*{sentence}"):
        read_positions(tmp_path)
    for torn in (whole[:-1], whole[:-8] + "\n", whole[: whole.rindex(",")] + "\n", header[:20]):
        (tmp_path / "positions.csv").write_text(torn)
        with pytest.raises(ValueError, match="is torn"):
            read_positions(tmp_path)
