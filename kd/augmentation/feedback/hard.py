"""Hard examples: those on which the student is worse than the teacher, and new ones like them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt

from kd.augmentation import Expected, Resources
from kd.augmentation.feedback.grading import Grading
from kd.augmentation.filters.novelty import Pool
from kd.augmentation.generation import fenced
from kd.augmentation.new_records import PARENTS
from kd.augmentation.ratings import checked_template
from kd.data.prompt_templates import question
from kd.types import Record, Response


@dataclass(kw_only=True, eq=False)
class HardExamples(Grading):
    """Records on which the student is far worse than the teacher, and new ones like them: adversarial distillation.

    Lion (Jiang et al., arXiv 2305.12870, section 3): a referee grades the responses of teacher and student; an
    instruction with a gap of `margin` or more is hard (discrimination). From hard ones the teacher generates new hard
    ones of their kind, from the others new easy ones, in equal numbers, against forgetting; it responds to both, and
    new ones like an instruction of the pool are left out (generation). In a loop the student of the round before is
    measured. The paper's referee grades both responses in one prompt, in both orders; here each is graded apart.

    The teacher's response is the record's first one: `augmentation=[labeling,hard_examples]`.

    Args:
        template: the prompt of a grade with {question}, {answer}, {low} and {high}.
        low, high: the ends of the scale.
        margin: the least gap of a hard example; the paper's 1.0.
        hard_template: the prompt of a new hard instruction, with {question}; all of the reply is the instruction.
        easy_template: that of a new easy one.
        new: new instructions like each hard one, and easy ones as many; 0: the hard records alone stay.
        below: ROUGE-L with every instruction so far under which a new one is kept, above 0 to 1.
        max_new_tokens, temperature, top_p, batch_size, generator: of all texts; see `Generating`.

    Records yielded: the hard ones, then new ones, which have the ids of their `parents` as `meta`, so that the skill
    does not score them.

    Raises:
        ValueError: a template lacks a field, and as `Grading`.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher", "student"})

    hard_template: str
    easy_template: str
    margin: float = 1.0
    new: NonNegativeInt = 1
    below: Annotated[float, Field(gt=0, le=1)] = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.grader = self.judge()
        self.texts = {
            "hard": checked_template("hard_template", self.hard_template, "question"),
            "easy": checked_template("easy_template", self.easy_template, "question"),
        }

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The hard records, and new hard and easy ones."""
        records = list(records)
        hard, easy = self._divided(records, resources)
        if easy:
            resources.dropped("easy for the student", len(easy))
        for record in hard:
            yield replace(record, responses=record.responses[:1], provenance=(*record.provenance, "hard_examples"))
        pool = Pool([question(record) for record in records], below=self.below)
        made = self._new("hard", hard, pool, resources) + self._new("easy", easy[: len(hard)], pool, resources)
        answers = self.teacher_texts(resources, made, "responses")
        for record, text in zip(made, answers, strict=True):
            if text is not None:
                yield replace(record, responses=(Response(text, "teacher"),))

    def _divided(self, records: Sequence[Record], resources: Resources) -> tuple[list[Record], list[Record]]:
        """The hard records and the others; those without a response or a grade are dropped."""
        given = [record for record in records if record.responses]
        attempts = resources.generate("student", given, self.decoding, what="attempts", engine=self.engine)
        prompts = [
            self.grader.prompt(record, {"answer": text})
            for record, attempt in zip(given, attempts, strict=True)
            for text in (record.responses[0].text, attempt.texts[0])
        ]
        grades = iter(self.grades(resources, self.grader, prompts, "grades"))
        hard: list[Record] = []
        easy: list[Record] = []
        for record, teacher, student in zip(given, grades, grades, strict=True):
            if teacher is None or student is None:
                resources.dropped("no grade")
            else:
                (hard if teacher - student >= self.margin else easy).append(record)
        if lacking := len(records) - len(given):
            resources.dropped("no response", lacking)
        return hard, easy

    def _new(self, kind: str, of: Sequence[Record], pool: Pool, resources: Resources) -> list[Record]:
        """New instructions of a kind, each unlike those in the pool, to which they are added."""
        prompts = [
            replace(fenced(record, self.texts[kind], {}), id=f"{record.id}/{kind}{i + 1}")
            for record in of
            for i in range(self.new)
        ]
        texts = self.teacher_texts(resources, prompts, f"{kind} instructions", "truncated instruction")
        found = []
        for prompt, text in zip(prompts, texts, strict=True):
            if text is None:
                continue
            if not pool.add(text):
                resources.dropped("instruction like another")
                continue
            turn = ({"role": "user", "content": text},)
            meta = {PARENTS: [prompt.id.rpartition("/")[0]]}
            found.append(replace(prompt, prompt=turn, provenance=("hard_examples",), meta=meta))
        return found

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(*record.responses, Response("", "teacher"))[:1])

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: where all records are hard."""
        new = records * settings["new"]
        prompts = 3 * records + 2 * new
        return Expected(records + new, prompts, prompts, prompts * settings["max_new_tokens"])
