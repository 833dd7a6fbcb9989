"""Rewards that come from texts: of a real skill's verifier, and those that records bring along.

Run: python -m pytest tests/rewards/test_verifier.py
"""

from dataclasses import replace

import pytest

from kd.data.sequences import Encoder
from kd.rewards import Reward, judged
from kd.rewards.record_scores import RecordScores
from kd.rewards.verifier import Verifier
from kd.skills.gsm_symbolic import GsmSymbolic
from kd.types import Models, Response, Written
from tests import runs
from tests.tiny import record, tiny

NOBODY = Models(None)


@pytest.fixture(scope="module")
def skill():
    return GsmSymbolic(train=6, validation=1, test=1)


@pytest.fixture(scope="module")
def encoder():
    return Encoder(tiny().tokenizer, None, max_length=2000, max_tokens=8000)


def written(encoder: Encoder, text: str, end: bool = True) -> Written:
    """As the student would have written it."""
    ids = encoder.student(text, add_special_tokens=False)["input_ids"]
    return Written((*ids, *[encoder.student.eos_token_id] * end), truncated=not end)


def by_record(batches) -> dict[str, list[float]]:
    """record id -> the rewards of its group."""
    return {
        kept.id: batch.rewards.view(len(batch.records), batch.group_size)[i].tolist()
        for batch in batches
        for i, kept in enumerate(batch.records)
    }


def test_right_and_wrong_answers_of_real_problems(skill, encoder):
    problems = skill.load("train")
    answers = [
        [
            written(encoder, f"So it is. The answer is {problem.meta['answer']}."),
            written(encoder, f"The answer is {float(problem.meta['answer']) + 1:g}."),
            written(encoder, "I do not know."),
            written(encoder, f"{problem.responses[0].text} And", end=False),  # the reference, cut off after its answer
        ]
        for problem in problems
    ]
    batches = encoder.written(problems, answers)
    assert len(batches) > 1
    found = by_record(judged(batches, NOBODY._replace(reward=Verifier(skill))))
    assert found == {problem.id: [1, 0, 0, 1] for problem in problems}


def test_everything_else_stays_as_it_was(skill, encoder):
    [before] = encoder.written(skill.load("train")[:1], [[written(encoder, "The answer is 7.")]])
    [after] = Verifier(skill)([before], NOBODY)
    assert before.rewards is None
    assert replace(after, rewards=None) == before


def test_the_rewards_of_each_model_are_logged_once(encoder):
    problem = record(0, "2 + 2 = ?", "4")
    reward = Verifier(Sum())
    answers = [written(encoder, "4"), written(encoder, "5"), replace(written(encoder, "4"), source="teacher")]
    reward(encoder.written([problem], [answers]), NOBODY)
    reward(encoder.written([problem], [[written(encoder, "4")]]), NOBODY)
    means = {"reward_reference": (0, 0), "reward_teacher": (1, 1), "reward_student": (2, 3)}
    assert reward.take_report() == {**means, "verifier_errors": (0, 4)}
    assert reward.take_report() == {**dict.fromkeys(means, (0, 0)), "verifier_errors": (0, 0)}


class Sum(runs.Toy):
    """Whether the text is "4"; there are texts that it cannot judge."""

    name = "sum"

    def load(self, split):
        return [record(0, "2 + 2 = ?", "4")]

    def score(self, problem, text: str) -> float:
        if text == "exit":
            raise SystemExit
        return {"?": float("nan"), "much": 1.5}.get(text, 0.0) or float(int(text) == 4)


@pytest.mark.parametrize(("text", "value"), [("?", "nan"), ("much", "1.5")])
def test_a_verdict_outside_its_range_is_refused_with_the_record(text, value, encoder):
    batches = encoder.written([record(0)], [[written(encoder, text)]])
    with pytest.raises(ValueError, match=f"record 0: the verifier of skill sum gives {value}; a score lies between"):
        Verifier(Sum())(batches, NOBODY)


def test_a_text_that_the_verifier_fails_on_is_wrong_and_counted(encoder):
    reward = Verifier(Sum())
    texts = ("4", "four", "exit", "5")
    [batch] = reward(encoder.written([record(0)], [[written(encoder, text) for text in texts]]), NOBODY)
    assert batch.rewards.tolist() == [1, 0, 0, 0]
    assert reward.take_report()["verifier_errors"] == (2, 4)


def test_a_verifier_that_fails_on_the_reference_is_named_with_the_record(encoder):
    class Broken(Sum):
        def load(self, split):
            return [record(0, "2 + 2 = ?", "four")]

    batches = encoder.written([record(0)], [[written(encoder, "vier")]])
    with pytest.raises(
        ValueError, match="record 0: the verifier of skill sum fails on the reference: raised: ValueError"
    ):
        Verifier(Broken())(batches, NOBODY)


def test_a_response_is_not_measured_by_itself(encoder):
    """A skill that looks for the reference among the responses finds what the student wrote, so it is shown none."""
    batches = encoder.written([record(0)], [[written(encoder, "wrong")]])
    with pytest.raises(ValueError, match=r"record 0: the verifier of skill toy fails on .*IndexError"):
        Verifier(runs.Toy())(batches, NOBODY)


def test_scores_are_those_of_the_records(encoder):
    problems = [
        replace(record(i), responses=(Response("four", score=0.5 + i), Response("4", "teacher", score=-3.0)))
        for i in range(3)
    ]
    found = by_record(RecordScores()(encoder.batches(problems), NOBODY))
    assert found == {"0": [0.5, -3.0], "1": [1.5, -3.0], "2": [2.5, -3.0]}


def test_scores_stay_with_their_texts_when_a_rollout_encodes_them_again(encoder):
    problem = replace(record(0), responses=(Response("four", score=0.25), Response("4", "teacher", score=2.0)))
    given = encoder.given(problem)
    found = by_record(RecordScores()(encoder.written([problem], [given[::-1]]), NOBODY))
    assert found == {"0": [2.0, 0.25]}


def test_a_response_without_a_reward_is_named(encoder):
    batches = encoder.written([record(7)], [[written(encoder, "5")]])
    with pytest.raises(ValueError, match="record 7 has a response by the student without a score; take"):
        RecordScores()(batches, NOBODY)


def test_they_are_rewards(skill):
    assert isinstance(Verifier(skill), Reward)
    assert isinstance(RecordScores(), Reward)
