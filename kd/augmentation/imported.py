"""Responses from a file, as other people or programs wrote them, in place of the references."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from kd.augmentation import Resources, Stage
from kd.sources.addresses import fetch
from kd.types import Record, Response, Source

log = logging.getLogger(__name__)


class ImportedResponses(Stage):
    """The responses that a file of JSON lines has for each record: `{"id": ..., "response": ...}`, or `responses`.

    A line may name its `skill`, where several skills have records of one id.

    Args:
        file: the keys of its address (`kd.sources.addresses.fetch`); its content is in the identity of the records.
        otherwise: what becomes of a record without a line: drop | keep, with the responses that it has.
        written_by: the source of the responses: teacher | student | reference.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: a line that is none of these, with its number; a file without a line for any record.
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, *, file: Mapping[str, Any], otherwise: Literal["drop", "keep"] = "drop", written_by: Source = "teacher"
    ):
        self.file, self.otherwise, self.source = dict(file), otherwise, written_by

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with the file's responses."""
        path = fetch(**self.file)
        lines, met, count = read_responses(path), set[tuple[str | None, str]](), 0
        for record in records:
            count += 1
            name = next((n for n in ((record.skill, record.id), (None, record.id)) if n in lines), None)
            if name is not None:
                met.add(name)
                found = tuple(Response(text, self.source) for text in lines[name])
                yield replace(record, responses=found, provenance=(*record.provenance, "imported"))
            elif self.otherwise == "keep":
                yield record
            else:
                resources.dropped("no response in the file")
        if count and lines and not met:
            raise ValueError(
                f"{path} has lines for {len(lines)} records, as {next(iter(lines))[1]!r}, and none for any of the "
                f"skill's {count}; take the ids of `python -m kd.skills`"
            )
        if len(met) < len(lines):
            log.warning("%s: %d of %d lines are for no record here", path, len(lines) - len(met), len(lines))


def read_responses(path: Path) -> dict[tuple[str | None, str], list[str]]:
    """The responses of a file by skill, where it is named, and record.

    Raises ValueError, with its number, for a line that has none, and for a record with two lines.
    """
    found: dict[tuple[str | None, str], list[str]] = {}
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            skill, name, responses = _line(text, f"{path}, line {number}")
            if (skill, name) in found:
                raise ValueError(f"{path}, line {number}: record {name} has a line before; put its responses into one")
            found[skill, name] = responses
    return found


def _line(text: str, where: str) -> tuple[str | None, str, list[str]]:
    try:
        row: Any = json.loads(text)
    except ValueError:
        row = None
    found: Any = row.get("responses", [row.get("response")]) if isinstance(row, Mapping) else None
    texts = found if isinstance(found, list) and all(isinstance(one, str) for one in found) else []
    if not texts or not isinstance(row.get("id"), str):
        raise ValueError(f'{where}: {text.strip()[:60]!r} is not {{"id": "...", "response": "..."}}; correct the line')
    return row.get("skill"), row["id"], texts
