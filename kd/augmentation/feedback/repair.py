"""Repair after execution: the teacher mends the student's own wrong program."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from kd.augmentation import Expected, Resources
from kd.augmentation.generation import Generating, fenced
from kd.augmentation.ratings import checked_template
from kd.augmentation.verification import best_of, scores_of
from kd.metrics.program_tests import function
from kd.sandbox import concurrently, run
from kd.types import Record, Response

LONGEST = 2000  # characters of an error that the teacher reads, its last ones
TESTED = ("signature", "entry_point", "tests")  # in `meta` of a function with tests (`kd.metrics.program_tests`)


def feedback(record: Record, text: str, error: str | None) -> str:
    """What the sandbox reports of a program of the student's, with the tests where the record has some.

    error: why the skill's scorer gave no value, if it gave none.
    """
    if not all(name in record.meta for name in TESTED):
        return error or "The answer is not right."
    program = function(text, record.meta["signature"], record.meta["entry_point"])
    outcome = run(f"{program}\n{record.meta['tests']}")
    return (outcome.stderr.strip() or outcome.error or "The tests fail.")[-LONGEST:]


@dataclass(kw_only=True, eq=False)
class Repaired(Generating):
    """The teacher's repair of the student's wrong program, if its tests pass: personalised distillation (PERsD).

    Chen et al. (arXiv 2310.18628, section 3): the student attempts each task, its program is executed against the
    tests, and where it fails the teacher refines it given the error; a refinement that passes the tests is learnt. What
    the student solves teaches it nothing, and is left out. The skill's scorer is the test, so that skills other than
    code fit, too; the error is that of the sandbox where the record has tests (skill=humaneval).

    Args:
        template: the prompt of the repair, with {question}, {attempt} and {feedback}.
        form: fix: the task, then the repair (PERsD) | refine: the task with the wrong program and its error, as the
            teacher reads it, then the repair (PERsD-refine) | both: two records (PERsD-combined).
        max_new_tokens, temperature, top_p, batch_size, generator: of attempts and repairs; see
            `kd.augmentation.generation.Generating`.

    Raises:
        ValueError: the template lacks a field; or, when it runs, no sandbox works.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher", "student", "skill"})

    template: str
    form: Literal["fix", "refine", "both"] = "fix"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text = checked_template("template", self.template, "question", "attempt", "feedback")

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records that the student fails and the teacher repairs."""
        skill = resources.skill
        assert skill is not None  # `requires`
        best = best_of(skill)
        prompts = self._failed(list(records), best, resources)
        found = self.teacher_texts(resources, [prompt for _, prompt in prompts], "repairs")
        repaired = [(*both, text) for both, text in zip(prompts, found, strict=True) if text is not None]
        scores = scores_of([(record, text) for record, _, text in repaired], resources)
        for (record, prompt, text), score in zip(repaired, scores, strict=True):
            if score.score != best:
                resources.dropped("repair that fails")
                continue
            passed = (*record.provenance, "repaired")
            made = replace(record, responses=(Response(text, "teacher", score.score),), provenance=passed)
            if self.form != "refine":
                yield made
            if self.form != "fix":
                yield replace(made, id=f"{record.id}/refined", prompt=prompt.prompt)

    def _failed(self, records: Sequence[Record], best: float, resources: Resources) -> list[tuple[Record, Record]]:
        """The records that the student fails, each with the prompt of the repair."""
        answers = resources.generate("student", records, self.decoding, what="attempts", engine=self.engine)
        attempts = [(record, answer.texts[0]) for record, answer in zip(records, answers, strict=True)]
        scores = scores_of(attempts, resources)
        failed = [(*both, one.error) for both, one in zip(attempts, scores, strict=True) if one.score != best]
        if solved := len(records) - len(failed):
            resources.dropped("solved by the student", solved)
        errors = concurrently(lambda one: feedback(*one), failed)
        return [
            (record, fenced(record, self.text, {"attempt": text, "feedback": error}))
            for (record, text, _), error in zip(failed, errors, strict=True)
        ]

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(Response("", "teacher", 0.0),))

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: where the student fails everywhere."""
        made = records * (2 if settings["form"] == "both" else 1)
        return Expected(made, 2 * records, 2 * records, 2 * records * settings["max_new_tokens"])
