"""Responses of the student that a teacher has revised.

Run: python -m pytest tests/rollouts/test_refined.py
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from kd.data.chat_template import encode_prompt, response_text
from kd.data.sequences import Encoder
from kd.generators.generation import generate
from kd.models.tokenizers import byte_tokenizer
from kd.rollouts import Rollout
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.refined import Refined
from kd.seeding import seeded
from kd.teachers.interface import Answers, Teacher
from kd.teachers.self_teacher import Own
from kd.teachers.white_box import WhiteBox
from kd.types import WRITERS, Batch, Models, Progress, Record
from tests.rollouts.reported import learnt
from tests.tiny import record, records, tiny

GIVEN = records(3)
NOW = Progress(0, 10)
TEMPLATE = "{question} Mend: {attempt}"
GREEDY = {"max_new_tokens": 7, "temperature": 0.0}
BY_TEACHER, BY_STUDENT = WRITERS.index("teacher"), WRITERS.index("student")


class Echo(Teacher):
    """A teacher that provides text alone, and repeats the attempt it is shown."""

    provides: ClassVar[frozenset[str]] = frozenset({"text"})

    def identity(self) -> str:
        return "echo"

    def generate(self, records: Sequence[Record], **settings: Any) -> list[Answers]:
        return [Answers((one.prompt[-1]["content"].partition("Mend: ")[2],), (True,), 1) for one in records]


def written(rollout, student, teacher, given=GIVEN, **sizes) -> list[Batch]:
    encoder = Encoder(student.tokenizer, None, **{"max_length": 200, "max_tokens": 10_000, **sizes})
    with seeded(4, "step", 0):
        return rollout(encoder.batches(given), Models(student, teacher), NOW, encoder)


def asked(kept: Record, attempt: str, tokenizer) -> list[int]:
    """The prompt of the revision, by hand."""
    return encode_prompt(({"role": "user", "content": f"{kept.prompt[0]['content']} Mend: {attempt}"},), tokenizer)


def rows(batches: list[Batch], side: str) -> dict[str, tuple[list[int], list[int]]]:
    """record id -> the prompt that the model of this side reads, and what follows it."""
    found = {}
    for batch in batches:
        sequences = getattr(batch, side)
        for i, kept in enumerate(batch.records):
            first = int(sequences.mask[i].int().argmax())
            labels = sequences.labels[i][sequences.mask[i]].tolist()
            found[kept.id] = (sequences.tokens[i, : first + 1].tolist(), labels)
    return found


def test_the_teacher_revises_what_it_reads_and_the_student_learns_it_after_the_plain_prompt():
    student, teacher = tiny(0), tiny(1)
    rollout = Refined(template=TEMPLATE, **GREEDY)
    assert isinstance(rollout, Rollout)
    batches = written(rollout, student, WhiteBox(teacher))
    attempts = learnt(written(OnPolicy(**GREEDY), student, None))
    own, other = rows(batches, "student"), rows(batches, "teacher")
    for kept in GIVEN:
        prompt = asked(kept, response_text(attempts[kept.id][0], student.tokenizer), teacher.tokenizer)
        [revision] = generate(teacher, [prompt], max_new_tokens=7)
        assert revision != attempts[kept.id][0]
        assert own[kept.id] == (encode_prompt(kept.prompt, student.tokenizer), revision)
        assert other[kept.id] == (prompt, revision)
    for batch in batches:
        assert all(getattr(batch, name) is not None for name in rollout.provides)
        assert set(batch.written_by.tolist()) == {BY_TEACHER}
        assert {r.source for kept in batch.records for r in kept.responses} == {"teacher"}


def test_each_attempt_has_its_own_revision_and_both_are_counted(meter):
    student = tiny(0)
    rollout = Refined(template=TEMPLATE, max_new_tokens=5, samples=2)
    batches = written(rollout, student, WhiteBox(tiny(1)))
    assert {batch.group_size for batch in batches} == {1}
    assert sorted(kept.id for batch in batches for kept in batch.records) == ["0", "0", "1", "1", "2", "2"]
    report = rollout.take_report()
    assert meter.spent.generated_tokens == report["response_length"][0] > 0
    assert meter.spent.teacher_tokens > report["revised_length"][0] > 0
    assert report["unrevised"] == (0.0, 6.0)
    assert rollout.take_report()["unrevised"] == (0.0, 0.0)


def test_an_attempt_whose_prompt_of_revision_has_no_room_is_learnt_as_it_is():
    """Once the prompt of the second record's revision leaves one token, and once none."""
    student, teacher = tiny(0), tiny(1)
    given = [record(0, "2 + 2 = ?"), record(1, "What are two and two, taken together?")]
    attempts = {name: ids for name, [ids] in learnt(written(OnPolicy(**GREEDY), student, None, given)).items()}
    texts = {name: response_text(ids, student.tokenizer) for name, ids in attempts.items()}
    prompt = asked(given[1], texts["1"], student.tokenizer)

    rollout = Refined(template=TEMPLATE, **GREEDY)
    batches = written(rollout, student, WhiteBox(teacher), given, max_length=len(prompt) + 1)
    assert rows(batches, "teacher")["1"] == (prompt, generate(teacher, [prompt], max_new_tokens=1)[0])
    assert rollout.take_report()["unrevised"] == (0.0, 2.0)

    batches = written(rollout, student, WhiteBox(teacher), given, max_length=len(prompt))
    plain = encode_prompt(given[1].prompt, student.tokenizer)
    assert rows(batches, "student")["1"] == rows(batches, "teacher")["1"] == (plain, attempts["1"])
    assert rows(batches, "teacher")["0"][0] == asked(given[0], texts["0"], student.tokenizer)
    writers = {
        kept.id: w for batch in batches for kept, w in zip(batch.records, batch.written_by.tolist(), strict=True)
    }
    assert writers == {"0": BY_TEACHER, "1": BY_STUDENT}
    assert rollout.take_report()["unrevised"] == (1.0, 2.0)


def test_where_no_attempt_can_be_revised_all_are_learnt_as_they_are():
    """The teacher generates nothing, which is no error."""
    student = tiny(0)
    longest = max(len(encode_prompt(kept.prompt, student.tokenizer)) for kept in GIVEN)
    rollout = Refined(template="{question} " + "and " * 60 + "{attempt}", **GREEDY)
    batches = written(rollout, student, WhiteBox(tiny(1)), max_length=longest + 8)
    assert learnt(batches) == learnt(written(OnPolicy(**GREEDY), student, None))
    assert rollout.take_report()["unrevised"] == (3.0, 3.0)


def test_the_student_revises_with_the_reference_at_hand():
    student, teacher = tiny(0), Own(mode="frozen")
    teacher.bind(student)
    rollout = Refined(template="{question} ({demonstration}) Mend: {attempt}", **GREEDY)
    batches = written(rollout, student, teacher)
    attempts = learnt(written(OnPolicy(**GREEDY), student, None))
    for kept in GIVEN:
        attempt = response_text(attempts[kept.id][0], student.tokenizer)
        shown = replace(
            kept, prompt=({"role": "user", "content": f"{kept.prompt[0]['content']} ({kept.responses[0].text})"},)
        )
        prompt = asked(shown, attempt, student.tokenizer)
        assert rows(batches, "teacher")[kept.id] == (prompt, generate(student, [prompt], max_new_tokens=7)[0])
    with pytest.raises(ValueError, match=r"record 7 of toy has no response that rollout.template could show"):
        rollout.revising(Record("7", "toy", record(7).prompt), "an attempt")


def test_a_text_teacher_that_repeats_leaves_all_unchanged():
    student, rollout = tiny(0), Refined(template=TEMPLATE, **GREEDY)
    batches = written(rollout, student, Echo())
    attempts = learnt(written(OnPolicy(**GREEDY), student, None))
    for name, [ids] in learnt(batches).items():
        assert response_text(ids, student.tokenizer) == response_text(attempts[name][0], student.tokenizer)
    assert {w for batch in batches for w in batch.written_by.tolist()} == {BY_TEACHER}
    assert rollout.take_report()["unchanged"] == (3.0, 3.0)


def test_a_teacher_with_other_tokens_revises_in_its_own():
    """Its prompt has more tokens, by which the room is measured."""
    student, teacher, words = tiny(0), tiny(1), byte_tokenizer()
    words.chat_template = "Now. " + words.chat_template
    teacher.tokenizer = words
    given = [record(0, "2 + 2 = ?")]
    [[attempt]] = learnt(written(OnPolicy(**GREEDY), student, None, given)).values()
    prompt = asked(given[0], response_text(attempt, student.tokenizer), words)
    rollout = Refined(template=TEMPLATE, **GREEDY)
    for room, unrevised in ((7, 0.0), (0, 1.0)):
        encoder = Encoder(student.tokenizer, words, max_length=len(prompt) + room, max_tokens=10_000)
        batches = rollout(encoder.batches(given), Models(student, WhiteBox(teacher)), NOW, encoder)
        expected = prompt if room else encode_prompt(given[0].prompt, words)
        assert rows(batches, "teacher")["0"][0] == expected
        assert rollout.take_report()["unrevised"] == (unrevised, 1.0)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{question}", r"rollout.template has no \{attempt\}"),
        ("{attempt}", r"rollout.template has no \{question\}"),
        ("{question} {attempt} {answer}", r"rollout.template has \{answer\}, which is none of its fields"),
    ],
)
def test_a_template_names_both_fields_and_no_unknown_one(template, sentence):
    with pytest.raises(ValueError, match=sentence):
        Refined(template=template, max_new_tokens=5)
