"""Scores on changed items beside the same items as they are: pairs by hand, and a system whose answers are known.

Run: python -m pytest tests/evaluation/test_robustness.py
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from kd.data.chat_template import encode_prompt
from kd.evaluation.evaluate import Evaluation
from kd.evaluation.items import items, measured
from kd.evaluation.variants import variants
from kd.evaluation.variants.robustness import Robustness, paired
from kd.intervals import mean
from kd.metrics.table import Metric
from kd.reports.paired import item_table
from kd.reports.robustness import robustness_grid
from kd.skills.answer_metrics import Evidence, answer_metrics
from tests.evaluation.conftest import TenIntegers, greedy, record, silenced

SHARE = Metric("accuracy")
GROUPS = ["a", "b", "c", "d", "e"]
CLEAN, VARIED = [1.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0, 0.0]


def rows(values, name="accuracy"):
    return items(name, GROUPS, GROUPS, values)


def test_a_pair_by_hand():
    pair = paired(SHARE, rows(CLEAN), rows(VARIED))
    assert [one.value for one in pair] == pytest.approx([0.6, 0.4, 0.2, 0.6, 2 / 3])
    assert [one.n for one in pair] == [5, 5, 5, 5, 3]  # three were right: two of these are lost
    differences = [0.0, 1.0, 0.0, -1.0, 1.0]
    assert pair.drop == mean(differences, GROUPS, bounds=(-1.0, 1.0))
    assert pair.drop.low < 0.2 < pair.drop.high


def test_a_drop_is_positive_where_it_is_worse_whatever_the_direction():
    errors = Metric("errors", low=0, high=10, higher_is_better=False)
    pair = paired(errors, rows([0.0, 2.0, 4.0, 0.0, 1.0]), rows([1.0, 2.0, 2.0, 3.0, 1.0]))
    assert pair.drop.value == pytest.approx((1 + 0 - 2 + 3 + 0) / 5)
    assert pair.attack_success.value == 1.0  # both items without an error have some now
    assert pair.attack_success.n == 2


def test_items_without_a_right_answer_have_no_attack():
    pair = paired(SHARE, rows([0.0] * 5), rows(VARIED))
    assert math.isnan(pair.attack_success.value)
    assert pair.attack_success.n == 0


def test_the_same_answers_have_no_drop():
    pair = paired(SHARE, rows(CLEAN), rows(CLEAN))
    assert (pair.drop.value, pair.flipped.value, pair.attack_success.value) == (0.0, 0.0, 0.0)
    assert (pair.drop.low, pair.drop.high) == pytest.approx((-0.434, 0.434), abs=1e-3)  # Wilson's, 0 of 5 items flip


def test_a_metric_of_the_corpus_drops_as_a_whole():
    [bleu] = answer_metrics(["bleu"])
    references = [
        "the cat sat on the mat today",
        "a dog barked at the moon all night",
        "birds sing in the early morning",
    ]
    worse = ["the cat sat on a mat today", "a dog slept", "birds sing in the early morning"]
    tables = []
    for texts in (references, worse):
        found = [
            Evidence(record(str(i), "?", ref), (text,))
            for i, (ref, text) in enumerate(zip(references, texts, strict=True))
        ]
        tables.append(measured(bleu, found, [str(i) for i in range(3)], resamples=50))
    (clean, one), (varied, other) = tables
    pair = paired(bleu.metric, one, other, bleu.total, resamples=50)
    assert pair.clean.value == clean.value == pytest.approx(100)
    assert pair.varied.value == varied.value
    assert pair.drop.value == pytest.approx(clean.value - varied.value)
    assert pair.drop.n == 3
    assert pair.flipped.value == pytest.approx(2 / 3)


def test_answers_that_have_no_value_alone_do_not_flip():
    """Kappa and a correlation are of all answers: of one there is none, whether it changes or not."""
    for name, texts in (("kappa", ["yes", "no", "no"]), ("spearman", ["1", "3", "2"])):
        [metric] = answer_metrics([name])
        records = [record(str(i), "?", one) for i, one in enumerate(texts)]
        records = [replace(one, meta={"choices": ["yes", "no"]}) for one in records]
        found = [Evidence(one, (text,)) for one, text in zip(records, texts, strict=True)]
        score, rows = measured(metric, found, ["0", "1", "2"], resamples=20)
        pair = paired(metric.metric, rows, rows, metric.total, resamples=20)
        assert (pair.clean.value, pair.varied.value, pair.drop.value) == pytest.approx((1, 1, 0))
        assert score.value == pytest.approx(1)
        assert (pair.flipped.n, pair.attack_success.n) == (0, 0)
        assert math.isnan(pair.flipped.value)


SETTINGS = {"items": None, "answers": None, "max_new_tokens": 4, "batch_size": 5, "baseline": None}
SHORTER = {"_target_": f"{__name__}.shorter", "name": "shorter"}


def shorter(record, seed):
    """Without the question mark, of numbers above 2 alone."""
    from kd.evaluation.variants.editable import question, with_question

    return None if record.id < "ten/3" else with_question(record, question(record).rstrip("?"))


@pytest.fixture
def session(student, encoder, monkeypatch):
    monkeypatch.setenv("KD_ALLOW", __name__)
    skill = TenIntegers(student, 4, right=(2, 3, 7))

    def start(names, **settings):
        evaluation = Evaluation(**{**SETTINGS, **settings}, variants=names)
        return evaluation.session(skill=skill, train=(), test=skill.load("test"), encoder=encoder)

    return start


def test_a_system_on_changed_items(session, student):
    clean = session([SHORTER])
    robustness = Robustness(clean)
    assert robustness.counts("shorter") == {"items": 7, "left_out": 3, "too_long": 0}
    before = clean.measure(student, identity="student")
    found = robustness.measure(student, before, identity="student")["shorter"]
    skill, values = clean.skill, []
    for one in skill.load("test")[3:]:
        prompt = (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"What is the number {one.id[4:]}"},
        )
        ids = greedy(student, encode_prompt(prompt, student.tokenizer), 4)
        values.append(skill.score(one, student.tokenizer.decode(ids, skip_special_tokens=True)))
    pair = found.pairs["accuracy"]
    assert pair.clean.value == pytest.approx(2 / 7)  # 3 and 7, of the seven alone
    assert pair.varied.value == pytest.approx(np.mean(values))
    assert pair.drop.value == pytest.approx(2 / 7 - np.mean(values))
    assert found.measured.items["id"].tolist() == [f"ten/{i}" for i in range(3, 10)]
    again = robustness.measure(silenced(student), before, identity="student")["shorter"]  # out of the cache
    assert again.pairs == found.pairs


LONGER = {"_target_": f"{__name__}.longer", "name": "longer"}


def longer(record, seed):
    """Too long for an answer in two of the seven cases in which it is changed."""
    from kd.evaluation.variants.editable import question, with_question

    number = int(record.id[4:])
    return None if number < 3 else with_question(record, question(record) + " please" * (400 if number > 7 else 1))


def test_items_that_become_too_long_are_counted_apart(session):
    started = Robustness(session([LONGER]))
    assert started.counts("longer") == {"items": 5, "left_out": 3, "too_long": 2}


def test_likelihoods_of_choices_change_with_the_question(session, student, encoder):
    class Choosing(TenIntegers):
        def __init__(self):
            self.metrics = answer_metrics(["choice_accuracy"])
            self.metric = "choice_accuracy"

        def load(self, split):
            options = ["one", "two", "three"]
            text = "".join(f"\n{letter}. {one}" for letter, one in zip("ABC", options, strict=True))
            return [
                record(str(i), f"Number {i}?{text}", options[i % 3], choices=options, answer_index=i % 3)
                for i in range(12)
            ]

    skill = Choosing()
    evaluation = Evaluation(**{**SETTINGS, "answers": 0}, variants=["option_order", "number_changes"])
    own = evaluation.session(skill=skill, train=(), test=skill.load("test"), encoder=encoder)
    robustness = Robustness(own)
    assert robustness.counts("option_order") == {"items": 12, "left_out": 0, "too_long": 0}
    assert robustness.counts("number_changes") == {"items": 0, "left_out": 12, "too_long": 0}
    found = robustness.measure(student, own.measure(student, identity="student"), identity="student")
    assert found["number_changes"].pairs == {}
    [order] = variants(["option_order"])
    moved = [order(one, 0, skill) for one in skill.load("test")]
    direct = evaluation.session(skill=skill, train=(), test=moved, encoder=encoder).measure(student, identity="other")
    assert found["option_order"].pairs["choice_accuracy"].varied == direct.scores["choice_accuracy"]


def test_the_table():
    def cell(value: float, drop: float) -> dict:
        one = {"n": 7, "low": None, "high": None}
        estimates = {"clean": value + drop, "varied": value, "drop": drop, "flipped": 0.25, "attack_success": None}
        return {name: {**one, "value": number} for name, number in estimates.items()}

    systems = {"before": cell(0.0, 0.0), "after": cell(0.5, 0.25), "teacher": None}
    variant = {"items": 7, "left_out": 3, "metrics": {"accuracy": systems}}
    grid = robustness_grid({"robustness": {"sums": {"typos": variant}}, "metrics": {}})
    assert grid.header == ["skill", "variant", "student before", "student, distilled"]
    assert grid.rows == [
        ["sums\naccuracy", "typos\nn=7", "0.00 (drop 0.00)\n25 % flip", "0.500 (drop 0.250)\n25 % flip"],
    ]
    assert grid.notes[0] == "sums: typos leaves 3 as they are, of 10 items; these are in no number here."
    longer = {"robustness": {"sums": {"typos": {**variant, "too_long": 2}}}, "metrics": {}}
    sentence = "sums: typos leaves 3 as they are and makes 2 too long for an answer, of 12 items; "
    assert robustness_grid(longer).notes[0].startswith(sentence)
    assert robustness_grid({}) is None


def test_reports_pair_the_items_as_they_are(tmp_path):
    lines = [
        "skill,system,metric,id,group,value,statistics,variant",
        "s,after,m,1,1,0.5,,",
        "s,after,m,1,1,0.25,,typos",
    ]
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    assert item_table(tmp_path)["s", "after", "m"]["value"].to_dict() == {"1": 0.5}
