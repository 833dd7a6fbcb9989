"""Stages that make or change records, each `Iterable[Record] -> Iterator[Record]`."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from kd.teachers.interface import Teacher
from kd.types import Record, Skill


@dataclass(frozen=True)
class Resources:
    """What stages may use beside the records; of teacher, student and skill those that a stage requires are there.

    Attributes:
        seed: the run's.
        teacher: a model that generates.
        teacher_id: names its content (weights, tokenizer, template), for what is cached.
        student: the student before the run's first step; from the second round of a loop on, the one that the round
            before trained.
        student_id: names its content.
        skill: the skill, which scores responses.
    """

    seed: int
    teacher: Teacher | None = None
    teacher_id: str = "none"
    student: Teacher | None = None
    student_id: str = "none"
    skill: Skill | None = None


@runtime_checkable
class Stage(Protocol):
    """One step between the skill's records and training. It extends each record's `provenance` by its name.

    A subclass has `requires` and `__call__`; everything else has the default that stands here.

    Its cost is counted where text is generated, not here; what it reads from a cache of its own it charges
    (`kd.generators.account.charge`), for every run pays for the text that it reads.

    requires: which of "teacher", "student" (models that generate text) and "skill" it uses.
    """

    requires: ClassVar[frozenset[str]]

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record | None:
        """The record that it will make of one, but for texts, under its settings in the config; None: not known before.

        What terms require of records is then known before any weight is loaded.
        """
        return None

    @abstractmethod
    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records after it, in a stream."""
