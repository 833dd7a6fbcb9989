"""Programs of thought: the teacher writes a program, the sandbox runs it, and what it prints is the answer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

from kd.augmentation import Expected, Resources
from kd.augmentation.generation import Generating
from kd.augmentation.ratings import asked, checked_template
from kd.augmentation.verification import best_of, one_each, scores_of
from kd.data.prompt_templates import inserted
from kd.generators.settings import Decoding, Samples
from kd.metrics.program_tests import BLOCK
from kd.sandbox import AT_LIMIT, concurrently, run
from kd.types import Record, Response

LONGEST = 200  # characters of a printed answer


class Answer(NamedTuple):
    """What the program of a text printed last; fault: why it is none, a short noun phrase."""

    program: str
    text: str = ""
    fault: str | None = None


def executed(text: str) -> Answer:
    """The answer that the first block of code of a text prints, or the whole text where it has no block.

    Raises ValueError where no sandbox works.
    """
    block = BLOCK.search(text)
    program = (block[1] if block else text).strip()
    outcome = run(program)
    if outcome.status != "ok":
        return Answer(program, fault="program at a limit" if outcome.status in AT_LIMIT else "failed program")
    lines = outcome.stdout.strip().splitlines()
    if not lines or not lines[-1].strip() or len(lines[-1]) > LONGEST:
        return Answer(program, fault="no printed answer")
    return Answer(program, lines[-1].strip())


@dataclass(kw_only=True, eq=False)
class ProgramOfThought(Generating):
    """Answers that a program of the teacher prints: program of thoughts (arXiv 2211.12588), as in MAmmoTH.

    MAmmoTH (arXiv 2309.05653, section 2.1) has the teacher write programs for its mathematics sets, executes them and
    keeps those whose answer is the annotated one. The program runs in `kd.sandbox`; the last line that it prints is the
    answer. One that raises, prints nothing or reaches a limit is dropped.

    Args:
        template: the prompt with the field {question}: a text, a file, or a name of `kd/augmentation/prompts`.
        samples: programs for each prompt.
        response: what the student learns. answer: the answer in `answer_form` | program: the program, in a block.
        answer_form: the response with the field {answer}; the skill scores this text.
        keep: right: answers to which the skill's scorer gives the best value | all: every program that prints one.
        max_new_tokens, temperature, top_p, batch_size, generator: see `kd.augmentation.generation.Generating`.

    Raises:
        ValueError: a template lacks its field; or, when it runs, no sandbox works, or the metric has no best value.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher", "skill"})

    template: str
    samples: Samples = 1
    response: Literal["answer", "program"] = "answer"
    answer_form: str = "The answer is {answer}."
    keep: Literal["right", "all"] = "right"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text = checked_template("template", self.template, "question")
        checked_template("answer_form", self.answer_form, "answer")

    @property
    def decoding(self) -> Decoding:
        """Of the programs."""
        return Decoding(self.max_new_tokens, self.samples, self.temperature, self.top_p, self.batch_size)

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """A record for each program whose answer stays."""
        assert resources.skill is not None  # `requires`
        best = best_of(resources.skill) if self.keep == "right" else None
        records = list(records)
        prompts = [asked(record, self.text) for record in records]
        found = resources.generate("teacher", prompts, self.decoding, what="programs", engine=self.engine)
        answers = iter(concurrently(executed, [text for answer in found for text in answer.texts]))
        own = [list(dict.fromkeys(next(answers) for _ in range(self.samples))) for _ in records]
        pairs = [(record, one) for record, several in zip(records, own, strict=True) for one in several]
        judged = iter(self._judged(pairs, best, resources))
        for record, several in zip(records, own, strict=True):
            made = [next(judged) for _ in several]
            kept = [one for one in made if isinstance(one, Response)]
            if not kept:
                resources.dropped(str(made[0]))
            yield from one_each(record, kept, "label_pot")

    def _judged(
        self, pairs: Sequence[tuple[Record, Answer]], best: float | None, resources: Resources
    ) -> Iterator[Response | str]:
        """For each answer the response that is learnt, with its score, or why there is none.

        best: the score that it must have; None: any.
        """
        form = self.answer_form
        stated = [(record, inserted(form, {"answer": one.text})) for record, one in pairs if one.fault is None]
        scores = iter(scores_of(stated, resources))
        texts = iter(stated)
        for _, answer in pairs:
            if answer.fault is not None:
                yield answer.fault
                continue
            (_, text), score = next(texts), next(scores).score
            learnt = text if self.response == "answer" else f"```python\n{answer.program}\n```"
            yield "wrong answer" if best is not None and score != best else Response(learnt, "teacher", score)

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(Response("", "teacher", 0.0),))

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        programs = records * settings["samples"]
        return Expected(programs, records, programs, programs * settings["max_new_tokens"])
