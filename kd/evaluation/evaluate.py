"""The systems of an experiment measured on a skill's test split, each once over a whole sweep."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, NonNegativeInt, PositiveInt
from transformers import PreTrainedTokenizerBase

from kd.data.references import content, references, with_reference
from kd.data.sequences import Encoder, prompt_ids, same_text
from kd.evaluation.answers import judged, write_answers
from kd.evaluation.cache import content_key, remembered
from kd.evaluation.floor import Unconditional, uniform, unigram
from kd.evaluation.likelihood import score_references, tabulate
from kd.evaluation.measured import Measured, samples
from kd.evaluation.teacher_rows import Rows, rows_of
from kd.generators.generation import end_ids
from kd.intervals import NAN, Score, mean, ratio
from kd.metrics.table import METRICS, ON_TEACHER, of_skill
from kd.models.language_model import LanguageModel
from kd.teachers.ensemble import Ensemble
from kd.types import Record, Skill

VERSION = 4  # a source of None is none; 3: texts of records stay text, turns end as templates do; 2: shares' intervals

Baseline = Literal["unigram", "uniform"]
Confidence = Annotated[float, Field(gt=0, lt=1)]


class Evaluation:
    """The settings of an evaluation.

    Args:
        items: number of the first test records, whose references are scored; None is all, 0 none.
        answers: number of the first test prompts, which are answered; None is all, 0 none.
        max_new_tokens: longest answer.
        batch_size: prompts answered together.
        baseline: the system that has learnt nothing of the task; None leaves it out.
        confidence: coverage of the intervals.
        resamples: draws of a bootstrap.
    """

    def __init__(
        self,
        *,
        items: NonNegativeInt | None,
        answers: NonNegativeInt | None,
        max_new_tokens: PositiveInt,
        batch_size: PositiveInt,
        baseline: Baseline | None = "unigram",
        confidence: Confidence = 0.95,
        resamples: PositiveInt = 2000,
    ):
        self.items, self.answers, self.baseline = items, answers, baseline
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.confidence, self.resamples = confidence, resamples

    def session(
        self,
        *,
        skill: Skill,
        train: Sequence[Record],
        test: Sequence[Record],
        encoder: Encoder,
        teacher: LanguageModel | Ensemble | None = None,
        teacher_identity: str | None = None,
    ) -> "Session":
        """This evaluation on one skill. The unigram baseline counts the tokens of `train`.

        teacher: the model with which agreement is measured; not measured without it or where its tokenizer is another.

        Raises:
            ValueError: a teacher without an identity, or no reference fits.
        """
        return Session(self, skill, train, test, encoder, teacher, teacher_identity)


class Session:
    """An `Evaluation` of several systems on one skill, one encoder and one teacher."""

    def __init__(
        self,
        evaluation: Evaluation,
        skill: Skill,
        train: Sequence[Record],
        test: Sequence[Record],
        encoder: Encoder,
        teacher: LanguageModel | Ensemble | None,
        teacher_identity: str | None,
    ):
        if teacher is not None and teacher_identity is None:
            raise ValueError(
                "a teacher is given without teacher_identity; pass kd.models.digests.model_digest(teacher)"
            )
        self.evaluation, self.skill, self.train, self.encoder = evaluation, skill, train, encoder
        self.metric = of_skill(skill.metric)
        self.items = references(encoder, test[: evaluation.items])
        self.left_out = with_reference(test[: evaluation.items]) - len(self.items)  # references that do not fit whole
        chosen = test[: evaluation.answers]
        self.prompts = [record for record in chosen if encoder.takes(record)]
        self.prompts_left_out = len(chosen) - len(self.prompts)  # those that leave no room for an answer
        self.teacher = teacher if encoder.teacher is None else None
        self.teacher_name = _named(self.teacher, teacher_identity) if self.teacher and teacher_identity else None

    @cached_property
    def items_digest(self) -> str:
        """Hash of all references and prompts: runs are comparable if their hashes agree."""
        prompts = self._prompts(self.encoder.student)
        return content_key({"items": content(self.encoder, self.items), "prompts": prompts})

    @cached_property
    def teacher_rows(self) -> Rows | None:
        """The teacher's hidden states, which give its next-token distributions; one forward pass, or none if cached."""
        if self.teacher is None or self.teacher_name is None:
            return None
        return rows_of(self.teacher, self.teacher_name, self.encoder, self.items)

    def measure(self, system: LanguageModel | Ensemble, *, identity: str) -> Measured:
        """All scores of a system, read from the cache where a system of this identity was measured before.

        An ensemble has a distribution and generates nothing: references are scored under it, and it has no answers.

        identity: names the system's content: `kd.models.digests.model_digest(system)`.
        """
        table, seconds = self._system_references(system, identity)
        answers, more_seconds = self._answers(system, identity)
        found = self._measured(table, answers, seconds + more_seconds)
        return _by_definition(found) if _named(system, identity) == self.teacher_name else found

    def floor(self) -> Measured | None:
        """The baseline on the references; it does not answer. None if the evaluation has no baseline."""
        if self.evaluation.baseline is None:
            return None
        if self.evaluation.baseline == "uniform":
            return self.uniform()
        return self._unconditional(unigram(self.encoder, self.train, self._vocabulary))

    def uniform(self) -> Measured:
        """The uniform distribution over the student's ids on the references."""
        return self._unconditional(uniform(self._vocabulary))

    @property
    def _vocabulary(self) -> int:
        if self.teacher is not None:
            return self.teacher.vocabulary
        return 1 + max(self.encoder.student.get_vocab().values())

    def _system_references(self, system: LanguageModel | Ensemble, identity: str) -> tuple[pd.DataFrame | None, float]:
        """Score the references in the system's own tokens; compare with the teacher if these are the student's."""
        encoder, teacher, name = self.encoder, self.teacher_name, _named(system, identity)
        if not same_text(encoder.student, system.tokenizer):
            # references that fit the student are scored, however long they are in these tokens
            encoder = Encoder(system.tokenizer, None, max_length=sys.maxsize, max_tokens=encoder.max_tokens)
            teacher = None
        score = _score_teacher if name == teacher else partial(score_references, system)
        return self._references(name, teacher, encoder, score)

    def _unconditional(self, system: Unconditional) -> Measured:
        table, seconds = self._references(system.identity, self.teacher_name, self.encoder, system.score_references)
        return self._measured(table, None, seconds)

    def _references(
        self, identity: str, teacher: str | None, encoder: Encoder, score: Callable[..., pd.DataFrame]
    ) -> tuple[pd.DataFrame | None, float]:
        if not self.items:
            return None, 0.0
        key = {"system": identity, "teacher": teacher, "items": content(encoder, self.items)}

        def compute() -> pd.DataFrame:
            return score(encoder, self.items, teacher_rows=self.teacher_rows if teacher else None)

        return remembered("references", key, compute)

    def _answers(self, system: LanguageModel | Ensemble, identity: str) -> tuple[pd.DataFrame | None, float]:
        """Scores of the system's texts. Only texts are cached, so that a corrected scorer takes effect at once."""
        if not self.prompts or isinstance(system, Ensemble):
            return None, 0.0
        settings = {"max_new_tokens": self.evaluation.max_new_tokens, "batch_size": self.evaluation.batch_size}
        key = {
            "system": _named(system, identity),
            "prompts": self._prompts(system.tokenizer),
            "ends": sorted(end_ids(system)),
            **settings,
        }
        texts, seconds = remembered("answers", key, partial(write_answers, system, self.prompts, **settings))
        return judged(texts, self.skill, self.prompts), seconds

    def _prompts(self, tokenizer: PreTrainedTokenizerBase) -> list:
        return [[record.id, prompt_ids(record, tokenizer)] for record in self.prompts]

    def _measured(self, table: pd.DataFrame | None, answers: pd.DataFrame | None, seconds: float) -> Measured:
        scores = {} if table is None else self._likelihood_scores(table)
        if answers is None:
            return Measured(scores, table, None, [], seconds)
        groups, bounds = self._groups(self.prompts), self.metric.bounds
        scores[self.metric.name] = mean(answers["score"], groups, bounds=bounds, **self._interval)
        return Measured(scores, table, answers, samples(answers, self.prompts), seconds)

    def _likelihood_scores(self, table: pd.DataFrame) -> dict[str, Score]:
        groups = self._groups(self.items)
        scores = {"bits_per_byte": ratio(table["nll"] / math.log(2), table["bytes"], groups, **self._interval)}
        if not table["top1"].isna().any():
            for name in ON_TEACHER:
                share = METRICS[name].bounds == (0.0, 1.0)
                scores[name] = ratio(table[name], table["tokens"], groups, share=share, **self._interval)
        return scores

    @property
    def _interval(self) -> dict[str, Any]:
        return {"confidence": self.evaluation.confidence, "resamples": self.evaluation.resamples}

    def _groups(self, records: Sequence[Record]) -> list[str]:
        """Each record's source where its `meta` has one under the skill's group key, else the record itself."""
        sources = [(record.id, record.meta.get(self.skill.group_key)) for record in records]
        return [f"record {name}" if source is None else f"source {source}" for name, source in sources]


def _named(system: LanguageModel | Ensemble, identity: str) -> str:
    """The identity with the precision: the same weights in another precision are another system."""
    return f"{identity} {next(system.parameters()).dtype}"


def _by_definition(teacher: Measured) -> Measured:
    """The teacher's agreement with itself without an interval: it is the same on all problems."""
    exact = {name: teacher.scores[name]._replace(low=NAN, high=NAN) for name in ON_TEACHER if name in teacher.scores}
    return replace(teacher, scores={**teacher.scores, **exact})


def _score_teacher(encoder: Encoder, items: Sequence[Record], *, teacher_rows: Rows) -> pd.DataFrame:
    """The teacher's own table, without another forward pass: with itself it agrees everywhere."""
    pairs = ((batch, teacher_rows.of(batch.records)) for batch in encoder.batches(items))
    table = tabulate(items, pairs)
    return table.assign(top1=table["tokens"].astype(float), forward_kl=0.0, reverse_kl=0.0)
