"""Stages that make or change records, each `Iterable[Record] -> Iterator[Record]`."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from kd.augmentation.answering import Writer, answers
from kd.generators import Generator
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.teachers.interface import Answers, Teacher
from kd.types import Record, Skill
from kd.workers import Workers

By = Literal["teacher", "student"]


@dataclass
class Account:
    """The counts of one stage.

    Attributes:
        dropped: records that it dropped, by reason.
        prompts: that models answered for it; those that were answered before count, too.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    prompts: int = 0


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
        max_length: tokens of a prompt and its response together; None: without limit.
        account: of the stage.
        workers: processes that generate in place of this one (`run.ray`); None: there are none.
    """

    seed: int
    teacher: Teacher | None = None
    teacher_id: str = "none"
    student: Teacher | None = None
    student_id: str = "none"
    skill: Skill | None = None
    max_length: int | None = None
    account: Account = field(default_factory=Account)
    workers: Workers | None = None

    def dropped(self, reason: str, records: int = 1) -> None:
        """Count records that the stage drops, under a short noun phrase such as "refusal"."""
        self.account.dropped[reason] += records

    def generate(
        self, by: By, prompts: Sequence[Record], decoding: Decoding, *, what: str, engine: Generator | None = None
    ) -> list[Answers]:
        """`decoding.samples` responses of a model to each prompt, kept on disk as they are generated.

        A process that is killed and started again generates nothing twice but its last answers, and gives the same.
        Answers from disk are charged as when they were generated. A prompt that leaves no room for a response
        (`max_length`) has empty ones, which are not finished.

        Args:
            by: the model; the stage names it in `requires`.
            prompts: records of which the prompt, its images and `control_tokens` count, and the id that names it.
            what: the texts, as "labels": part of the random stream, so that texts of another name are other draws.
            engine: generates with the weights of a model that has some; None: our own.

        Raises ValueError where the model is none that generates text.
        """
        self.account.prompts += len(prompts)
        engine = Torch() if engine is None else engine
        return answers(self._writer(by), prompts, decoding, what=what, seed=self.seed, engine=engine)

    def _writer(self, by: By) -> Writer:
        if by == "student":
            return Writer(self.student, f"student {self.student_id}", "student", self.max_length, self.workers)
        return Writer(self.teacher, self.teacher_id, "teacher", self.max_length, self.workers)


class Expected(NamedTuple):
    """What a stage is expected to make and to need, before it is applied: at most where it is not known.

    records: after it. prompts: that a model answers. responses: to them. new_tokens: of all responses, at most.
    read_again: tokens of the stage's own responses in its later prompts, at most.
    """

    records: int
    prompts: int = 0
    responses: int = 0
    new_tokens: int = 0
    read_again: int = 0


@runtime_checkable
class Stage(Protocol):
    """One step between the skill's records and training. It extends each record's `provenance` by its name.

    A subclass has `requires` and `__call__`; everything else has the default that stands here.

    Its cost is counted where text is generated, not here: `Resources.generate` keeps each answer, for what is generated
    once is not paid twice, and charges it to every run that reads it.

    requires: which of "teacher", "student" (models that generate text) and "skill" it uses; beside "teacher" signals of
        it, as "native_teacher_logprobs", without which it is refused.
    """

    requires: ClassVar[frozenset[str]]

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record | None:
        """The record that it will make of one, but for texts, under its settings in the config; None: not known before.

        What terms require of records is then known before any weight is loaded.
        """
        return None

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """Its records and requests, of so many records, under its settings in the config (`kd.elicit --dry-run`)."""
        return Expected(records)

    @abstractmethod
    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records after it, in a stream."""
