"""BLEU and chrF against sacrebleu's corpus scores, SARI against the numbers of the paper's script."""

import random

import numpy as np
import pytest
import sacrebleu

from kd.metrics.translation import Bleu, Chrf, sari

SOURCE = "About 95 species are currently accepted ."
REFERENCES = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]


@pytest.mark.parametrize(
    ("text", "value"),  # as SARI.py of github.com/cocoxu/simplification prints them
    [
        ("About 95 you now get in .", 26.82782411698074),
        ("About 95 species are now agreed .", 58.89995423074248),
        ("About 95 species are currently agreed .", 50.71608864657479),
    ],
)
def test_sari_of_the_papers_script(text, value):
    assert sari(text, SOURCE, REFERENCES) == pytest.approx(value)


def test_sari_by_hand():
    # unigrams only, for longer n-grams there are none: a is kept, b deleted, c added, all as the reference has it
    assert sari("c", "b", ["c"]) == pytest.approx(100 * (1 + 0 + 1) / 3 / 4)
    assert sari("", "b", ["c"]) == pytest.approx(100 * (0 + 0 + 1) / 3 / 4)


def corpus(seed=0):
    rng = random.Random(seed)
    words = ["the", "cat", "sat", "on", "mat", ",", "it's", "Dogs", "run", "北京", "é"]
    return [" ".join(rng.choices(words, k=rng.randrange(0, 15))) for _ in range(30)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Bleu(), sacrebleu.BLEU()),
        (Bleu(tokenize="zh"), sacrebleu.BLEU(tokenize="zh")),
        (Chrf(), sacrebleu.CHRF()),
        (Chrf(word_order=2), sacrebleu.CHRF(word_order=2)),
    ],
)
def test_a_corpus_has_the_score_of_sacrebleu(ours, theirs):
    texts = corpus()
    first, second, answers = texts[:10], texts[10:20], texts[20:]
    rows = np.array([ours(text, [a, b]) for text, a, b in zip(answers, first, second, strict=True)])
    assert ours.total(rows) == pytest.approx(theirs.corpus_score(answers, [first, second]).score)


def test_bleu_by_hand():
    # 1-grams 4/5, 2-grams 3/4, 3-grams 2/3, 4-grams 1/2 of a text as long as its reference
    rows = np.array([Bleu()("the cat sat on it", ["the cat sat on mats"])])
    assert Bleu().total(rows) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert Bleu().total(np.array([Bleu()("", ["a b"])])) == 0
    assert Bleu().total(np.array([Bleu()("a b c d e", ["a b c d e"])])) == 100  # and not by rounding more
