"""Metrics of a skill in an evaluation: of answers, of a corpus, by likelihood of choices; several samples; items."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kd.data.chat_template import encode_prompt
from kd.data.sequences import answer_ids
from kd.evaluation.choices import encoded_choices, score_choices
from kd.evaluation.evaluate import Evaluation
from kd.intervals import resampled
from kd.metrics.overlap import rouge_l
from kd.skills.answer_metrics import answer_metrics
from kd.teachers.ensemble import Ensemble
from kd.teachers.white_box import WhiteBox
from tests.evaluation.conftest import TenIntegers, record, silenced

CHOICES = [
    record(
        f"q{i}",
        f"Which is it, {'really ' * i}{i}?",
        "x",
        choices=["a", "bc", "a much longer choice"],
        answer_index=i % 3,
    )
    for i in range(7)
]


class Measured(TenIntegers):
    """The ten integers with more metrics than `accuracy`."""

    def __init__(self, model, names, metric="accuracy", right=(2, 3, 7)):
        super().__init__(model, 4, right)
        self.metrics, self.metric = answer_metrics(names), metric

    def load(self, split):
        meta = {"choices": ["1", "2", "three"], "answer_index": 1, "source": "a"}
        return [replace(one, meta={**one.meta, **meta, "parity": int(one.id[-1]) % 2}) for one in super().load(split)]


def start(skill, encoder, **settings):
    evaluation = Evaluation(**{"items": None, "answers": None, "max_new_tokens": 4, "batch_size": 5, **settings})
    records = skill.load("test")
    return evaluation.session(skill=skill, train=records, test=records, encoder=encoder)


def by_hand(model, one, choice):
    """Summed log-probability of the choice's tokens, from the network's own logits."""
    prompt, ids = encode_prompt(one.prompt, model.tokenizer), answer_ids(one, choice, model.tokenizer, ended=False)
    with torch.no_grad():
        logits = model.network(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1, : model.vocabulary]
    return logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum().item()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_likelihood_of_choices(student, batch_size, monkeypatch):
    right = [[by_hand(student, one, choice) for choice in one.meta["choices"]] for one in CHOICES]
    choices = encoded_choices(CHOICES, student.tokenizer)
    # in one row that branches; without that, token by token after one reading of the prompt, and in whole sequences
    for packs, short in ((True, 0), (False, 100), (False, 0)):
        monkeypatch.setitem(student.__dict__, "packs", packs)
        monkeypatch.setattr("kd.evaluation.choices.SHORT", short)
        table = score_choices(student, choices, batch_size=batch_size, max_tokens=300)
        assert table["id"].tolist() == [one.id for one in CHOICES]
        np.testing.assert_allclose(table["logprobs"].tolist(), right, atol=1e-5)


def test_an_ensemble_scores_choices(student, teacher):
    choices = encoded_choices(CHOICES[:2], student.tokenizer)
    twice = Ensemble(members={name: WhiteBox(student) for name in "ab"}, combine="mean_logits")
    alone, both = (score_choices(one, choices, batch_size=4, max_tokens=300) for one in (student, twice))
    np.testing.assert_allclose(both["logprobs"].tolist(), alone["logprobs"].tolist(), atol=1e-5)


def test_several_metrics_of_one_run(student, encoder):
    names = ["rouge_l", "chrf", "length", "choice_accuracy", "choice_accuracy_pmi", "verifier_score"]
    skill = Measured(student, names)
    measured = start(skill, encoder).measure(student, identity="student")
    assert list(measured.scores) == ["bits_per_byte", "accuracy", *names]
    assert all(score.n == 10 for score in measured.scores.values())
    records = {one.id: one for one in skill.load("test")}
    texts = measured.answers.set_index("id")["text"]
    overlap = [rouge_l(text, [records[name].responses[0].text]) for name, text in texts.items()]
    assert measured.scores["rouge_l"].value == pytest.approx(np.mean(overlap))
    assert measured.scores["length"].value == pytest.approx(measured.answers["tokens"].mean())
    assert measured.scores["verifier_score"] == measured.scores["accuracy"]
    best = [np.argmax([by_hand(student, one, choice) for choice in one.meta["choices"]]) for one in records.values()]
    assert measured.scores["choice_accuracy"].value == pytest.approx(np.mean(np.array(best) == 1))

    again = start(skill, encoder).measure(silenced(student), identity="student")  # all is cached
    assert again.scores == measured.scores


def test_items_make_the_scores(student, encoder):
    skill = Measured(student, ["rouge_l", "bleu", "choice_accuracy"])
    measured = start(skill, encoder).measure(student, identity="student")
    items = measured.items
    assert items.groupby("metric").size().to_dict() == dict.fromkeys(measured.scores, 10)
    assert set(items["group"]) == {"source 0", "source 1"}
    for name in ("accuracy", "rouge_l", "choice_accuracy"):
        assert items[items["metric"] == name]["value"].mean() == pytest.approx(measured.scores[name].value)
    pairs = np.array([json.loads(one) for one in items[items["metric"] == "bits_per_byte"]["statistics"]])
    assert pairs[:, 0].sum() / pairs[:, 1].sum() == pytest.approx(measured.scores["bits_per_byte"].value)
    rows = [row for one in items[items["metric"] == "bleu"]["statistics"] for row in json.loads(one)]
    total = skill.metrics[1].total(np.array(rows))
    assert total == pytest.approx(measured.scores["bleu"].value)


def test_a_headline_by_likelihood_generates_nothing(student, encoder):
    skill = Measured(student, ["choice_accuracy"], metric="choice_accuracy")
    measured = start(skill, encoder).measure(student, identity="student")
    assert list(measured.scores) == ["bits_per_byte", "choice_accuracy"]
    assert measured.answers is None


def test_a_headline_of_the_corpus(student, encoder):
    skill = Measured(student, ["chrf", "rouge_l"], metric="chrf")
    measured = start(skill, encoder).measure(student, identity="student")
    assert list(measured.scores) == ["bits_per_byte", "chrf", "rouge_l"]
    assert all(math.isnan(one["score"]) for one in measured.samples)


def test_several_samples(student, encoder):
    skill = Measured(student, ["pass_at_1", "distinct_2", "length"])
    settings = {"samples": 3, "temperature": 1.0}
    measured = start(skill, encoder, **settings).measure(student, identity="student")
    answers = measured.answers
    assert answers.groupby("id").size().tolist() == [3] * 10
    assert answers["text"].nunique() > 10
    assert [one["sample"] for one in measured.samples[:4]] == [0, 1, 2, 0]
    assert measured.scores["accuracy"].value == pytest.approx(answers["score"].mean())
    assert measured.scores["pass_at_1"].value == pytest.approx(answers["score"].mean())  # unbiased
    assert measured.scores["accuracy"].n == 10
    assert start(skill, encoder, **settings).measure(silenced(student), identity="student").scores == measured.scores
    other = start(skill, encoder, **settings, seed=1).measure(student, identity="student")
    assert other.answers["text"].tolist() != answers["text"].tolist()


def test_samples_need_a_temperature():
    with pytest.raises(ValueError, match=r"evaluation\.samples=3 at temperature=0"):
        Evaluation(items=1, answers=1, max_new_tokens=1, batch_size=1, samples=3)


def test_resampled_is_the_bootstrap_of_a_mean():
    rng = np.random.default_rng(0)
    rows = rng.normal(5, 2, (60, 1))
    found = resampled(rows, lambda some: float(some.mean()), resamples=4000)
    error = rows.std(ddof=1) / math.sqrt(60)
    assert found.value == pytest.approx(rows.mean())
    assert found.low == pytest.approx(rows.mean() - 2.0 * error, abs=0.15 * error)  # t of 59 degrees
    assert found.high == pytest.approx(rows.mean() + 2.0 * error, abs=0.15 * error)
    pairs = np.repeat(rows, 2, axis=0)  # of one group each: nothing more is known
    groups = [i for i in range(60) for _ in range(2)]
    again = resampled(pairs, lambda some: float(some.mean()), groups, resamples=4000)
    assert again.high - again.low == pytest.approx(found.high - found.low, rel=0.1)
    assert math.isnan(resampled(rows, lambda some: 1.0, ["one"] * 60).low)
