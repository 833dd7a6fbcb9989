"""Records as sequences: prompt and response as ids, with shift and mask, each made here and nowhere else."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import (
    TextError,
    encode_answer,
    encode_prompt,
    end_id,
    response_text,
    turn_of,
)
from kd.data.images import Prompt, settings_of, view_of
from kd.data.rows import KEPT, MAX_PADDING, Encoded, collate, encode, micro_batches, reading, view
from kd.types import WRITERS, Batch, Message, Record, Response, Written


def prompt_ids(record: Record, tokenizer: PreTrainedTokenizerBase) -> list[int] | Prompt:
    """Ids of the record's prompt. Raises ValueError, which names the record, for one that cannot be encoded."""
    with naming(record):
        ids = encode_prompt(record.prompt, tokenizer, control_tokens=record.control_tokens, images=record.images)
    shown = view(record.images, tokenizer)
    return ids if shown is None else Prompt(ids, shown)


def answer_ids(record: Record, text: str, tokenizer: PreTrainedTokenizerBase, *, ended: bool) -> list[int]:
    """Ids of an answer to the record's prompt, with its end token if it `ended`. Raises as `prompt_ids`."""
    with naming(record):
        return encode_answer(record.prompt, text, tokenizer, control_tokens=record.control_tokens, ended=ended)


@contextmanager
def naming(record: Record) -> Iterator[None]:
    """Name the record in the error for a text that cannot be encoded."""
    try:
        yield
    except TextError as error:
        raise ValueError(f"record {record.id} of {record.skill} {error}") from error


class Encoder:
    """Encodes records as batches, in a student's and a teacher's tokens.

    max_length: longest sequence kept, in tokens. max_tokens: bound on a micro-batch's rows x longest row.
    max_padding: largest share of a window's tokens that is padding; raise it where many small micro-batches cost
    more time than padding does. every_turn: whether the assistant's messages in a prompt are learnt, too; for records
    with one response, and one tokenizer.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase | None,
        *,
        max_length: int,
        max_tokens: int,
        max_padding: float = MAX_PADDING,
        every_turn: bool = False,
    ):
        self.student, self.max_length, self.max_tokens, self.max_padding = student, max_length, max_tokens, max_padding
        self.every_turn = every_turn
        self.teacher = None if teacher is None or same_text(student, teacher) else teacher
        self._rows: dict[tuple, list[Encoded]] = {}
        self._readings: dict[bool, str | None] = {}  # how the student's tokenizer reads (True), and the teacher's
        if every_turn and self.teacher is not None:
            raise ValueError(
                "data.loss_on=all compares every answer of a conversation at the same tokens, but student and teacher "
                "write different ones; take data.loss_on=last"
            )

    def of_every_turn(self) -> "Encoder":
        """The same for training on all answers of a conversation."""
        return Encoder(
            self.student,
            self.teacher,
            max_length=self.max_length,
            max_tokens=self.max_tokens,
            max_padding=self.max_padding,
            every_turn=True,
        )

    def of_student(self, max_tokens: int) -> "Encoder":
        """The same in the student's tokens alone, which encodes no record again that this one has encoded."""
        alone = Encoder(self.student, None, max_length=self.max_length, max_tokens=max_tokens)
        if not self.every_turn:
            alone._rows, alone._readings = self._rows, self._readings
        return alone

    def batches(self, records: Sequence[Record]) -> list[Batch]:
        """Micro-batches of the records' own responses. A record that does not fit is left out."""
        pairs = [(record, self.encode(record)) for record in records]
        return self._batches([(record, rows) for record, rows in pairs if rows])

    def written(
        self,
        records: Sequence[Record],
        responses: Sequence[Sequence[Written]],
        teacher_prompts: Sequence[tuple[Message, ...]] | None = None,
    ) -> list[Batch]:
        """Micro-batches of responses that are known as ids, such as those that were just written.

        `responses[i]` are those to `records[i]`: the ids are kept as they are, for text that is decoded and encoded
        again may give other tokens. `teacher_prompts[i]` is the prompt before them for the teacher, where it is not
        the record's own; both models then share a tokenizer. A record of which a prompt leaves no room is left out.
        """
        pairs = []
        prompts = teacher_prompts or [record.prompt for record in records]
        for record, answers, teacher_prompt in zip(records, responses, prompts, strict=True):
            shown = replace(record, prompt=teacher_prompt)
            own, other = (prompt_ids(each, self.student) for each in (record, shown))
            room = self.max_length - max(len(own), 0 if self.teacher else len(other))
            if room < 1:
                continue
            cut = [shortened(answer, room) for answer in answers]  # before their text is scored
            kept = replace(record, responses=tuple(self._response(record, answer) for answer in cut))
            if rows := self._written(kept, cut, own, other, teacher_prompt):
                pairs.append((kept, rows))
        return self._batches(pairs)

    def given(self, record: Record) -> list[Written] | None:
        """The record's own responses as `written` takes them; None as for `encode`."""
        rows = self.encode(record)
        if rows is None:
            return None
        return [
            Written(row.ids[row.prompt :], response.source, truncated=row.truncated)
            for row, response in zip(rows, record.responses, strict=True)
        ]

    def takes(self, record: Record) -> bool:
        """Return whether the record's prompt leaves room for a response, in the student's and the teacher's tokens."""
        readers = [self.student, *([] if self.teacher is None else [self.teacher])]
        return all(len(prompt_ids(record, reader)) < self.max_length for reader in readers)

    def encode(self, record: Record) -> list[Encoded] | None:
        """The record's sequences; None if its prompt leaves no room for a response in the tokens of either model."""
        rows = self._encode(record, self.student)
        if rows is None or self.teacher is None:
            return rows
        return _beside(rows, self._encode(record, self.teacher))

    def _written(
        self,
        record: Record,
        answers: Sequence[Written],
        own: Sequence[int],
        other: Sequence[int],
        teacher_prompt: tuple[Message, ...],
    ) -> list[Encoded] | None:
        rows = [Encoded.of(own, answer, view=view_of(own)) for answer in answers]
        if self.teacher is None and other != own:
            return _beside(rows, [Encoded.of(other, answer, view=view_of(other)) for answer in answers])
        if self.teacher is None:
            return rows
        ended = [not answer.truncated for answer in answers]
        return _beside(rows, self._tokenized(replace(record, prompt=teacher_prompt), self.teacher, ended))

    def _response(self, record: Record, answer: Written) -> Response:
        """The response of these ids, of a dialogue its last turn; the record's own where source and text are one."""
        text = response_text(answer.last_turn, self.student)
        for own in record.responses if answer.source != "student" else ():
            if own.source == answer.source and own.text == text:
                return own
        return Response(text, answer.source)

    def _batches(self, pairs: Sequence[tuple[Record, Sequence[Encoded]]]) -> list[Batch]:
        sizes = {len(rows) for _, rows in pairs}
        if len(sizes) > 1:  # refused even where lengths keep them in different batches today
            raise ValueError(
                f"records with {sorted(sizes)} responses are mixed in one window; give each the same number"
            )
        lengths = [max(row.longest - 1 for row in rows) * len(rows) for _, rows in pairs]
        groups = micro_batches(lengths, self.max_tokens, self.max_padding)
        return [self._batch([pairs[i] for i in group]) for group in groups]

    def _batch(self, pairs: Sequence[tuple[Record, Sequence[Encoded]]]) -> Batch:
        records = tuple(record for record, _ in pairs)
        rows = [row for _, group in pairs for row in group]
        student = collate(rows, pad_id(self.student))
        teachers = [row.teacher or row for row in rows] if any(row.teacher for row in rows) else []
        return Batch(
            student,
            collate(teachers, pad_id(self.teacher or self.student)) if teachers else student,
            records,
            group_size=len(pairs[0][1]),
            written_by=torch.tensor([WRITERS.index(r.source) for record in records for r in record.responses]),
            behaviour_logprobs=_joined("behaviour_logprobs", rows, student.mask),
            old_logprobs=_joined("old_logprobs", rows, student.mask),
        )

    def _encode(self, record: Record, tokenizer: PreTrainedTokenizerBase) -> list[Encoded] | None:
        if any(response.source == "student" for response in record.responses):  # never seen again
            return self._tokenized(record, tokenizer)
        texts = [[*map(dict, record.prompt)], [response.text for response in record.responses]]
        try:
            text, plain = json.dumps(texts), not record.images
        except TypeError:  # a value without a form in json
            text, plain = json.dumps(texts, default=repr), False
        key = (tokenizer is self.student, text, record.control_tokens, record.images)
        if key not in self._rows:
            kept = self._kept_as(tokenizer, text, record.control_tokens) if plain else None
            rows = None if kept is None else KEPT.get(kept)
            self._rows[key] = (self._tokenized(record, tokenizer) or []) if rows is None else rows
            if kept is not None:
                KEPT.keep(kept, self._rows[key])
        return self._rows[key] or None

    def _kept_as(self, tokenizer: PreTrainedTokenizerBase, text: str, control_tokens: bool) -> bytes | None:
        """The key of a record's rows among those of other encoders; None where theirs may differ."""
        own = tokenizer is self.student
        if own not in self._readings:
            self._readings[own] = reading(tokenizer)
        if (read := self._readings[own]) is None:
            return None
        settings = [read, self.max_length, self.every_turn, control_tokens]
        return hashlib.sha256(f"{json.dumps(settings)} {text}".encode("utf-8", "surrogatepass")).digest()

    def _tokenized(
        self, record: Record, tokenizer: PreTrainedTokenizerBase, ended: Sequence[bool] | None = None
    ) -> list[Encoded] | None:
        if self.every_turn and len(record.responses) > 1:
            raise ValueError(
                f"record {record.id} of {record.skill} has {len(record.responses)} responses, so that data.loss_on=all "
                "would count what was answered before them as often; take data.loss_on=last"
            )
        allowed: dict[str, Any] = {"control_tokens": record.control_tokens, "every_turn": self.every_turn}
        allowed["images"] = record.images
        with naming(record):
            rows = [
                encode(record.prompt, response.text, tokenizer, self.max_length, ended=whole, **allowed)
                for response, whole in zip(record.responses, ended or [True] * len(record.responses), strict=True)
            ]
        whole = [row for row in rows if row is not None]
        return whole if len(whole) == len(rows) else None


def _beside(rows: Sequence[Encoded], teachers: Sequence[Encoded] | None) -> list[Encoded] | None:
    """The rows with those of a teacher that has its own tokenizer; None where its prompt leaves no room."""
    return None if teachers is None else [replace(a, teacher=b) for a, b in zip(rows, teachers, strict=True)]


def shortened(answer: Written, room: int) -> Written:
    """The response without the ids for which there is no room."""
    if len(answer.ids) <= room:
        return answer
    behaviour, old = (None if x is None else x[:room] for x in (answer.behaviour_logprobs, answer.old_logprobs))
    observed = tuple((begin, min(end, room)) for begin, end in answer.observed if begin < room)
    return Written(answer.ids[:room], answer.source, behaviour, old, truncated=True, observed=observed)


def _joined(name: str, rows: Sequence[Encoded], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"] | None:
    """The log-probabilities `name` of each row's response, at its loss positions; None unless every row has them."""
    known = list[Tensor]()
    for row in rows:
        if row.written is not None and (values := getattr(row.written, name, None)) is not None:
            known.append(row.written.learnt(values))
    if len(known) < len(rows):
        return None
    return torch.zeros(mask.shape, dtype=torch.float32).masked_scatter(mask, torch.cat(known).float())


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills up rows; masks go by length, never by id (pad is often the end token)."""
    return end_id(tokenizer) if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def same_text(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Return whether both encode every conversation as the same ids."""
    if a is b:
        return True
    probe: list[Message] = [{"role": "user", "content": "Tom has 12 apples.\n\nHow many? 3.5€ naïve 日本"}]
    return (
        a.get_vocab() == b.get_vocab()
        and (turn_of(a), a.eos_token_id) == (turn_of(b), b.eos_token_id)
        and encode_prompt(probe, a) == encode_prompt(probe, b)
        and settings_of(a) == settings_of(b)
    )
