"""Spans by bytes: hand-made pieces, real tokenizers, broken characters, texts that part.

Run: python -m pytest tests/alignment/test_byte_spans.py
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from kd.alignment.byte_spans import byte_spans, first_rows, identity_spans, spans_of
from kd.alignment.token_bytes import END, token_bytes
from kd.data.sequences import Encoder
from kd.models.tokenizers import byte_tokenizer
from kd.types import Record, Response, Written
from tests.alignment.tokenizers import TEXTS, byte_level, sentencepiece, smollm2

TEACHERS = {"byte_level": byte_level, "sentencepiece": sentencepiece, "bytes": byte_tokenizer}
ANSWERS = [*TEXTS, "  two spaces, then\n\na line ", "日", "👩‍👩‍👧", "", "🙂🙂"]


def record(i: int, *answers: str) -> Record:
    prompt = ({"role": "user", "content": f"Say it {i} times."},)
    return Record(str(i), "toy", prompt, tuple(Response(answer) for answer in answers))


def batches(student, teacher, *answers: str, **bounds):
    bounds = {"max_length": 512, "max_tokens": 4096, "max_padding": 1.0, **bounds}
    return Encoder(student, teacher, **bounds).batches([record(i, answer) for i, answer in enumerate(answers)])


def found(student, teacher, batch):
    return spans_of(batch, token_bytes(student), token_bytes(teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        # ab|c against a|bc: only the whole ends together
        ([b"ab", b"c"], [b"a", b"bc"], [(0, 2, 0, 2)]),
        ([b"a", b"b", b"c"], [b"ab", b"c"], [(0, 2, 0, 1), (2, 3, 1, 2)]),
        # the end tokens are a span of their own, however they are spelled
        ([b"a", END], [b"a", END], [(0, 1, 0, 1), (1, 2, 1, 2)]),
        ([END], [END], [(0, 1, 0, 1)]),
        # é = C3 A9: one token here, two halves there; neither half is a span
        (["é".encode(), b"x"], [b"\xc3", b"\xa9", b"x"], [(0, 1, 0, 2), (1, 2, 2, 3)]),
        # both split the character in the same place: the halves are spans
        ([b"\xc3", b"\xa9x"], [b"\xc3", b"\xa9", b"x"], [(0, 1, 0, 1), (1, 2, 1, 3)]),
        # a token without bytes goes with what follows, at the end with what was before
        ([b"", b"a", b"b"], [b"a", b"b"], [(0, 2, 0, 1), (2, 3, 1, 2)]),
        ([b"a", b""], [b"a"], [(0, 2, 0, 1)]),
        # one was cut: what both hold is aligned, its half word and the end token are not
        ([b"a", b"b"], [b"a", b"bc", b"d", END], [(0, 1, 0, 1)]),
        ([b"a", b"b"], [b"a", b"b", END], [(0, 1, 0, 1), (1, 2, 1, 2)]),
        # the texts part at the second byte
        ([b"a", b"\xff", b"c", END], [b"a", b"\xef\xbf\xbd", b"c", END], [(0, 1, 0, 1)]),
        ([b"a"], [b"b"], []),
        ([], [b"b"], []),
    ],
)
def test_by_hand(student, teacher, expected):
    assert byte_spans(student, teacher) == expected
    mirrored = [(c, d, a, b) for a, b, c, d in expected]
    assert byte_spans(teacher, student) == mirrored


@pytest.mark.parametrize("name", TEACHERS)
def test_spans_partition_the_responses_into_equal_bytes(name):
    student, teacher = smollm2(), TEACHERS[name]()
    [batch] = batches(student, teacher, *ANSWERS)
    spans = found(student, teacher, batch)
    sides = ((student, batch.student, spans.start, spans.end), (teacher, batch.teacher, *spans[2:4]))
    written = []
    for tokenizer, sequences, start, end in sides:
        assert start[0] == 0
        assert end[-1] == sequences.mask.sum()  # nothing is left over, end tokens included
        assert all(a == b for a, b in zip(end[:-1].tolist(), start[1:].tolist(), strict=True))
        ids = sequences.labels[sequences.mask].tolist()
        tokens = token_bytes(tokenizer)
        stripped = {int(row) for row in (sequences.mask.sum(1).cumsum(0) - sequences.mask.sum(1))}
        pieces = [tokens.pieces[i] for i in ids]
        if tokens.strips:
            pieces = [piece.removeprefix(b" ") if row in stripped else piece for row, piece in enumerate(pieces)]
        written.append([b"".join(pieces[a:b]) for a, b in zip(start.tolist(), end.tolist(), strict=True)])
    assert written[0] == written[1]
    texts = ["".join(r.text for r in record.responses) for record in batch.records]
    for i, text in enumerate(texts):
        own = [piece for piece, sequence in zip(written[0], spans.sequence.tolist(), strict=True) if sequence == i]
        assert b"".join(own) == text.encode() + END


@pytest.mark.parametrize("name", TEACHERS)
def test_spans_are_minimal(name):
    student, teacher = smollm2(), TEACHERS[name]()
    [batch] = batches(student, teacher, *ANSWERS)
    spans = found(student, teacher, batch)
    ours, theirs = token_bytes(student), token_bytes(teacher)
    ids = [s.labels[s.mask].tolist() for s in (batch.student, batch.teacher)]
    for a, b, c, d, _ in zip(*(field.tolist() for field in spans), strict=True):
        inside = [
            {len(b"".join(tokens.pieces[i] for i in row[x:k])) for k in range(x + 1, y)}
            for tokens, row, x, y in ((ours, ids[0], a, b), (theirs, ids[1], c, d))
        ]
        assert theirs.strips or not inside[0] & inside[1]  # no earlier end in common


def test_a_character_in_pieces():
    student, teacher = smollm2(), byte_tokenizer()
    [batch] = batches(student, teacher, "個")
    ids = batch.student.labels[batch.student.mask].tolist()
    assert [token_bytes(student).pieces[i] for i in ids[:-1]] == [b"\xe5\x80", b"\x8b"]
    spans = found(student, teacher, batch)
    assert list(zip(*(field.tolist() for field in spans[:4]), strict=True)) == [
        (0, 1, 0, 2),
        (1, 2, 2, 3),
        (2, 3, 3, 4),
    ]


def test_a_beginning_token_and_a_template_are_no_part_of_it():
    student, teacher = smollm2(), sentencepiece()
    [batch] = batches(student, teacher, "42")
    assert batch.teacher.tokens[0, 0] == teacher.bos_token_id
    assert batch.student.tokens[0, 0] != student.bos_token_id or student.bos_token == "<|im_start|>"
    assert found(student, teacher, batch).start.tolist()[0] == 0
    assert found(student, teacher, batch).teacher_start.tolist()[0] == 0


def test_a_special_token_in_the_text_is_spelled_out_by_the_other():
    student, teacher = smollm2(), byte_tokenizer()
    said = replace(record(0, "a<|im_start|>b"), control_tokens=True)
    [batch] = Encoder(student, teacher, max_length=512, max_tokens=4096).batches([said])
    spans = found(student, teacher, batch)
    assert (spans.end[1] - spans.start[1], spans.teacher_end[1] - spans.teacher_start[1]) == (1, len("<|im_start|>"))


def test_a_special_token_that_the_student_writes_is_not_in_the_text_that_the_teacher_reads():
    student, teacher = smollm2(), byte_tokenizer()
    encoder = Encoder(student, teacher, max_length=512, max_tokens=4096)
    start = student.convert_tokens_to_ids("<|im_start|>")
    a, b = (student(letter, add_special_tokens=False)["input_ids"] for letter in "ab")
    [batch] = encoder.written([record(0, "")], [[Written((*a, start, *b, student.eos_token_id))]])
    spans = found(student, teacher, batch)
    assert (spans.start.tolist(), spans.end.tolist()) == ([0, 1, 3], [1, 3, 4])
    assert spans.teacher_start.tolist() == [0, 1, 2]


def test_what_was_cut_is_not_aligned():
    student, teacher = smollm2(), byte_tokenizer()
    [batch] = batches(student, teacher, "apples and pears and plums and nothing else", max_length=55)
    spans = found(student, teacher, batch)
    assert int(batch.teacher.labels[batch.teacher.mask][-1]) != teacher.eos_token_id
    assert 0 < spans.end[-1] < int(batch.student.mask.sum())


def test_sequences_do_not_meet():
    student, teacher = smollm2(), byte_level()
    [together] = batches(student, teacher, *ANSWERS)
    spans = found(student, teacher, together)
    for earlier, later in pairwise(zip(*(field.tolist() for field in spans), strict=True)):
        assert later[4] in (earlier[4], earlier[4] + 1)
    alone = [
        found(student, teacher, b) for a in together.records for b in batches(student, teacher, a.responses[0].text)
    ]
    lengths = torch.tensor([len(one.start) for one in alone])
    assert torch.equal(spans.sequence.bincount(minlength=len(lengths)), lengths)


def test_one_tokenizer_gives_every_row_itself():
    student = smollm2()
    [batch] = batches(student, None, *ANSWERS)
    for got, expected in zip(found(student, student, batch), identity_spans(batch), strict=True):
        assert torch.equal(got, expected)
    pairs = first_rows(identity_spans(batch))
    assert torch.equal(pairs.student, pairs.teacher)


def test_words_without_their_spaces_are_refused():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
    wordpiece.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match=r"no pieces of a text's bytes .*WordPiece.*take alignment=none"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=wordpiece, eos_token="</s>"))
