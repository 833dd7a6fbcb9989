"""Which records are measured on their references, and what of them the measurement depends on."""

from collections.abc import Sequence
from dataclasses import replace

from kd.sequences import Encoded, Encoder
from kd.types import Record


def references(encoder: Encoder, records: Sequence[Record]) -> list[Record]:
    """The records whose prompt and first response fit whole, each with that response alone.

    A reference that is cut at `max_length` has no end token and fewer tokens than its bytes tell: it is left out.

    Raises:
        ValueError: two records have one id, or none fits.
    """
    ids = {record.id for record in records}
    if len(ids) < len(records):
        raise ValueError(f"{len(records)} records have {len(ids)} different ids; give every record its own id")
    firsts = (replace(record, responses=record.responses[:1]) for record in records)
    kept = [record for record in firsts if _fits(encoder, record)]
    if records and not kept:
        raise ValueError(
            f"no reference of {len(records)} records fits data.max_length={encoder.max_length} whole; "
            "raise data.max_length"
        )
    return kept


def row_slices(encoder: Encoder, records: Sequence[Record]) -> dict[str, slice]:
    """Where each record's loss rows (response tokens and end token) lie when those of all records are joined."""
    slices, start = {}, 0
    for record in records:
        row = _row(encoder, record)
        stop = start + len(row.ids) - row.prompt
        slices[record.id], start = slice(start, stop), stop
    return slices


def content(encoder: Encoder, records: Sequence[Record]) -> list:
    """What a likelihood depends on: ids, tokens, where the prompt ends, bytes of the reference."""
    rows = ((record, _row(encoder, record)) for record in records)
    return [[record.id, row.ids, row.prompt, size(record)] for record, row in rows]


def size(record: Record) -> int:
    """UTF-8 bytes of the reference's text."""
    return len(record.responses[0].text.encode())


def _fits(encoder: Encoder, record: Record) -> bool:
    rows = encoder.encode(record)
    return rows is not None and rows[0].ids[-1] == encoder.student.eos_token_id


def _row(encoder: Encoder, record: Record) -> Encoded:
    rows = encoder.encode(record)
    assert rows is not None  # `references` has left out what does not fit
    return rows[0]
