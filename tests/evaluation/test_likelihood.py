import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch

from kd.data.chat_template import render
from kd.data.references import references
from kd.data.sequences import Encoder
from kd.evaluation.floor import uniform
from kd.evaluation.likelihood import score_references
from kd.evaluation.reading import reading
from kd.evaluation.teacher_rows import teacher_rows
from kd.types import Response
from tests.evaluation.conftest import RECORDS, record, silenced, tiny


def full_log_probs(model, item):
    """[response tokens + end, V] by the checkpoint's own forward pass, one record at a time; and the labels."""
    words = model.tokenizer
    prompt = words(render(item.prompt, words), add_special_tokens=False)["input_ids"]
    ids = words(item.responses[0].text, add_special_tokens=False)["input_ids"] + [words.eos_token_id]
    with torch.no_grad():
        logits = model.network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1), torch.tensor(ids)


def test_nll_is_the_sum_over_plain_logits(student, encoder):
    table = score_references(student, encoder, RECORDS)
    assert table["id"].tolist() == [item.id for item in RECORDS]
    for item, row in zip(RECORDS, table.itertuples(), strict=True):
        logs, ids = full_log_probs(student, item)
        assert row.nll == pytest.approx(-logs[torch.arange(len(ids)), ids].sum().item(), rel=1e-10)
        assert row.tokens == len(ids)
    assert table[["top1", "forward_kl", "reverse_kl"]].isna().all(axis=None)


def test_divergences_are_the_sums_over_full_distributions(student, teacher, encoder):
    table = score_references(
        student, encoder, RECORDS, teacher_rows=teacher_rows(teacher, "teacher", encoder, RECORDS)
    ).set_index("id")
    for item in RECORDS:
        (q, _), (p, _) = full_log_probs(student, item), full_log_probs(teacher, item)
        row = table.loc[item.id]
        assert row["forward_kl"] == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-9)
        assert row["reverse_kl"] == pytest.approx((q.exp() * (q - p)).sum().item(), rel=1e-9)
        assert row["top1"] == (p.argmax(-1) == q.argmax(-1)).sum()


def test_teacher_agrees_with_itself(teacher, encoder):
    rows = teacher_rows(teacher, "teacher", encoder, RECORDS)
    table = score_references(teacher, encoder, RECORDS, teacher_rows=rows)
    assert table["top1"].tolist() == table["tokens"].tolist()
    assert table["forward_kl"].abs().max() < 1e-12
    assert table["reverse_kl"].abs().max() < 1e-12


def test_bytes_are_those_of_the_text_without_the_end_token(student, encoder):
    table = score_references(student, encoder, RECORDS).set_index("id")
    # Z o ë(2) , space 日(3) 本(3) , space 3 space €(3): 4 letters and signs, then as counted
    assert table.loc["accents", "bytes"] == 2 + 2 + 2 + 6 + 2 + 1 + 1 + 3
    assert table.loc["accents", "tokens"] == 19 + 1  # the tokenizer's tokens are bytes; the end token
    assert table.loc["empty", ["bytes", "tokens"]].tolist() == [0, 1]


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_batches_chunks_and_order_change_nothing(student, teacher, encoder, max_tokens, chunk):
    whole = score_references(student, encoder, RECORDS, teacher_rows=teacher_rows(teacher, "t", encoder, RECORDS))
    other = Encoder(student.tokenizer, None, max_length=200, max_tokens=max_tokens)
    turned = RECORDS[::-1]
    rows = teacher_rows(teacher, "t", other, turned)
    table = score_references(student, other, turned, teacher_rows=rows, chunk=chunk)
    pd.testing.assert_frame_equal(table[::-1].reset_index(drop=True), whole, rtol=1e-9)


def test_no_more_rows_than_a_chunk_meet_the_head(student, teacher, encoder, monkeypatch):
    """The head of neither model is applied to more than `chunk` rows at a time."""
    sizes = []
    linear = torch.nn.functional.linear

    def watched(x, weight, bias=None):
        if weight.shape[0] == student.vocabulary:
            sizes.append(x.numel() // x.shape[-1])
        return linear(x, weight, bias)

    rows = teacher_rows(teacher, "t", encoder, RECORDS)
    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    score_references(student, encoder, RECORDS, teacher_rows=rows, chunk=5)
    # 2, 20, 20 and 1 rows of each model, end tokens included, however they are batched
    assert max(sizes) == 5
    assert sum(sizes) == 2 * (2 + 20 + 20 + 1)


def test_teacher_reads_once(student, teacher, encoder, cache):
    first = teacher_rows(teacher, "teacher", encoder, RECORDS)
    silent = silenced(teacher)
    again = teacher_rows(silent, "teacher", encoder, RECORDS)
    assert torch.equal(first.hidden, again.hidden)
    assert len(list(cache.glob("teacher_rows/*.safetensors"))) == 1
    assert not list(cache.rglob("*.tmp"))
    with pytest.raises(AssertionError, match="forward"):
        teacher_rows(silent, "another", encoder, RECORDS)
    with pytest.raises(AssertionError, match="forward"):
        teacher_rows(silent, "teacher", encoder, [record("short", "1+1?", "3"), *RECORDS[1:]])


def test_other_tokenizer_has_no_teacher_rows(student, teacher, encoder):
    encoder.teacher = object()
    with pytest.raises(ValueError, match="different tokenizers"):
        teacher_rows(teacher, "t", encoder, RECORDS)


def test_other_vocabulary_is_refused(teacher, encoder):
    rows = teacher_rows(teacher, "t", encoder, RECORDS)
    with pytest.raises(ValueError, match="261 ids and the system 250"):
        uniform(250).score_references(encoder, RECORDS, teacher_rows=rows)


def test_references_that_are_cut_are_left_out(student):
    # "long" takes 1 + 37 + 1 + 1 prompt tokens and 20 of the response
    encoder = Encoder(student.tokenizer, None, max_length=59, max_tokens=100)
    assert [item.id for item in references(encoder, RECORDS)] == ["short", "accents", "empty"]
    assert score_references(student, encoder, RECORDS)["id"].tolist() == ["short", "accents", "empty"]
    whole = Encoder(student.tokenizer, None, max_length=60, max_tokens=100)
    assert len(references(whole, RECORDS)) == 4
    none = Encoder(student.tokenizer, None, max_length=5, max_tokens=100)
    with pytest.raises(ValueError, match=r"data\.max_length=5"):
        references(none, RECORDS)


def test_first_response_is_the_reference(student, encoder):
    pair = replace(RECORDS[0], id="pair", responses=(Response("2"), Response("never mind")))
    alone, of_pair = (score_references(student, encoder, [item]) for item in (RECORDS[0], pair))
    pd.testing.assert_frame_equal(of_pair.drop(columns="id"), alone.drop(columns="id"))


def test_ids_must_differ(student, encoder):
    with pytest.raises(ValueError, match="2 records have 1 different ids"):
        references(encoder, [RECORDS[0], RECORDS[0]])


def test_modes_are_restored(encoder):
    model = tiny(3)
    model.train()
    model.network.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    with reading(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    failing = silenced(model)
    with pytest.raises(AssertionError, match="forward"):
        score_references(failing, encoder, RECORDS)
    assert [module.training for module in failing.modules()] == before
    assert torch.is_grad_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("place", "teacher_place"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_devices_change_nothing(student, teacher, encoder, place, teacher_place):
    expected = score_references(student, encoder, RECORDS, teacher_rows=teacher_rows(teacher, "t", encoder, RECORDS))
    system, there = copy.deepcopy(student).to(place), copy.deepcopy(teacher).to(teacher_place)
    rows = teacher_rows(there, "moved", encoder, RECORDS)
    table = score_references(system, encoder, RECORDS, teacher_rows=rows)
    pd.testing.assert_frame_equal(table, expected, rtol=1e-9)
    floor, moved = (uniform(261).score_references(encoder, RECORDS, teacher_rows=r) for r in (rows, None))
    assert floor["nll"].tolist() == pytest.approx(moved["nll"].tolist())
