"""The systems of an experiment measured on a skill's test split, each once over a whole sweep."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from transformers import PreTrainedTokenizerBase

from kd.data.references import content, references, with_reference
from kd.data.sequences import Encoder, same_text
from kd.evaluation.answers import answer_parts, judged, prompt_contents
from kd.evaluation.cache import content_key, remembered, remembered_parts, uncached
from kd.evaluation.choices import choice_parts, encoded_choices, without_question
from kd.evaluation.engines import Engine
from kd.evaluation.floor import Unconditional, uniform, unigram
from kd.evaluation.items import (
    COLUMNS,
    Likelihoods,
    evidence,
    generates,
    items,
    measured,
    ratio_items,
    requires_answers,
    requires_likelihood,
)
from kd.evaluation.likelihood import REFERENCE_COLUMNS, score_references, score_teacher
from kd.evaluation.lm_eval import LmEval
from kd.evaluation.measured import Measured, by_definition, named, samples
from kd.evaluation.positions import by_position
from kd.evaluation.teacher_rows import Rows, rows_of
from kd.evaluation.variants import variants as variants_of
from kd.generators import Generator
from kd.generators.settings import Decoding, Nucleus, Samples
from kd.intervals import NAN, Score, mean, ratio
from kd.metrics.table import METRICS, ON_TEACHER, of_skill
from kd.models.language_model import LanguageModel
from kd.skills.scoring import at_limit
from kd.teachers.ensemble import Ensemble
from kd.types import Record, Skill
from kd.workers.copies import Copies

VERSION = 6  # answers and choices in parts of 256; 5: greedy answers in fuller batches, with other rounding

Baseline = Literal["unigram", "uniform"]
Confidence = Annotated[float, Field(gt=0, lt=1)]


class Evaluation:
    """The settings of an evaluation.

    Args:
        items: number of the first test records, whose references are scored; None is all, 0 none.
        answers: number of the first test prompts, which are answered; None is all, 0 none.
        max_new_tokens: longest answer.
        batch_size: answers that are generated together, and short choices that are scored together.
        baseline: the system that has learnt nothing of the task; None leaves it out.
        confidence: coverage of the intervals.
        resamples: draws of a bootstrap.
        samples: answers to each prompt; scores are means over them. Several require a temperature.
        temperature, top_p: of the distribution that each token is drawn from; at temperature 0 decoding is greedy.
        seed: of the random numbers of sampling.
        skills: files of `conf/skill` beside the run's own, on whose test splits the systems are measured, too.
        variants: files of `conf/variant`: changes of the items, each measured beside the items as they are.
        excess_error: answers of each model to each prompt, of `kd.evaluation.excess_error`; 0: it is not measured.
        draft: tokens that the student proposes to the teacher in `kd.evaluation.drafting`; 0: it is not measured.
        generator: the engine that generates the answers (`kd.evaluation.engines.Engine`); None: our own.
        lm_eval: the arguments of `kd.evaluation.lm_eval.LmEval`.

    Raises:
        ValueError: several samples without a temperature.
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
        samples: Samples = 1,
        temperature: NonNegativeFloat = 0.0,
        top_p: Nucleus = 1.0,
        seed: NonNegativeInt = 0,
        skills: Sequence[str] = (),
        variants: Sequence[str | Mapping[str, Any]] = (),
        excess_error: NonNegativeInt = 0,
        draft: NonNegativeInt = 0,
        generator: Generator | None = None,
        lm_eval: Mapping[str, Any] | None = None,
    ):
        self.items, self.answers, self.baseline = items, answers, baseline
        self.decoding = Decoding(max_new_tokens, samples, temperature, top_p, batch_size)
        self.seed, self.skills = seed, tuple(skills)
        self.confidence, self.resamples = confidence, resamples
        self.variants, self.excess_error, self.draft = variants_of(variants), excess_error, draft
        self.engine, self.lm_eval = Engine(generator), LmEval(**(lm_eval or {}))
        self.copies: Copies | None = None  # processes that generate answers and read choices in place of this one
        try:
            self.decoding.check() if generator is None else generator.check(self.decoding)
        except ValueError as error:
            raise ValueError(f"evaluation.{error}") from None

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
        self.metrics = list(skill.metrics)
        self.headline = next((one for one in self.metrics if one.metric.name == self.metric.name), None)
        self.choices = list(test[: evaluation.items])  # whose choices are scored, where a metric requires it
        self.items = references(encoder, test[: evaluation.items])
        self.left_out = with_reference(test[: evaluation.items]) - len(self.items)  # references that do not fit whole
        chosen = test[: evaluation.answers]
        self.prompts = [record for record in chosen if encoder.takes(record)]
        self.prompts_left_out = len(chosen) - len(self.prompts)  # those that leave no room for an answer
        self.teacher = teacher if encoder.teacher is None else None
        self.teacher_name = named(self.teacher, teacher_identity) if self.teacher and teacher_identity else None

    @cached_property
    def items_digest(self) -> str:
        """Hash of all references and prompts: runs are comparable if their hashes agree."""
        prompts = self.prompt_contents(self.encoder.student)
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
        likelihoods, choice_seconds = self._likelihoods(system, identity)
        found = self._measured(table, answers, seconds + more_seconds + choice_seconds, likelihoods)
        return by_definition(found) if named(system, identity) == self.teacher_name else found

    def task_scores(self, system: LanguageModel) -> dict[str, Score]:
        """The scores of answers and choices of a system whose weights change: nothing is cached."""
        with uncached():
            answers, _ = self._answers(system, "")
            likelihoods, _ = self._likelihoods(system, "")
        return dict(self._measured(None, answers, 0.0, likelihoods).scores)

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
        encoder, teacher, name = self.encoder, self.teacher_name, named(system, identity)
        if not same_text(encoder.student, system.tokenizer):
            # references that fit the student are scored, however long they are in these tokens
            encoder = Encoder(system.tokenizer, None, max_length=sys.maxsize, max_tokens=encoder.max_tokens)
            teacher = None
        score = score_teacher if name == teacher else partial(score_references, system)
        return self._references(name, teacher, encoder, score)

    def _unconditional(self, system: Unconditional) -> Measured:
        table, seconds = self._references(system.identity, self.teacher_name, self.encoder, system.score_references)
        return self._measured(table, None, seconds)

    def _references(
        self, identity: str, teacher: str | None, encoder: Encoder, score: Callable[..., pd.DataFrame]
    ) -> tuple[pd.DataFrame | None, float]:
        if not self.items:
            return None, 0.0
        key = {
            "system": identity,
            "teacher": teacher,
            "items": content(encoder, self.items),
            "columns": list(REFERENCE_COLUMNS),
        }

        def compute() -> pd.DataFrame:
            return score(encoder, self.items, teacher_rows=self.teacher_rows if teacher else None)

        return remembered("references", key, compute)

    def _answers(self, system: LanguageModel | Ensemble, identity: str) -> tuple[pd.DataFrame | None, float]:
        """Scores of the system's texts. Only texts are cached, so that a corrected scorer takes effect at once."""
        if not self.prompts or isinstance(system, Ensemble) or not self.generates:
            return None, 0.0
        given, name = self.evaluation, named(system, identity)
        parts = answer_parts(system, self.prompts, given.decoding, seed=given.seed, engine=given.engine, identity=name)
        copies = given.copies if given.engine.generator is None else None
        shown = ("generate", "answers")
        texts, seconds = remembered_parts("answers", parts, system, named=identity, shown=shown, copies=copies)
        if self.headline is not None and not self.headline.of_text:
            return texts.assign(score=NAN, error=None), seconds
        return judged(texts, self.skill, self.prompts), seconds

    @property
    def generates(self) -> bool:
        """Whether a metric is computed from generated text."""
        return generates(self.headline, self.metrics)

    def _likelihoods(self, system: LanguageModel | Ensemble, identity: str) -> tuple[Likelihoods, float]:
        """The likelihood of each record's choices, where a metric requires it; after an empty prompt, too."""
        wanted = [one for one in self.metrics if requires_likelihood(one)]
        if not wanted or not self.choices:
            return {}, 0.0
        found, seconds = self._choice_logprobs(system, identity, self.choices)
        priors: list[Any] = [()] * len(found)
        if any(requires_likelihood(one, prior=True) for one in wanted):
            priors, more = self._choice_logprobs(system, identity, [without_question(one) for one in self.choices])
            seconds += more
        triples = zip(self.choices, found, priors, strict=True)
        return {one.id: (logprobs, prior) for one, logprobs, prior in triples}, seconds

    def _choice_logprobs(
        self, system: LanguageModel | Ensemble, identity: str, records: Sequence[Record]
    ) -> tuple[list[Any], float]:
        settings = {"batch_size": self.evaluation.decoding.batch_size, "max_tokens": self.encoder.max_tokens}
        parts = choice_parts(encoded_choices(records, system.tokenizer), identity=named(system, identity), **settings)
        copies = self.evaluation.copies if isinstance(system, LanguageModel) else None
        shown = ("evaluate", "items with choices")
        table, seconds = remembered_parts("choices", parts, system, named=identity, shown=shown, copies=copies)
        return table["logprobs"].tolist(), seconds

    def prompt_contents(self, tokenizer: PreTrainedTokenizerBase) -> list:
        """What the answers to the prompts depend on: ids, tokens, and digests of images."""
        return prompt_contents(self.prompts, tokenizer)

    def _measured(
        self,
        table: pd.DataFrame | None,
        answers: pd.DataFrame | None,
        seconds: float,
        likelihoods: Likelihoods | None = None,
    ) -> Measured:
        found = [] if table is None else self._likelihood_scores(table)
        if answers is not None and (self.headline is None or self.headline.of_text):
            found.append((self.metric.name, *self._own_score(answers)))
        for metric in self.metrics:
            if metric.metric.name in (name for name, *_ in found):
                continue
            records = self.prompts if requires_answers(metric) else self.choices
            if records and (answers is not None if requires_answers(metric) else likelihoods):
                rows = evidence(records, answers, likelihoods or {})
                found.append((metric.metric.name, *measured(metric, rows, self.groups(records), **self.interval)))
        found.sort(key=lambda one: (one[0] not in METRICS, one[0] != self.metric.name))  # the skill's own metric first
        drawn = [] if answers is None else samples(answers, self.prompts)
        rows = pd.concat([one for *_, one in found]) if found else pd.DataFrame(columns=list(COLUMNS))
        scores = {name: score for name, score, _ in found}
        positions = {} if table is None else {"references": by_position(table["positions"])}
        return Measured(scores, table, answers, drawn, seconds, rows, positions)

    def _own_score(self, answers: pd.DataFrame) -> tuple[Score, pd.DataFrame]:
        """The mean of the skill's own score: over the answers to each prompt, then over prompts."""
        values = answers.groupby("id", sort=False)["score"].mean()
        groups = self.groups(self.prompts)
        score = mean(values, groups, bounds=self.metric.bounds, **self.interval)
        lost = answers["error"].map(at_limit).groupby(answers["id"], sort=False).sum()
        return score, items(self.metric.name, list(values.index), groups, values, undecided=lost.astype(int).tolist())

    def _likelihood_scores(self, table: pd.DataFrame) -> list[tuple[str, Score, pd.DataFrame]]:
        groups, ids = self.groups(self.items), table["id"].tolist()
        bits = table["nll"] / math.log(2)
        rows = ratio_items("bits_per_byte", ids, groups, bits, table["bytes"])
        found = [("bits_per_byte", ratio(bits, table["bytes"], groups, **self.interval), rows)]
        if not table["top1"].isna().any():
            for name in ON_TEACHER:
                share = METRICS[name].bounds == (0.0, 1.0)
                score = ratio(table[name], table["tokens"], groups, share=share, **self.interval)
                found.append((name, score, ratio_items(name, ids, groups, table[name], table["tokens"])))
        return found

    @property
    def interval(self) -> dict[str, Any]:
        """The coverage of its intervals, and the draws of a bootstrap."""
        return {"confidence": self.evaluation.confidence, "resamples": self.evaluation.resamples}

    def groups(self, records: Sequence[Record]) -> list[str]:
        """Each record's source where its `meta` has one under the skill's group key, else the record itself."""
        sources = [(record.id, record.meta.get(self.skill.group_key)) for record in records]
        return [f"record {name}" if source is None else f"source {source}" for name, source in sources]
