"""Variants change what they name and nothing of the right answer.

Run: python -m pytest tests/evaluation/test_variants.py
"""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random

import pytest

from kd.components.choices import choices
from kd.data.recognition import LETTERS
from kd.evaluation.variants import variants
from kd.evaluation.variants.editable import protected, question, with_question, words
from kd.evaluation.variants.number_changes import number_changes
from kd.evaluation.variants.option_order import option_order, reordered
from kd.evaluation.variants.paraphrase import paraphrase
from kd.evaluation.variants.surface import letter_case, punctuation, spaces
from kd.evaluation.variants.typos import NEIGHBOURS, slip, typos
from kd.skills.__main__ import build, read
from kd.skills.answer_metrics import Evidence
from kd.skills.dataset import Dataset
from kd.skills.gsm_symbolic import GsmSymbolic
from kd.skills.mixture import Mixture
from kd.skills.procedural import problem, without_numbers
from kd.skills.reasoning_gym import ReasoningGym
from kd.types import Record, Response, Skill
from tests.evaluation.conftest import record

OPTIONS = {
    "chain_sum": {"min_terms": 2, "max_terms": 2},
    "number_filtering": {"min_numbers": 2, "max_numbers": 2, "min_decimals": 0, "max_decimals": 0},
    "letter_counting": {"min_words": 3, "max_words": 4},
    "spell_backward": {},
    "jugs": {},
    "tower_of_hanoi": {"max_disks": 3},
}
WITH_NUMBERS = ("gsm_symbolic", "chain_sum", "number_filtering")
WITHOUT = ("spell_backward", "letter_counting")
SKILLS = [
    "gsm_symbolic",
    *(p if p in (*WITH_NUMBERS, *WITHOUT) else pytest.param(p, marks=pytest.mark.long) for p in OPTIONS),
]
ANSWER = re.compile(r"\d+(?:\.\d+)?")


@cache
def skill(name: str) -> Skill:
    counts = {"train": 4, "validation": 2, "test": 3}
    if name == "gsm_symbolic":
        return GsmSymbolic(**counts)
    return ReasoningGym(task=name, options=OPTIONS[name], **counts)


@pytest.mark.parametrize("name", SKILLS)
def test_scorers_accept_the_reference_of_each_changed_record(name):
    changed = set()
    for variant in variants(choices("variant")):
        for one in skill(name).load("test"):
            if (new := variant(one, 0, skill(name))) is not None:
                changed.add(variant.name)
                assert new != one
                assert skill(name).score(new, new.responses[0].text) == 1.0, variant.name
    assert {"typos", "upper_case", "distraction"} <= changed
    assert ("number_changes" in changed) or name not in WITH_NUMBERS
    assert ("number_changes" not in changed) or name not in WITHOUT


@pytest.mark.parametrize("name", SKILLS)
def test_numbers_and_words_of_the_answer_stay(name):
    for variant in variants([one for one in choices("variant") if one not in ("number_changes", "option_order")]):
        for one in skill(name).load("test"):
            if (new := variant(one, 0, skill(name))) is None:
                continue
            assert (new.responses, new.meta, new.id) == (one.responses, one.meta, one.id)
            assert ANSWER.findall(question(new)) == ANSWER.findall(question(one)), variant.name
            if variant.name in ("distraction", "paraphrase"):
                continue
            kept = [[w for w in re.findall(r"\w+", question(r)) if w.casefold() in protected(one)] for r in (new, one)]
            assert not Counter(kept[1]) - Counter(kept[0]), variant.name


@pytest.mark.parametrize("function", [typos, spaces, punctuation])
def test_at_rate_0_a_record_is_itself_and_above_one_place_changes(function):
    one = record("1", "Please name the days of the weekend, quickly, for my sister.", "Saturday")
    assert function(one, 0, rate=0) == one
    assert question(function(one, 0, rate=0.001)) != question(one)
    assert function(one, 5, rate=0.5) == function(one, 5, rate=0.5)


def test_typos_at_their_rate():
    text = " ".join(f"{a}onder{b}" for a in "wkp" for b in ("ing", "ed", "s", "ful", "less", "er", "ly"))
    one = record("1", f"{text} 1234 Saturday", "Saturday")
    assert len(words(one, least=4)) == 21
    for rate, count in ((0.1, 2), (0.5, 10), (1.0, 21)):
        new = question(typos(one, 3, rate=rate)).split()
        assert sum(a != b for a, b in zip(new, question(one).split(), strict=True)) == count
    assert question(typos(one, 3, rate=1.0)).endswith(" 1234 Saturday")
    assert question(typos(one, 3, rate=1.0)) != question(typos(one, 4, rate=1.0))
    assert typos(record("1", "2 + 2 = ?", "4"), 0) is None


def test_a_slip_is_one_key():
    assert NEIGHBOURS["s"] == ["a", "d", "w", "e", "z", "x"] or set(NEIGHBOURS["s"]) == set("adwezx")
    random = Random(0)
    for _ in range(300):
        new = slip("Word", random)
        assert new[0] == "W"
        dropped = new in ("Wrd", "Wod", "Wor")
        swapped = new in ("Wrod", "Wodr")
        places = [i for i in range(4) if len(new) == 4 and new[i] != "Word"[i]]
        pressed = len(places) == 1 and new[places[0]] in NEIGHBOURS["word"[places[0]]]
        assert dropped or swapped or pressed


def test_case_spaces_and_punctuation_by_hand():
    one = record("1", 'Is "Ohm" larger, or is it 2.5 times the Volt? Say Volt.', "Volt")
    assert question(letter_case(one, 0, case="upper")) == 'IS "Ohm" LARGER, OR IS IT 2.5 TIMES THE Volt? SAY Volt.'
    assert question(letter_case(one, 0, case="lower")) == 'is "Ohm" larger, or is it 2.5 times the Volt? say Volt.'
    assert question(punctuation(one, 0)) == 'Is "Ohm" larger or is it 2.5 times the Volt? Say Volt.'
    assert question(spaces(one, 0, rate=1.0)) == 'Is "Ohm" larger, or  is  it 2.5 times  the Volt? Say Volt.'


def test_code_is_no_text():
    one = record(
        "1", "Complete this function.\n```python\ndef half(number):\n    return number\n```\nThank you, friend.", ""
    )
    for new in (typos(one, 0, rate=1.0), letter_case(one, 0, case="upper"), spaces(one, 0, rate=1.0)):
        assert re.findall(r"```.*```", question(new), re.DOTALL) == re.findall(r"```.*```", question(one), re.DOTALL)
        assert question(new) != question(one)


def test_a_paraphrase_by_hand():
    phrases = {"think step by step": "reason slowly", "what is": "tell me", "red": "crimson"}
    one = record("1", 'What is red? Think step by step. He said: "what is". I am bored.', "Red")
    new = paraphrase(one, 0, phrases=phrases)
    assert question(new) == 'Tell me red? Reason slowly. He said: "what is". I am bored.'
    assert paraphrase(record("1", "Sing.", "la"), 0, phrases=phrases) == record("1", "Sing.", "la")


def quiz(tmp_path) -> list[Record]:
    """Records with choices as they are read from a file."""
    rows = '{"question": "Which is largest?", "choices": ["an ant", "a bee", "a cow", "a dog"], "answer": 2}\n'
    path = tmp_path / "quiz.jsonl"
    path.write_text(rows)
    return list(Dataset(str(path), metrics=["choice_accuracy"], train=0, validation=0, test=1).load("test"))


def test_options_move_and_letters_stay(tmp_path):
    [one] = quiz(tmp_path)
    new = reordered(one, [2, 0, 3, 1])
    assert question(new) == "Which is largest?\nA. a cow\nB. an ant\nC. a dog\nD. a bee"
    assert (new.meta["choices"], new.meta["answer_index"]) == (["a cow", "an ant", "a dog", "a bee"], 0)
    assert new.responses == one.responses
    assert reordered(new, [1, 3, 0, 2]) == one  # the inverse
    drawn = option_order(one, 0)
    assert drawn.meta["choices"] != one.meta["choices"]
    assert drawn.meta["choices"][drawn.meta["answer_index"]] == "a cow"


@pytest.mark.parametrize(
    ("answer", "expected"), [("C", "A"), ("(c)", "(a)"), ("C. a cow", "A. a cow"), ("a cow", "a cow")]
)
def test_a_letter_follows_its_text(tmp_path, answer, expected):
    [one] = quiz(tmp_path)
    one = replace(
        one, responses=(Response(answer, score=0.5),), meta={**one.meta, "references": [answer], "answer": answer}
    )
    new = reordered(one, [2, 0, 3, 1])
    assert (new.responses, new.meta["references"]) == ((Response(expected, score=0.5),), [expected])
    assert new.meta["answer"] == expected
    assert reordered(new, [1, 3, 0, 2]) == one


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("answer", 2, 0),
        ("answer", 3, 1),  # counted from 1
        ("answer", "2", "0"),
        ("answerKey", "C", "A"),
        ("label", 2, 0),
        ("letter", "C", "A"),
        ("correct_answer", "C. a cow", "A. a cow"),
        ("references", [2, "C"], [0, "A"]),
        ("label", True, True),
        ("answer", 42, 42),  # no place of the right option
        ("options", ["an ant", "a bee", "a cow", "a dog"], ["a cow", "an ant", "a dog", "a bee"]),
        ("options", "A. an ant\nB. a bee\nC. a cow\nD. a dog", "A. a cow\nB. an ant\nC. a dog\nD. a bee"),
        ("options", list("ABCD"), list("ABCD")),
        ("relevance", [0, 1, 2, 0], [2, 0, 0, 1]),
    ],
)
def test_facts_of_the_right_option_follow_it(tmp_path, key, value, expected):
    [one] = quiz(tmp_path)
    one = replace(one, meta={**one.meta, key: value})
    new = reordered(one, [2, 0, 3, 1])
    assert (new.meta[key], new.meta["answer_index"]) == (expected, 0)
    assert reordered(new, [1, 3, 0, 2]) == one


def test_a_number_that_may_be_a_place_or_a_text_is_left_out(tmp_path):
    rows = '{"question": "How many?", "choices": ["4 cows", "3 cows", "2 cows"], "answer_index": 2, "answer": 2}\n'
    (tmp_path / "numbers.jsonl").write_text(rows)
    [one] = Dataset(str(tmp_path / "numbers.jsonl"), train=0, validation=0, test=1).load("test")
    assert one.meta["answer"] == 2
    assert option_order(one, 0) is None
    other = replace(one, meta={**one.meta, "answer": "4"})  # neither of the two
    assert option_order(other, 0).meta["answer"] == "4"


CHOSEN = [
    "bbq",
    "commonsense_qa",
    "disambiguation",
    "logiqa",
    "medmcqa",
    "medqa",
    "mmlu",
    "openbookqa",
    "piqa",
    "proverbs",
    "social_iqa",
    "movielens_next",
]


@pytest.mark.long
@pytest.mark.parametrize("name", CHOSEN)
def test_the_right_option_of_each_skill_with_letters_stays_right(name):
    own = build(read(name, []))
    [variant] = variants(["option_order"])
    pairs = [(one, variant(one, 0, own)) for one in own.load("test")[:60]]
    kept = [(one, new) for one, new in pairs if new is not None]
    assert len(kept) > len(pairs) / 2
    for one, new in kept:
        right = one.meta["choices"][one.meta["answer_index"]]
        place = new.meta["answer_index"]
        assert new.meta["choices"][place] == right
        assert sorted(new.meta["choices"]) == sorted(one.meta["choices"])
        assert f"{LETTERS[place]}. {right}" in question(new)
        assert own.score(new, new.responses[0].text) == 1.0
        assert {Evidence(new).answers[0], new.responses[0].text} <= {right, LETTERS[place]}
        assert new.meta.get("letter", LETTERS[place]) == LETTERS[place]
        assert new.meta.get("options", "") in question(new)


def test_choices_that_are_letters(tmp_path):
    [one] = quiz(tmp_path)
    one = replace(one, responses=(Response("C"),), meta={"choices": list("ABCD"), "answer_index": 2})
    new = reordered(one, [2, 0, 3, 1])
    assert question(new) == "Which is largest?\nA. a cow\nB. an ant\nC. a dog\nD. a bee"
    assert (new.meta, new.responses[0].text) == ({"choices": list("ABCD"), "answer_index": 0}, "A")


def test_options_without_letters_or_explained_by_letters_stay(tmp_path):
    [one] = quiz(tmp_path)
    assert option_order(with_question(one, "Which is largest?"), 0) is None
    assert option_order(replace(one, responses=(Response("B is small, so C."),)), 0) is None
    assert option_order(replace(one, meta={}), 0) is None


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_other_numbers_in_the_same_problem(name):
    own = skill(name)
    known = {problem(one) for split in ("train", "validation", "test") for one in own.load(split)}
    for one in own.load("test"):
        new = number_changes(one, 0, own)
        if new is None:
            continue
        assert new.id == one.id
        assert problem(new) not in known
        assert ANSWER.findall(problem(new)) != ANSWER.findall(problem(one))
        if name == "gsm_symbolic":
            assert new.meta["template"] == one.meta["template"]
            assert own.score(new, one.responses[0].text) == 0.0
        else:
            assert without_numbers(problem(new)) == without_numbers(problem(one))
        assert number_changes(one, 0, own) == new != number_changes(one, 1, own)


def test_a_part_of_a_mixture_draws_its_own_problem():
    few = {"weight": 1, "train": 4, "validation": 2, "test": 2}
    mixed = Mixture(of={"chain_sum": few, "spell_backward": few}, test=2)
    [numbers] = variants(["number_changes"])
    found = {one.skill: numbers(one, 0, mixed) for one in mixed.load("test")}
    assert found["spell_backward"] is None
    assert mixed.score(found["chain_sum"], found["chain_sum"].responses[0].text) == 1.0


def constant(record: Record, seed: int) -> Record:
    return replace(record, id="another")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["typo"], r"conf/variant has no typo\.yaml; did you mean typos\?"),
        (["typos", "typos"], "names typos twice"),
        ([{"_target_": "kd.evaluation.variants.typos.typos", "rate": 2}], r"rate=2"),
        ([{"_target_": "kd.evaluation.variants.typos.slip"}], r"takes \(record, seed\)"),
    ],
)
def test_refusals(names, sentence):
    with pytest.raises(ValueError, match=sentence):
        variants(names)


def test_own_variants_from_outside_of_the_clone(monkeypatch):
    monkeypatch.setenv("KD_ALLOW", __name__)
    [own] = variants([{"_target_": f"{__name__}.constant", "name": "mine"}])
    assert own.name == "mine"
    with pytest.raises(ValueError, match="variant mine made the record another of the record 1"):
        own(record("1", "What?", "x"), 0, skill("chain_sum"))
