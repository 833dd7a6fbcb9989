import math

import pytest
import torch

from kd.data.sequences import Encoder
from kd.evaluation.floor import Unconditional, uniform, unigram
from kd.evaluation.teacher_rows import teacher_rows
from tests.evaluation.conftest import RECORDS, record
from tests.evaluation.test_likelihood import full_log_probs

V = 261  # 256 bytes, 5 special tokens


def test_unigram_of_five_tokens(student, encoder):
    """Corpus "aab" and "": a a b <end> <end>, N = 5."""
    system = unigram(encoder, [record("1", "first?", "aab"), record("2", "second?", "")], V)
    a, b, c = (student.tokenizer.encode(letter)[0] for letter in "abc")
    q = system.logprobs.exp() * (5 + V)
    assert q[a].item() == pytest.approx(2 + 1, rel=1e-6)
    assert q[b].item() == pytest.approx(1 + 1, rel=1e-6)
    assert q[student.tokenizer.eos_token_id].item() == pytest.approx(2 + 1, rel=1e-6)
    assert q[c].item() == pytest.approx(0 + 1, rel=1e-6)
    assert q.sum().item() == pytest.approx(5 + V, rel=1e-6)
    # "bac": 2/266 * 3/266 * 1/266, and the end token's 3/266
    table = system.score_references(encoder, [record("3", "third?", "bac")])
    assert table["nll"].item() == pytest.approx(4 * math.log(266) - math.log(2 * 3 * 1 * 3), rel=1e-6)
    assert table["tokens"].item() == 4
    assert table["bytes"].item() == 3


def test_unigram_counts_what_is_trained_on(encoder, student):
    """A response that is cut has no end token to count, and one that does not fit is not there."""
    short = Encoder(student.tokenizer, None, max_length=10, max_tokens=100)
    ids = student.tokenizer.encode("abcd")
    # <user> q ? <end> <assistant> is 5 tokens, so 5 of the response's 6 are left
    cut = unigram(short, [record("1", "q?", "abcda"), record("2", "a question?", "a")], V)
    assert (cut.logprobs.exp() * (5 + V))[ids].round().tolist() == [3, 2, 2, 2]
    assert (cut.logprobs.exp() * (5 + V))[student.tokenizer.eos_token_id].round() == 1


def test_uniform_is_log_v_per_token(encoder):
    table = uniform(V).score_references(encoder, RECORDS)
    assert table["nll"].tolist() == pytest.approx([n * math.log(V) for n in table["tokens"]], rel=1e-6)


def test_agreement_with_the_teacher_is_exact(teacher, encoder):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(V, generator=generator).log_softmax(-1)
    rows = teacher_rows(teacher, "t", encoder, RECORDS)
    table = Unconditional(q).score_references(encoder, RECORDS, teacher_rows=rows).set_index("id")
    for item in RECORDS:
        p, _ = full_log_probs(teacher, item)
        row, u = table.loc[item.id], q.double()
        assert row["forward_kl"] == pytest.approx((p.exp() * (p - u)).sum().item(), rel=1e-5)
        assert row["reverse_kl"] == pytest.approx((u.exp() * (u - p)).sum().item(), rel=1e-5)
        assert row["top1"] == (p.argmax(-1) == q.argmax()).sum()


def test_uniform_agrees_as_often_as_a_guess(teacher, encoder):
    rows = teacher_rows(teacher, "t", encoder, RECORDS)
    table = uniform(V).score_references(encoder, RECORDS, teacher_rows=rows)
    assert table["top1"].tolist() == [n / V for n in table["tokens"]]


def test_systems_are_named_by_content(encoder):
    assert uniform(V).identity == uniform(V).identity != uniform(V - 1).identity
    assert unigram(encoder, RECORDS, V).identity != unigram(encoder, RECORDS[1:], V).identity
