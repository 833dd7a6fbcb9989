from dataclasses import replace

import pandas as pd
import pytest
import torch

from kd.data.chat_template import encode_prompt
from kd.evaluation.answers import judged, score_answers
from kd.evaluation.measured import Measured, samples
from kd.metrics.numeric import math_judge
from kd.sandbox import NoVerdict, verdict
from tests.evaluation.conftest import TenIntegers, greedy, tiny

LIMIT = 6


def test_answers_are_greedy_and_scored_by_the_skill(student):
    skill = TenIntegers(student, LIMIT, right=(2, 3, 7))
    records = skill.load("test")
    table = score_answers(student, skill, records, max_new_tokens=LIMIT, batch_size=3)
    assert table["id"].tolist() == [record.id for record in records]
    for row, record in zip(table.itertuples(), records, strict=True):
        ids = greedy(student, encode_prompt(record.prompt, student.tokenizer), LIMIT)
        assert row.text == student.tokenizer.decode(ids, skip_special_tokens=True)
        assert row.tokens == len(ids)
    assert table["score"].tolist() == [float(number in (2, 3, 7)) for number in range(10)]


def test_an_answer_without_end_token_is_truncated(student):
    """A head that prefers the end token always answers with it at once; one that never does is cut."""
    skill = TenIntegers(student, LIMIT, right=())
    records = skill.load("test")[:2]
    for preferred, tokens, truncated in ((student.tokenizer.eos_token_id, 1, False), (65, LIMIT, True)):
        table = score_answers(_always(preferred), skill, records, max_new_tokens=LIMIT, batch_size=2)
        assert table["tokens"].tolist() == [tokens] * 2
        assert table["truncated"].tolist() == [truncated] * 2
    rows = samples(table, records)
    letter = student.tokenizer.decode([65])
    assert rows[0] == {
        "id": "ten/0",
        "prompt": "Be brief.\n\nWhat is the number 0?",
        "response": LIMIT * letter,
        "reference": "0",
        "score": 0.0,
        "tokens": LIMIT,
        "truncated": True,
        "verifier_error": None,
        "sample": 0,
    }


def test_an_answer_that_the_verifier_fails_on_is_wrong_and_states_why(student):
    class Picky(TenIntegers):
        def score(self, record, text):
            if text != "7":
                raise KeyError(text)
            return 1.0

    skill = Picky(student, LIMIT, right=())
    seven = skill.load("test")[7:8]
    assert seven[0].responses[0].text == "7"
    answers = pd.DataFrame({"id": ["ten/7"] * 2, "text": ["7", "8"], "tokens": 1, "truncated": False})
    table = judged(answers, skill, [*seven, *seven])
    assert table["score"].tolist() == [1.0, 0.0]
    assert [row["verifier_error"] for row in samples(table, [*seven, *seven])] == [None, "raised: KeyError: '8'"]
    assert Measured({}, None, table, [], 0.0).verifier_errors == 1
    with pytest.raises(
        ValueError, match=r"record ten/3: the verifier of skill .* fails on the reference: raised: KeyError"
    ):
        judged(answers[1:].assign(id="ten/3"), skill, skill.load("test")[3:4])


class Judged(TenIntegers):
    """Judges in the sandbox, and keeps the texts that it was given."""

    given: list[tuple[str, str]]

    def score(self, record, text):
        self.given.append((record.id, text))
        return float(verdict(math_judge, (record.responses[0].text, text), setup=()))


def test_verdicts_of_the_sandbox_are_in_order_and_equal_texts_are_judged_once(student):
    skill = Judged(student, LIMIT, right=())
    skill.given, records = [], skill.load("test")
    rows = [(one.id, f"${(k * 3 + i) % 10}$") for k, one in enumerate(records) for i in (0, 1, 0, 2)]
    answers = pd.DataFrame(rows, columns=["id", "text"]).assign(tokens=1, truncated=False)
    table = judged(answers, skill, records)
    assert table["score"].tolist() == [float(text == f"${name[-1]}$") for name, text in rows]
    assert table[["id", "text"]].to_records(index=False).tolist() == rows
    assert sorted(skill.given) == sorted(set(rows))


def _always(token):
    """Hidden states that do not depend on the input, and a head with one row that points along them."""
    model = tiny(0, tie_word_embeddings=False)
    with torch.no_grad():
        model.network.model.embed_tokens.weight.fill_(1.0)
        for layer in model.network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.network.lm_head.weight.zero_()
        model.network.lm_head.weight[token] = 1.0
    return model


@pytest.mark.parametrize("count", [0, 10])
def test_any_number_of_records(student, count):
    skill = TenIntegers(student, 1, right=())
    table = score_answers(student, skill, skill.load("test")[:count], max_new_tokens=1, batch_size=4)
    assert len(table) == count


def test_a_limit_of_the_sandbox_without_a_reference_is_counted_and_no_failure_of_the_verifier(student):
    class Slow(TenIntegers):
        def score(self, record, text):
            raise NoVerdict(*(("timeout", "too slow") if text == "slow" else ("raised", "broken")))

    skill = Slow(student, LIMIT, right=())
    alone = [replace(one, responses=()) for one in skill.load("test")[:1]]
    answers = pd.DataFrame({"id": ["ten/0"], "text": ["slow"], "tokens": 1, "truncated": False})
    table = judged(answers, skill, alone)
    assert (table["score"].tolist(), table["error"].tolist()) == ([0.0], ["timeout: too slow"])
    with pytest.raises(ValueError, match="there is no reference to try"):
        judged(answers.assign(text="other"), skill, alone)
