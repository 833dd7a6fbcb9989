"""The records that are scored on their references, in validation and evaluation, and the content of a score."""

from collections.abc import Sequence
from dataclasses import replace

from kd.data.images import seen
from kd.data.sequences import Encoded, Encoder
from kd.types import Record, Response


def references(encoder: Encoder, records: Sequence[Record]) -> list[Record]:
    """The records whose prompt and first response fit whole, each with that response alone.

    A truncated text would be scored, and the bytes of the whole one counted: nats per byte would depend on
    `max_length`. Records without a response are left out, too.

    Raises:
        ValueError: two records have one id, or no reference fits.
    """
    ids = {record.id for record in records}
    if len(ids) < len(records):
        raise ValueError(f"{len(records)} records have {len(ids)} different ids; give every record its own id")
    firsts = (replace(record, responses=record.responses[:1]) for record in records)
    kept = [record for record in firsts if _fits(encoder, record)]
    if with_reference(records) and not kept:
        raise ValueError(
            f"no reference of {len(records)} records fits data.max_length={encoder.max_length} whole; "
            "raise data.max_length"
        )
    return kept


def prompted(record: Record) -> Record:
    """The record with an empty response where it has none, for a rollout that replaces it: batches hold responses."""
    return record if record.responses else replace(record, responses=(Response(""),))


def with_reference(records: Sequence[Record]) -> int:
    """The number of records that have a response."""
    return sum(bool(record.responses) for record in records)


def row_slices(encoder: Encoder, records: Sequence[Record]) -> dict[str, slice]:
    """The places of each record's loss rows (response tokens and end token) among the joined rows of all records."""
    slices, start = {}, 0
    for record in records:
        row = _row(encoder, record)
        stop = start + len(row.ids) - row.prompt
        slices[record.id], start = slice(start, stop), stop
    return slices


def content(encoder: Encoder, records: Sequence[Record]) -> list:
    """The content that a likelihood depends on: ids, tokens, the prompt's length, bytes of the reference, images."""
    rows = ((record, _row(encoder, record)) for record in records)
    return [[record.id, row.ids, row.prompt, size(record), *seen(row.view)] for record, row in rows]


def size(record: Record) -> int:
    """UTF-8 bytes of the reference's text."""
    return len(record.responses[0].text.encode())


def _fits(encoder: Encoder, record: Record) -> bool:
    """Return whether the record fits whole in the student's tokens, however long it is in the teacher's."""
    rows = encoder.encode(record)
    return rows is not None and not rows[0].truncated


def _row(encoder: Encoder, record: Record) -> Encoded:
    rows = encoder.encode(record)
    assert rows is not None  # `references` has left out what does not fit
    return rows[0]
