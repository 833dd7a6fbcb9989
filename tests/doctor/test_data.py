"""What of an experiment's records and vocabularies is found to be wrong.

Run: python -m pytest tests/doctor/test_data.py
"""

import json
import re
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from kd.data.sequences import Encoded, collate
from kd.experiment import checks
from kd.models.language_model import LanguageModel
from kd.models.tokenizers import byte_tokenizer
from kd.types import Batch
from tests.doctor.subjects import END, PAD, altered, diagnosis, line, model, node, reader, toy
from tests.tiny import records, tiny

# --- sequences ---


def encoded(*shapes: tuple[int, int]) -> list[Encoded]:
    return [Encoded((*range(length - 1), END), prompt) for length, prompt in shapes]


def test_an_end_token_outside_the_loss_fails():
    sequences = collate(encoded((6, 3), (4, 2)), pad=PAD)
    found = reader(byte_tokenizer())
    finding = checks.end_token_learnt(found, [sequences])
    assert finding.verdict == "PASS"
    assert finding.fact.startswith("in 2 of 2 whole responses")
    mask = sequences.mask.clone()
    mask[1, 2] = False  # of the shorter row's last label
    finding = checks.end_token_learnt(found, [replace(sequences, mask=mask)])
    assert finding.verdict == "FAIL"
    assert finding.fact.startswith("in 1 of 2 whole responses")


def test_an_end_token_that_also_pads_is_no_matter():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    finding = checks.end_token_learnt(reader(tokenizer), [collate(encoded((6, 3), (4, 2)), pad=END)])
    assert finding.verdict == "PASS"
    assert "it also pads" in finding.fact


def test_labels_that_are_not_shifted_fail():
    sequences = collate(encoded((6, 3), (4, 2)), pad=PAD)
    assert checks.shift([sequences]).verdict == "PASS"
    assert checks.shift([replace(sequences, labels=sequences.tokens)]).verdict == "FAIL"
    one = sequences.labels.clone()
    one[0, 3] = 99  # the last label that a token follows; the label of the last position follows nothing
    assert checks.shift([replace(sequences, labels=one)]).verdict == "FAIL"
    twice = torch.cat([sequences.labels[:, 1:], sequences.labels[:, :1]], dim=1)
    assert checks.shift([replace(sequences, labels=twice)]).verdict == "FAIL"


def test_padding_is_counted():
    """Rows of 5, 3 and 3 positions, 5 wide: 11 of 15 are real, 4/15 = 26.7 % are not."""
    sequences = collate(encoded((6, 3), (4, 2), (4, 2)), pad=PAD)
    finding = checks.padding([Batch(sequences, sequences)])
    assert finding.verdict == "WARN"
    assert finding.fact.startswith("26.7% of 15 positions")
    even = collate(encoded((6, 3), (6, 2)), pad=PAD)
    assert checks.padding([Batch(even, even)]).verdict == "PASS"
    assert checks.padding([Batch(sequences, sequences)], read=False).verdict == "PASS"


def test_a_length_that_cuts_is_named_with_the_one_that_does_not():
    with toy("data.max_length=45") as cfg:
        code, text = diagnosis(cfg)
    found = line(text, "lengths (student)")
    assert code == 0
    shares = re.search(r"of 24 records data.max_length=45 cuts ([\d.]+)% and leaves out ([\d.]+)%", found)
    assert found.startswith("WARN")
    assert shares is not None
    assert float(shares[1]) > 0
    remedy = re.search(r"data.max_length=(\d+) keeps all", found)
    assert remedy is not None
    longest = int(remedy[1])
    assert checks.lengths(reader(byte_tokenizer(), longest), records(24)).verdict == "PASS"
    assert checks.lengths(reader(byte_tokenizer(), longest - 1), records(24)).verdict == "WARN"


def test_a_length_that_nothing_fits_fails_and_stops_there():
    with toy("data.max_length=3") as cfg:
        code, text = diagnosis(cfg, shown=1)
    assert code == 1
    assert line(text, "lengths (student)").startswith("FAIL  lengths (student)")
    assert "cuts 0.0% and leaves out 100.0%" in text
    assert "self-test" not in text


# --- vocabularies ---


def test_an_id_without_a_row_fails_before_a_model_reads_it():
    with toy("+student.model.architecture.vocab_size=258", "alignment=none", "objective=sft") as cfg:
        code, text = diagnosis(cfg)
    assert code == 1
    found = line(text, "vocabulary (student)")
    assert found.startswith("FAIL")
    assert "id 260, but there are 258 embeddings" in found
    assert "self-test" not in text


def test_rows_of_a_padded_head_are_counted():
    with toy("+student.model.architecture.vocab_size=320") as cfg:
        code, text = diagnosis(cfg)
    assert code == 0
    assert "261 of 320 head rows belong to tokens, 59 of padding are cut" in line(text, "vocabulary (student)")


def test_ids_beyond_the_head_that_no_record_holds_are_a_warning():
    made = model()
    made.tokenizer.add_tokens(["<new>"])
    sequences = collate(encoded((6, 3)), pad=PAD)
    finding = checks.vocabulary(reader(made.tokenizer, made=made), [sequences])
    assert finding.verdict == "WARN"
    assert "reach 261, the head has 261 rows" in finding.fact


def other_ids() -> LanguageModel:
    """A byte model to which `a` is what `b` is to others."""
    made = tiny(dtype="float32")
    known = json.loads(made.tokenizer.backend_tokenizer.to_str())
    words = known["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    made.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(known)),
        eos_token=made.tokenizer.eos_token,
        chat_template=made.tokenizer.chat_template,
    )
    return made


def test_two_tokenizers_under_alignment_same_fail_and_are_examined_all_the_same():
    teacher = {**node("teacher"), "model": {"_target_": "tests.doctor.test_data.other_ids"}}
    with toy(student=node("student"), teacher=teacher) as cfg:
        code, text = diagnosis(cfg, shown=1)
    assert code == 1
    assert line(text, "alignment").startswith("FAIL")
    assert "differ in 'a'" in line(text, "alignment") or "differ in 'b'" in line(text, "alignment")
    assert text.count("predicted at") == 2
    assert line(text, "rows").startswith("FAIL")
    assert line(text, "self-test").startswith("PASS")


def test_sequences_beyond_the_models_positions_fail():
    with toy("student.model.architecture.max_position_embeddings=32") as cfg:
        code, text = diagnosis(cfg)
    assert code == 1
    assert line(text, "positions (student)").startswith("FAIL")
    assert line(text, "positions (student)").endswith("set data.max_length=32")
    assert line(text, "positions (teacher)").startswith("PASS")


@pytest.mark.parametrize(("licence", "verdict"), [("Apache-2.0", "PASS"), (None, "WARN"), ("CC BY-NC 4.0", "WARN")])
def test_licences_are_named(licence, verdict, subject):
    finding = checks.licences(altered(subject, f"teacher.licence={licence or 'null'}"))
    assert finding.verdict == verdict
    assert finding.fact == f"data CC0-1.0, teacher {licence or 'unknown'}"
