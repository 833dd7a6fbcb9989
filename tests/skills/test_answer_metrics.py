"""Metrics by name on records: every file of conf/metric is one, and own ones from outside the clone."""

import pytest

from kd.components.choices import choices
from kd.skills.answer_metrics import Evidence, answer_metrics
from kd.types import AnswerMetric, Record, Response

PROMPT = ({"role": "user", "content": "Which?"},)


def record(*texts, **meta):
    return Record("r1", "mine", PROMPT, tuple(map(Response, texts)), meta=meta)


def test_every_file_is_a_metric_with_facts():
    for one in answer_metrics(choices("metric")):
        assert isinstance(one, AnswerMetric)
        assert one.metric.heading != one.metric.name, one.metric.name


def test_inputs_of_a_record():
    one, numeric, choice = answer_metrics(["exact_match", "numeric", "choice_accuracy"])
    assert one.score(record("Paris"), "paris") == 1
    assert one.score(record("Paris", references=["Lyon", "Nice"]), "nice") == 1
    assert one.score(record("Paris", references=["Lyon"]), "paris") == 0  # the list stands for the response
    assert numeric.score(record("3 + 4 = 7", answer=7), "The answer is 7") == 1
    evidence = Evidence(record("b", choices=["a", "b"], answer_index=1), logprobs=(-2.0, -1.0))
    assert choice.rows(evidence) == [(1.0,)]
    assert choice.rows(Evidence(record("good", "bad"), logprobs=(-2.0, -1.0))) == [(0.0,)]  # the first is preferred


def test_a_mean_over_samples():
    (one,) = answer_metrics(["exact_match"])
    assert one.rows(Evidence(record("a b"), texts=("a b", "c"))) == [(0.5,)]


def test_a_value_that_rounding_puts_outside_of_the_range_is_its_end():
    (one,) = answer_metrics(["self_bleu"])
    assert one.rows(Evidence(record("x"), texts=("the cat sat on it",) * 3)) == [(100.0,)]  # 100.00000000000004


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("exact_mach", "did you mean exact_match"),
        ({"_target_": "os.system"}, "run.allow"),
        ({"_target_": "kd.metrics.overlap.exact_match", "normalize": "none"}, "did you mean normalise"),
        ({"_target_": "kd.metrics.overlap.exact_match", "normalise": "all"}, "squad"),
    ],
)
def test_a_wrong_name_is_refused(entry, words):
    with pytest.raises(ValueError, match=words):
        answer_metrics([entry])


def test_twice_the_same_name():
    with pytest.raises(ValueError, match="names exact_match twice"):
        answer_metrics(["exact_match", {"_target_": "kd.metrics.overlap.exact_match"}])


def test_what_a_record_lacks_is_named():
    (one, choice) = answer_metrics(["exact_match", "choice_accuracy"])
    with pytest.raises(ValueError, match="record r1 of mine has no references"):
        one.score(record(), "a")
    with pytest.raises(ValueError, match="name a metric of answers"):
        choice.score(record("a"), "a")
    with pytest.raises(ValueError, match="answer_index=7"):
        choice.rows(Evidence(record("b", choices=["a", "b"], answer_index=7), logprobs=(-2.0, -1.0)))


def test_a_metric_from_outside(tmp_path, monkeypatch):
    (tmp_path / "my_words.py").write_text("def words(text, *, most=9):\n    return min(len(text.split()), most)\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "my_words.words", "most": 3, "unit": "words", "high": 3, "name": "brevity"}
    with pytest.raises(ValueError, match=r"run\.allow"):
        answer_metrics([node])
    monkeypatch.setenv("KD_ALLOW", "my_words")
    (one,) = answer_metrics([node])
    assert one.metric.name == "brevity"
    assert one.score(record("a"), "one two three four") == 3
