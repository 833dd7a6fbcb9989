"""An ensemble in the teacher's place: its distribution is measured, and it answers nothing.

Run: python -m pytest tests/evaluation/test_ensemble.py
"""

import math

import pytest
import torch

from kd.data.sequences import Encoder
from kd.evaluation.evaluate import Evaluation
from kd.models.digests import model_digest
from kd.teachers.ensemble import Ensemble
from kd.teachers.white_box import WhiteBox
from tests.evaluation.conftest import TenIntegers, record, silenced, tiny
from tests.evaluation.test_likelihood import full_log_probs

NAMES = ("first", "second")
RECORDS = [record(f"{i}", "?" * (1 + 7 * i % 5), "abcdefgh"[i:], teacher=NAMES[i % 2], expected="") for i in range(6)]
SETTINGS = {"items": None, "answers": 2, "max_new_tokens": 3, "batch_size": 2, "resamples": 20}


@pytest.fixture(scope="module")
def members():
    return {"first": tiny(1), "second": tiny(2, hidden_size=48)}


@pytest.fixture
def session(student):
    def start(members, combine):
        teacher = Ensemble(members={name: WhiteBox(model) for name, model in members.items()}, combine=combine)
        session = Evaluation(**SETTINGS).session(
            skill=TenIntegers(student, 3, right=()),
            train=RECORDS,
            test=RECORDS,
            encoder=Encoder(student.tokenizer, None, max_length=200, max_tokens=60),
            teacher=teacher,
            teacher_identity=model_digest(teacher),
        )
        return session, teacher

    return start


def distributions(members, combine, item):
    """log p of the ensemble at the item's loss rows, as one would write it down."""
    logs = [full_log_probs(model, item)[0] for model in members.values()]
    if combine == "routed":
        return logs[NAMES.index(item.meta["teacher"])]
    if combine == "mean_probabilities":
        return ((logs[0].exp() + logs[1].exp()) / 2).log()
    return ((logs[0] + logs[1]) / 2).log_softmax(-1)


@pytest.mark.parametrize("combine", ["mean_logits", "mean_probabilities", "routed"])
def test_its_likelihood_and_the_students_agreement_by_hand(session, members, student, combine):
    session, teacher = session(members, combine)
    nll = forward = tokens = size = agreed = 0.0
    for item in RECORDS:
        p, (q, ids) = distributions(members, combine, item), full_log_probs(student, item)
        nll -= p[torch.arange(len(ids)), ids].sum().item()
        forward += (p.exp() * (p - q)).sum().item()
        agreed += (p.argmax(-1) == q.argmax(-1)).sum().item()
        tokens, size = tokens + len(ids), size + len(item.responses[0].text)
    scores = session.measure(student, identity="student").scores
    assert scores["forward_kl"].value == pytest.approx(forward / tokens)
    assert scores["top1"].value == pytest.approx(agreed / tokens)
    measured = session.measure(teacher, identity=model_digest(teacher))
    assert measured.scores["bits_per_byte"].value == pytest.approx(nll / math.log(2) / size)
    assert measured.scores["forward_kl"].value == 0.0


def test_it_answers_nothing(session, members):
    session, teacher = session(members, "mean_logits")
    measured = session.measure(teacher, identity=model_digest(teacher))
    assert measured.answers is None
    assert list(measured.samples) == []
    assert "accuracy" not in measured.scores
    assert set(measured.scores) == {"bits_per_byte", "top1", "forward_kl", "reverse_kl"}


def test_members_are_read_once_whatever_is_made_of_them(session, members, student):
    first, teacher = session(members, "mean_logits")
    first.measure(teacher, identity=model_digest(teacher))
    again, other = session({name: silenced(model) for name, model in members.items()}, "mean_probabilities")
    other_scores = again.measure(other, identity=model_digest(other)).scores
    assert other_scores["bits_per_byte"].value > 0


def test_another_combination_is_another_system(session, members):
    values = set()
    for combine in ("mean_logits", "mean_probabilities", "routed"):
        each, teacher = session(members, combine)
        values.add(each.measure(teacher, identity=model_digest(teacher)).scores["bits_per_byte"].value)
    assert len(values) == 3
