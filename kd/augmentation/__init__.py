"""Who made or changed the records: stages, each `Iterable[Record] -> Iterator[Record]`."""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from kd.models.language_model import LanguageModel
from kd.types import Record


@runtime_checkable
class Stage(Protocol):
    """One step between the skill's records and training. It extends each record's `provenance` by its name.

    A stage may have a static `outline(record, settings) -> Record`: the record that it will make of one, but for texts,
    under its settings in the config. What terms ask of records is then known before any weight is loaded.
    """

    requires: frozenset[str]  # {"teacher"} if it asks the teacher

    def __call__(
        self, records: Iterable[Record], *, teacher: LanguageModel | None, teacher_id: str, seed: int
    ) -> Iterator[Record]:
        """`teacher_id` names the teacher's content (weights, tokenizer, template), for what is cached."""
