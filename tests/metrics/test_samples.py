"""pass@k by the paper's product and by enumeration; diversity by hand."""

from itertools import combinations

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from kd.metrics.samples import distinct, pass_at_k, self_bleu


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (10, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, c):
    scores = [1.0] * c + [0.5] * (n - c)  # a partial score is not right
    for k in range(1, n + 1):
        subsets = list(combinations(scores, k))
        assert pass_at_k(scores, k=k) == pytest.approx(np.mean([max(s) == 1 for s in subsets]))
        if n - c >= k:  # Chen et al. 2021, their numerically stable product
            assert pass_at_k(scores, k=k) == pytest.approx(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


def test_too_few_samples():
    with pytest.raises(ValueError, match=r"evaluation\.samples=10"):
        pass_at_k([1.0], k=10)
    with pytest.raises(ValueError, match=r"evaluation\.samples"):
        self_bleu(["a"])


def test_self_bleu_is_sacrebleus_of_each_sample_against_the_others_which_are_read_once(monkeypatch):
    rng = np.random.default_rng(0)
    words = ["a", "cat", "sat,", "on", "the", "mat.", "it's"]
    samples = [" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(40)]
    bleu = BLEU(effective_order=True)
    theirs = [bleu.sentence_score(one, samples[:i] + samples[i + 1 :]).score for i, one in enumerate(samples)]
    read: list[str] = []
    original = BLEU._preprocess_segment
    monkeypatch.setattr(BLEU, "_preprocess_segment", lambda self, text: read.append(text) or original(self, text))
    assert self_bleu(samples) == pytest.approx(np.mean(theirs), rel=1e-12)
    assert len(read) == len(samples)


def test_diversity_by_hand():
    assert distinct(["a b c", "a b d"], n=2) == pytest.approx(3 / 4)  # ab, bc, ab, bd
    assert distinct(["", ""], n=2) == 0
    assert distinct(["北京北京"], n=2) == pytest.approx(2 / 3)
    assert self_bleu(["the cat sat on it"] * 3) == pytest.approx(100)
    assert self_bleu(["a b c d", "e f g h"]) < 10
