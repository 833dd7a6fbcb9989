"""Checks that a skill's records have what the evaluation measures on them, before any weight is loaded."""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress

from kd.evaluation.evaluate import Evaluation
from kd.evaluation.items import requires_answers, requires_several
from kd.sandbox import NoVerdict
from kd.skills.answer_metrics import GENERATED, LIKELIHOOD, Evidence, FunctionMetric
from kd.types import AnswerMetric, Record, Skill


def check_measurable(evaluation: Evaluation, skills: Sequence[Skill], *, curve: int, teacher: bool) -> None:
    """Raises ValueError for what could not be measured on the records that are evaluated.

    A metric whose inputs a record lacks, or that requires more answers than are generated; a variant that changes no
    item; an error beside a teacher that is not there; two skills, or a skill and a task of lm-eval, of one name, under
    which results.json has one entry. Records are read only where something depends on them.

    skills: the run's own first.
    curve: validation prompts that each validation answers (`checkpoint.answers`).
    teacher: whether the run has one.
    """
    _check_names(skills, evaluation)
    for skill in skills:
        _check_metrics(skill, evaluation)
    _check_curve(skills[0], curve)
    _check_variants(skills, evaluation)
    for name, value in (("excess_error", evaluation.excess_error), ("draft", evaluation.draft)):
        if value and not teacher:
            raise ValueError(
                f"evaluation.{name}={value} compares the student with a teacher, but teacher=none; "
                f"take a teacher, or evaluation.{name}=0"
            )


def _check_names(skills: Sequence[Skill], evaluation: Evaluation) -> None:
    """Raises ValueError for two that would stand under one name; skills of the same test records are one, of which one
    may have more."""
    known: dict[str, Skill] = {}
    for skill in skills:
        if (other := known.setdefault(skill.name, skill)) is not skill and not _alike(skill, other):
            raise ValueError(
                f"evaluation.skills has another skill by the name {skill.name}, with other test records than the first "
                "one, and results.json has one entry for a name; leave one out, or give its file of conf/skill another "
                "`name`"
            )
    check_names(evaluation.lm_eval.tasks, known)


def check_names(tasks: Iterable[str], skills: Container[str]) -> None:
    """Raises ValueError for a task of lm-eval by the name of a skill."""
    if both := [task for task in tasks if task in skills]:
        raise ValueError(
            f"evaluation.lm_eval.tasks has {both[0]}, which is also the name of a skill of this run, and results.json "
            "has one entry for a name; leave one out, or copy the task's yaml under another name "
            "(evaluation.lm_eval.include)"
        )


def _alike(one: Skill, other: Skill) -> bool:
    """Return whether one's test records are the first ones of the other's."""
    return all(a == b for a, b in zip(one.load("test"), other.load("test"), strict=False))


def _check_metrics(skill: Skill, evaluation: Evaluation) -> None:
    for metric in skill.metrics:
        count = evaluation.answers if requires_answers(metric) else evaluation.items
        if count != 0:
            _check_metric(metric, skill.load("test")[:count], evaluation.decoding.samples)


def _check_curve(skill: Skill, answers: int) -> None:
    """The metrics that validations log (`kd.experiment.task_scores`)."""
    for metric in skill.metrics if answers else ():
        if not requires_several(metric):
            _check_metric(metric, skill.load("validation")[:answers], 1)


def _check_metric(metric: AnswerMetric, records: Sequence[Record], samples: int) -> None:
    """Raises ValueError where one of the records lacks an input of the metric, or there are too few samples."""
    if not isinstance(metric, FunctionMetric):
        return
    try:
        for record in records:
            for name in _of_records(metric):
                getattr(Evidence(record), name)
        if records and (requires_several(metric) or "meta" in metric.requires):
            _rehearse(metric, records[0], samples)
    except ValueError as error:
        raise ValueError(f"metric {metric.metric.name}: {error}") from None


def _of_records(metric: FunctionMetric) -> Iterator[str]:
    """The inputs that come from a record, in order."""
    if metric.requires & LIKELIHOOD:
        yield "choices"
    yield from sorted(metric.requires - GENERATED - LIKELIHOOD)


def _rehearse(metric: FunctionMetric, record: Record, samples: int) -> None:
    """Compute the metric for the record's own response, as often as answers are generated."""
    text = record.responses[0].text if record.responses else ""
    evidence = Evidence(record, (text,) * samples, (0.0,) * samples, (1,) * samples, (False,) * samples)
    try:
        with suppress(NoVerdict):
            metric.rows(evidence)
    except KeyError as error:
        raise ValueError(
            f"record {record.id} of {record.skill} has no {error.args[0]} in its `meta`, which it reads; give the "
            "records that column, or leave the metric out of skill.metrics"
        ) from None


def _check_variants(skills: Sequence[Skill], evaluation: Evaluation) -> None:
    for variant in evaluation.variants:
        seed, names = evaluation.seed, ", ".join(skill.name for skill in skills)
        changed = (variant(one, seed, skill) for skill in skills for one in _evaluated(skill, evaluation))
        if any(_evaluated(skill, evaluation) for skill in skills) and all(one is None for one in changed):
            raise ValueError(
                f"evaluation.variants={variant.name} changes no evaluated item of {names}; "
                "leave it out, or evaluate a skill that it can change (docs/evaluation.md, Robustness)"
            )


def _evaluated(skill: Skill, evaluation: Evaluation) -> Sequence[Record]:
    answers, items = evaluation.answers, evaluation.items
    return skill.load("test")[: None if answers is None or items is None else max(answers, items)]
