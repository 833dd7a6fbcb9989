"""Documents that new records are made of: texts of records, or files at an address; whole or in passages."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kd.augmentation import Resources
from kd.augmentation.new_records import Requests, Seed, question
from kd.sources.addresses import fetch
from kd.types import Record

TEXTS = (".txt", ".md", ".rst")


@dataclass(kw_only=True, eq=False)
class DocumentRequests(Requests):
    """A stage that makes new records of documents, by a request for each passage.

    Args:
        documents: `{address: …}` of a file, or of a folder whose files are read (`kd.sources`); None: the texts of the
            records.
        part: of a record that is the text: prompt (its last message) | response (the first) | a key of its `meta`.
        words: of a passage at most; None: each document is one.
        template: of the request, with the stage's fields.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`.
    """

    fields: ClassVar[tuple[str, ...]] = ("document",)
    suffixes: ClassVar[tuple[str, ...]] = TEXTS  # of the files of a folder that are read

    documents: Mapping[str, Any] | None
    part: str
    words: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.words is not None and self.words < 1:
            raise ValueError(
                f"words={self.words} leaves no passage; set it to 1 or more, or to null for whole documents"
            )

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`: a seed for each passage, with its document as the parent."""
        for seed in self.sources(given):
            found = passages(seed.fields["document"], self.words)
            for number, text in enumerate(found, start=1):
                name = seed.id if len(found) == 1 else f"{seed.id}/passage{number}"
                yield Seed(name, seed.skill, {"document": text}, seed.parents, (), seed.provenance)

    def sources(self, given: Sequence[Record]) -> Iterator[Seed]:
        """The whole documents."""
        if self.documents is None:
            for record in given:
                if text := text_of(record, self.part):
                    yield Seed(record.id, record.skill, {"document": text}, (record.id,), (), record.provenance)
            return
        skill = given[0].skill if given else self.name
        for name, text in texts_at(self.documents, self.suffixes):
            yield Seed(f"{skill}/{name}", skill, {"document": text}, (name,))


def text_of(record: Record, part: str) -> str:
    """A text of the record, empty where it has none: of its prompt, its first response, or a key of `meta`.

    Raises ValueError for a key that its `meta` lacks.
    """
    if part == "prompt":
        return question(record).strip()
    if part == "response":
        return record.responses[0].text.strip() if record.responses else ""
    if part not in record.meta:
        raise ValueError(
            f"record {record.id} has no {part} in its meta, which part={part} reads; take prompt, response, or one of "
            f"its keys ({', '.join(map(str, record.meta)) or 'it has none'})"
        )
    return str(record.meta[part]).strip()


def texts_at(documents: Mapping[str, Any], suffixes: Sequence[str]) -> list[tuple[str, str]]:
    """The files at an address that are not empty, with their names, in the order of these.

    Raises ValueError for a file that is not UTF-8, and where there is no text.
    """
    path = fetch(documents["address"], member=documents.get("member"), sha256=documents.get("sha256"))
    files = [path] if path.is_file() else sorted(own for own in path.rglob("*") if own.suffix in suffixes)
    found = []
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        if text := _read(file).strip():
            found.append((name, text))
    if not found:
        raise ValueError(f"documents at {documents['address']} hold no text in files {', '.join(suffixes)}; add one")
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"document {file} is not UTF-8 ({error}); convert it, or take it away") from error


def passages(text: str, words: int | None) -> list[str]:
    """The text in parts of so many words, the last one of fewer; as it stands between the words."""
    marks = [*re.finditer(r"\S+", text)]
    if words is None or len(marks) <= words:
        return [text] if marks else []
    return [
        text[part[0].start() : part[-1].end()] for i in range(0, len(marks), words) if (part := marks[i : i + words])
    ]
