"""Several teachers that generate text: routed, drawn, or the best of all.

Run: python -m pytest tests/teachers/test_several.py
"""

from dataclasses import replace

import pytest

from kd.generators.account import metered
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.teachers.endpoint.client import Connection
from kd.teachers.endpoint.teacher import Endpoint
from kd.teachers.interface import Answers
from kd.teachers.several import Several, _best
from tests.teachers.servers import Scripted, plain, serving
from tests.tiny import records

GREEDY = Decoding(8, temperature=0.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))


def saying(text: str) -> Scripted:
    def reply(body):
        found = plain(body)
        found["choices"][0]["message"]["content"] = text
        return found

    return Scripted(reply=reply)


def member(url: str, **settings) -> Endpoint:
    return Endpoint(url=url, served_model="scripted", self_test=False, connection=Connection(retries=0), **settings)


def test_each_record_is_answered_by_its_teacher_or_one_that_is_drawn():
    given = records(12)
    routed = [replace(record, meta={"teacher": "ab"[i % 3 == 0]}) for i, record in enumerate(given)]
    with serving(saying("one")) as first, serving(saying("two")) as second:
        members = {"a": member(first.url), "b": member(second.url, price={"input": 1e6})}
        with metered() as meter:
            found = Several(members=members, combine="routed").respond(routed, decoding=GREEDY, engine=Torch())
        assert [one.texts[0] for one in found] == [("one", "two")[i % 3 == 0] for i in range(12)]
        assert (meter.spent.requests, meter.spent.money > 0) == (12, True)
        weighted = {name: {"a": 1, "b": 0.001}[name] for name in members}
        drawn = Several(members=members, combine="mixture", weights=weighted)
        assert [one.texts[0] for one in drawn.respond(given, decoding=GREEDY, engine=Torch())] == ["one"] * 12
        both = {
            one.texts[0]
            for one in Several(members=members, combine="mixture").generate(given, decoding=GREEDY, engine=Torch())
        }
        assert both == {"one", "two"}
        with pytest.raises(ValueError, match=f"record {given[0].id} .* has no `teacher` in its meta"):
            Several(members=members, combine="routed").generate(given, decoding=GREEDY, engine=Torch())


def test_the_best_response_is_the_one_most_like_the_others():
    """F1 of words: "k b c" and "k b d" share 2 of 3, "x" shares none; the unfinished one comes last whatever it is."""
    group = [Answers(("x", "k b c"), (True, True), 5), Answers(("k b d", "k b c d"), (True, False), 7)]
    # likeness: x 0; k b c: 2/3 + 6/7; k b d: 2/3 + 6/7; the first of equals stays before the second
    assert _best(group, 1) == Answers(("k b c",), (True,), 12)
    assert _best(group, 3).texts == ("k b c", "k b d", "x")


def test_a_budget_is_of_each_teacher():
    with serving(saying("one")) as first, serving(saying("two")) as second:
        members = {"a": member(first.url), "b": member(second.url, budget={"tokens": 10})}
        several = Several(members=members, combine="best_of")
        with pytest.raises(
            ValueError, match=r"teacher.members.b: teacher.budget.tokens=10 has no room for another request"
        ):
            several.generate(records(2), decoding=GREEDY, engine=Torch())
        assert (len(first.requests), len(second.requests)) == (2, 0)


def test_members_and_weights_have_to_fit():
    one = member("http://localhost:9/v1")
    with pytest.raises(ValueError, match="has 1 of two members"):
        Several(members={"a": one}, combine="routed")
    with pytest.raises(ValueError, match=r"teacher.weights are for a, but the members of combine=best_of are a and b"):
        Several(members={"a": one, "b": one}, combine="best_of", weights={"a": 1})
