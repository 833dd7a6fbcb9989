"""A teacher that is a file: for each response the likeliest ids of its positions, as another program wrote them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import end_id
from kd.data.sequences import Encoder
from kd.models.tokenizers import byte_tokenizer, load_tokenizer
from kd.sources.addresses import digest, fetch, keys_of, model_folder
from kd.teachers.interface import Teacher
from kd.teachers.listed import Row, certain, columns_of
from kd.types import Batch, Record


class Line(BaseModel):
    """One line of the file: a record's response, and its positions in order, each with its ids.

    id: of the record. response: its text; may be left out for a record with one. tokens: the ids of the response, which
    are compared with the tokenizer's. ids, logprobs: of each position, in nats. mass: of each position, the sum of the
    listed probabilities, which is compared with them.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    response: str | None = None
    tokens: list[int] | None = None
    ids: list[list[int]]
    logprobs: list[list[float]]
    mass: list[float] | None = None

    def rows(self) -> list[Row]:
        """The positions. Raises ValueError where the lists have different lengths."""
        lists: list[Any] = [self.ids, self.logprobs, *([] if self.mass is None else [self.mass])]
        if len({len(one) for one in lists}) != 1 or (self.tokens is not None and len(self.tokens) != len(self.ids)):
            raise ValueError("ids, logprobs, mass and tokens are of different numbers of positions")
        masses: Sequence[float | None] = self.mass or [None] * len(self.ids)
        return [Row(*row) for row in zip(self.ids, self.logprobs, masses, strict=True)]


class Imported(Teacher):
    """The targets in a file of JSON lines (`Line`), which `targets=topk` keeps; it provides no text.

    The last position of a response may be that of the end token; where it is missing, the end token is certain.

    Args:
        file: the keys of its address (`kd.sources.addresses.fetch`).
        tokenizer: the address of the tokenizer of the ids, or `bytes`.
        vocabulary: ids of the student's head; None: as many as the tokenizer has.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: a line that is none of these; names it.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits"})
    lists_targets: ClassVar[bool] = True
    readings: ClassVar[int] = 0

    def __init__(
        self, *, file: Mapping[str, Any], tokenizer: str | Mapping[str, Any], vocabulary: PositiveInt | None = None
    ):
        self.path, self.content = fetch(**file), digest(**file)
        folder = None if tokenizer == "bytes" else model_folder(**keys_of(tokenizer))
        self.words = byte_tokenizer() if folder is None else load_tokenizer(folder)
        self.size = len(self.words) if vocabulary is None else vocabulary
        self.lines = read_lines(self.path)

    def identity(self) -> str:
        """The digest of the file."""
        return f"imported {self.content}"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the ids in the file."""
        return self.words

    @property
    def vocabulary(self) -> int:
        """The number of ids."""
        return self.size

    def listed(self, batch: Batch, labels: Sequence[Sequence[int]]) -> list[list[Row]]:
        """See `Teacher`."""
        each = batch.group_size
        return [self._rows(batch.records[i // each], i % each, own) for i, own in enumerate(labels)]

    def check(
        self, records: Sequence[Record], read: Sequence[Record], audited: Sequence[Record], encoder: Encoder
    ) -> None:
        """Raises ValueError, with the record's name, for one of `read` whose responses the file does not have."""
        for batch in encoder.batches(read):
            masks = batch.teacher.mask
            labels = [row[mask].tolist() for row, mask in zip(batch.teacher.labels, masks, strict=True)]
            for record, rows in zip(_each(batch), self.listed(batch, labels), strict=True):
                try:
                    columns_of(rows, 1, self.size)
                except ValueError as error:
                    raise ValueError(f"{self.path}, record {record.id}: {error}") from None

    def _rows(self, record: Record, number: int, labels: Sequence[int]) -> list[Row]:
        """The rows of a record's response. Raises ValueError where there are none, or of other tokens."""
        text = record.responses[number].text if number < len(record.responses) else None
        line = self.lines.get((record.id, text))
        if line is None and len(record.responses) == 1:
            line = self.lines.get((record.id, None))
        if line is None:
            raise ValueError(
                f"{self.path} has no line for the response {(text or '')[:40]!r} of record {record.id}; add one, or "
                "train on other records"
            )
        rows = line.rows()
        if len(rows) == len(labels) - 1 and labels[-1] == end_id(self.words):
            rows.append(certain(labels[-1]))
        tokens = labels if line.tokens is None else [*line.tokens, *labels[len(line.tokens) :]]
        if len(rows) != len(labels) or list(tokens) != list(labels):
            raise ValueError(
                f"{self.path}, record {record.id}: {len(line.ids)} positions, but its response has {len(labels)} "
                "tokens (with the end token), or others, in this tokenizer; write the file with teacher.tokenizer, or "
                "raise data.max_length where it truncates"
            )
        return rows


def read_lines(path: Path) -> dict[tuple[str, str | None], Line]:
    """The lines of a file by record and response. Raises ValueError, with its number, for one that is no `Line`."""
    found: dict[tuple[str, str | None], Line] = {}
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                line = Line.model_validate(json.loads(text))
                line.rows()
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise ValueError(
                    f"{path}, line {number}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}; a line is "
                    '{"id": …, "ids": [[…]], "logprobs": [[…]]} and may have response, tokens and mass'
                ) from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}; correct the line") from None
            if (line.id, line.response) in found:
                raise ValueError(f"{path}, line {number}: record {line.id} has this response before; keep one of them")
            found[line.id, line.response] = line
    return found


def _each(batch: Batch) -> list[Record]:
    """The record of each sequence."""
    return [record for record in batch.records for _ in range(batch.group_size)]
