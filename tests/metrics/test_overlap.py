"""Exact match, token F1 and ROUGE: by hand, and against rouge-score. Run: python -m pytest tests/metrics"""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from kd.metrics.overlap import common_subsequence, contains, exact_match, rouge_l, rouge_n, token_f1
from kd.metrics.words import normalised

WORDS = "the a cat cats sat sitting on mat, quickly 3.5 Running runs don't U.S. x_y".split()  # noqa: SIM905


@pytest.mark.parametrize(
    ("text", "references", "normalise", "right"),
    [
        ("The Answer!", ["answer"], "squad", 1),
        ("answers", ["answer"], "squad", 0),
        ("b", ["a", "b"], "squad", 1),  # any of them
        ("", ["answer"], "squad", 0),
        ("", [""], "squad", 1),
        ("the", ["a"], "squad", 0),  # articles alone are not dropped
        ("+", ["-"], "squad", 0),  # nor are marks alone
        ("答案。", ["答案"], "squad", 1),
        ("cafe\u0301", ["café"], "squad", 1),  # two ways to write é
        ("The  answer", ["The answer"], "spaces", 1),
        ("the answer", ["The answer"], "spaces", 0),
        ("a ", ["a"], "none", 0),
    ],
)
def test_exact_match(text, references, normalise, right):
    assert exact_match(text, references, normalise=normalise) == right


def test_normalised_as_the_script_of_squad():
    # string.punctuation is dropped, not replaced by a space: "U.S." is "us"
    assert normalised("The U.S.  don't  a-b") == "us dont ab"


@pytest.mark.parametrize(
    ("text", "references", "value"),
    [
        ("a cat sat", ["the cat sat down"], 2 * 2 / (2 + 3)),  # articles are none of the words
        ("cat cat", ["cat"], 2 * 1 / (2 + 1)),  # a word counts as often as the other has it
        ("dog", ["cat"], 0),
        ("", ["cat"], 0),
        ("", [""], 1),
        ("北京大学", ["北京"], 2 * 2 / (4 + 2)),  # characters where there are no words
        ("cat", ["dog", "cat"], 1),
        ("cat", [], 0),
    ],
)
def test_token_f1(text, references, value):
    assert token_f1(text, references) == pytest.approx(value)


def test_contains_whole_words():
    assert contains("It was in Paris, I think.", ["Paris"]) == 1
    assert contains("Parisian", ["Paris"]) == 0
    assert contains("他在北京大学。", ["北京"]) == 1
    assert contains("anything", [""]) == 0


def test_rouge_by_hand():
    # Lin 2004: "police kill the gunman" shares police, the, gunman in order with "police killed the gunman": 3 of 4
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    assert rouge_n("police kill the gunman", ["police killed the gunman"], n=2) == pytest.approx(1 / 3)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("", ["a"]) == rouge_n("", [""], n=1) == 0
    assert rouge_l("他在北京", ["他去北京"]) == pytest.approx(0.75)  # rouge-score has 0, for it keeps a-z and 0-9 alone


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_that_of_rouge_score(stemmer):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(0, 14))) for _ in range(60)]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer)
    for text, one, other in zip(texts[:20], texts[20:40], texts[40:], strict=True):
        theirs = scorer.score_multi([one, other], text)
        assert rouge_n(text, [one, other], n=1, stemmer=stemmer) == pytest.approx(theirs["rouge1"].fmeasure)
        assert rouge_n(text, [one, other], n=2, stemmer=stemmer) == pytest.approx(theirs["rouge2"].fmeasure)
        assert rouge_l(text, [one, other], stemmer=stemmer) == pytest.approx(theirs["rougeL"].fmeasure)


def test_common_subsequence_by_brute_force():
    rng = random.Random(1)

    def length(a, b):
        if not a or not b:
            return 0
        return 1 + length(a[1:], b[1:]) if a[0] == b[0] else max(length(a[1:], b), length(a, b[1:]))

    for _ in range(50):
        a, b = (rng.choices("abc", k=rng.randrange(7)) for _ in range(2))
        assert common_subsequence(a, b) == length(a, b)
