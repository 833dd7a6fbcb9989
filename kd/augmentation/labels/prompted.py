"""Labels to a prompt of the stage's own, which the student need not see: rationales, system messages, examples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from kd.augmentation import Expected, Resources
from kd.augmentation.generation import instructed, paragraphs
from kd.augmentation.labeling import Labeling
from kd.augmentation.ratings import asked, checked_template
from kd.seeding import derive
from kd.types import Message, Record


@dataclass(kw_only=True, eq=False)
class Prompted(Labeling):
    """Labels of the teacher, which reads another prompt than the record's.

    Args:
        erase: whether the student's prompt is the record's own; else the one that the teacher read.

    The other arguments are `Labeling`'s.
    """

    erase: bool = True

    def learnt(self, record: Record, shown: Record) -> Record:
        """See `Labeling`."""
        return record if self.erase else shown


@dataclass(kw_only=True, eq=False)
class ChainOfThought(Prompted):
    """The teacher's rationale and answer in place of the reference: Fine-tune-CoT (arXiv 2212.10071, section 3).

    Ho et al.: a zero-shot prompt requests the steps before the answer; several samples are their diverse reasoning. The
    paper keeps the rationales that lead to the right answer, which `kd.augmentation.verification.Verified` does after
    this stage: `augmentation=[label_cot,verified]`. The paper extracts the answer by a second prompt; here the prompt
    requests it at the end.

    Args:
        template: the prompt with the field {question}: a text, a file, or a name of `kd/augmentation/prompts`.
        erase: see `Prompted`; the paper's student reads the question alone.

    The other arguments are `Labeling`'s.
    """

    name: ClassVar[str] = "label_cot"

    template: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text = checked_template("template", self.template, "question")

    def shown(self, records: Sequence[Record], resources: Resources) -> Sequence[Sequence[Record]]:
        """See `Labeling`."""
        return [[asked(record, self.text)] for record in records]


@dataclass(kw_only=True, eq=False)
class Explanations(Prompted):
    """Responses under a system message, which stays in the student's prompt: Orca (arXiv 2306.02707, section 3.1).

    For each record one of the messages is drawn, by the seed and the record's id; it replaces a system message that the
    record has. Orca draws from 16 messages, by the sub-collection of the data that a query comes from.

    Args:
        template: the messages, each a paragraph: a text, a file, or a name of `kd/augmentation/prompts`.
        erase: true: the student's prompt is the record's own.

    The other arguments are `Labeling`'s.
    """

    name: ClassVar[str] = "explanations"

    template: str
    erase: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.messages = paragraphs("template", self.template)

    def shown(self, records: Sequence[Record], resources: Resources) -> Sequence[Sequence[Record]]:
        """See `Labeling`."""
        return [[instructed(record, self._drawn(record, resources.seed))] for record in records]

    def _drawn(self, record: Record, seed: int) -> str:
        return Random(derive(seed, self.name, record.id)).choice(self.messages)


@dataclass(kw_only=True, eq=False)
class Strategies(Explanations):
    """Responses under a strategy's system message, which is erased: Orca 2 (arXiv 2311.11045, section 3).

    Prompt erasing: the teacher reads how to solve the task, the student a generic system message or none, so that it
    learns to choose the strategy. Orca 2 gives each task the strategy that suits it. With `choice: all` each record has
    a response by every strategy, in the order of the messages, and `Verified` with `most: 1` keeps the first that leads
    to the right answer: `augmentation=[strategies,verified] augmentation.stages.verified.most=1`.

    Args:
        template: the messages of the strategies, each a paragraph.
        choice: one: one of them is drawn for each record | all: each strategy responds.
        student_system: the system message of the student's prompt, in place of the record's own; None: that stays.
        erase: false: the student's prompt keeps the strategy, for comparison; with `choice: all`, the first.

    The other arguments are `Labeling`'s.

    Raises:
        ValueError: `student_system` is given but the strategy is not erased.
    """

    name: ClassVar[str] = "strategies"

    choice: Literal["one", "all"] = "one"
    student_system: str | None = None
    erase: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student_system is not None and not self.erase:
            raise ValueError(
                f"student_system={self.student_system!r} stands in the place of the strategy, which erase=false keeps; "
                "set erase=true, or student_system=null"
            )

    def shown(self, records: Sequence[Record], resources: Resources) -> Sequence[Sequence[Record]]:
        """See `Labeling`."""
        if self.choice == "one":
            return super().shown(records, resources)
        return [[instructed(record, message) for message in self.messages] for record in records]

    def learnt(self, record: Record, shown: Record) -> Record:
        """See `Labeling`."""
        own = super().learnt(record, shown)
        return own if self.student_system is None else instructed(own, self.student_system)

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return Labeling.outline(record, {**settings, "samples": settings["samples"] * _strategies(settings)})

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        return Labeling.expected(records * _strategies(settings), settings)._replace(records=records)


def _strategies(settings: Mapping[str, Any]) -> int:
    """The number of strategies that respond to each record."""
    return len(paragraphs("template", settings["template"])) if settings.get("choice") == "all" else 1


@dataclass(kw_only=True, eq=False)
class FewShot(Prompted):
    """Labels by in-context learning, which the student learns without the examples: demonstrations c of I + c + x.

    The teacher reads some records with their references before each prompt, as in-context learning distillation has it
    (Huang et al., arXiv 2212.10670, section 3) and AnnoLLM (2303.16854, where the references hold explanations: put
    `label_cot` before). They are drawn for each record from all others, by the seed and the record's id; a record with
    the same prompt is none of them. The paper's student also learns from the teacher's distributions, and reads
    demonstrations, too, which `erase: false` keeps.

    Args:
        shots: demonstrations before each prompt.

    The other arguments are `Prompted`'s and `Labeling`'s.

    Raises:
        ValueError: the skill has too few other records with a response.
    """

    name: ClassVar[str] = "few_shot_labels"

    shots: PositiveInt = 4

    def shown(self, records: Sequence[Record], resources: Resources) -> Sequence[Sequence[Record]]:
        """See `Labeling`."""
        pool = [record for record in records if record.responses and not record.images]
        alike = Counter(_words(record) for record in pool)
        drawn = (self._drawn(record, pool, alike[_words(record)], resources.seed) for record in records)
        return [[_after(record, found)] for record, found in zip(records, drawn, strict=True)]

    def _drawn(self, record: Record, pool: Sequence[Record], alike: int, seed: int) -> list[Record]:
        """`shots` records of the pool, of which `alike` have the record's prompt and are left out."""
        if len(pool) < self.shots + alike:
            raise ValueError(
                f"record {record.id}: there are {len(pool) - alike} others with a response, fewer than "
                f"shots={self.shots}; lower it, or take more records"
            )
        some = Random(derive(seed, self.name, record.id)).sample(range(len(pool)), self.shots + alike)
        return [pool[i] for i in some if _words(pool[i]) != _words(record)][: self.shots]


def _words(record: Record) -> tuple[str, ...]:
    return tuple(str(message["content"]) for message in record.prompt)


def _after(record: Record, demonstrations: Sequence[Record]) -> Record:
    """The record after the demonstrations, which stand between its system message and the rest."""
    own = [message for message in record.prompt if message["role"] == "system"]
    rest = [message for message in record.prompt if message["role"] != "system"]
    shown: list[Message] = []
    for one in demonstrations:
        shown += [message for message in one.prompt if message["role"] != "system"]
        shown.append({"role": "assistant", "content": one.responses[0].text})
    return replace(record, prompt=(*own, *shown, *rest))
