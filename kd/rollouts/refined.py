"""The student's own responses as a teacher has revised them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kd.data.chat_template import response_text
from kd.data.prompt_templates import check_template
from kd.data.sequences import Encoder, prompt_ids
from kd.rewards import judged
from kd.rollouts.teacher import ByTeacher
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.types import Batch, Message, Models, Progress, Record, Written

SHOWN = "demonstration"  # the field of the template that may be absent


@dataclass(kw_only=True, eq=False)
class Refined(Writing):
    """A teacher's revisions of the student's responses, on which the student learns.

    Trajectory-refined distillation (TRD, arXiv 2606.08432, section 5): after a wrong beginning a teacher's distribution
    is divided between going on and turning back, which no weight of tokens mends. So the student generates an attempt,
    the teacher reads it in a prompt and generates a revision of it, and the student learns the revision after the plain
    prompt, from the teacher's distribution after the prompt that it was revised in. With teacher=own the student
    revises; its template then shows the record's first response, too. A teacher that provides text alone revises for
    terms that read texts (objective=sft).

    Each of a prompt's `samples` attempts is revised once, and is a group of its own. An attempt whose prompt of
    revision leaves no room for a response within the encoder's max_length is learnt from as it is, after the plain
    prompt on both sides. Logged: the share of these, `unrevised`; of revisions that are the attempt itself,
    `unchanged`; and `revised_length` and `revised_truncation_rate`.

    Args:
        template: the last message of the prompt for the revision: `{question}` stands for the original message,
            `{attempt}` for the student's response, and `{demonstration}`, which may be absent, for the record's first
            response.
        samples, max_new_tokens, temperature, top_p, batch_size: as for `kd.rollouts.writing.Writing`, of the attempts
            and of the revisions.
        generator: the engine of the attempts; our own generates the revisions, for an engine may hold the weights of
            one model only.

    Raises:
        ValueError: a setting is out of range, or the template lacks a field or has another one.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by"})
    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})
    teacher_prompts: ClassVar[bool] = True

    template: str

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """The teacher's, and the student's where an attempt is not revised."""
        return frozenset({"student", "other"})

    @staticmethod
    def responses_each(settings: Mapping[str, Any], written: int | None) -> int | None:
        """One: each attempt is revised in a prompt of its own."""
        return 1

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """Whether the template shows the record's own response."""
        return f"{{{SHOWN}}}" in settings.get("template", "")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template("rollout.template", self.template, required=("question", "attempt"), optional=(SHOWN,))
        self.reviser = ByTeacher(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            batch_size=self.batch_size,
        )
        self._counts = [0.0, 0.0, 0.0]  # attempts, those unrevised, and revisions unchanged, since the last report

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with revisions of new responses, scored by the reward."""
        records = records_of(window)
        attempts = self.by_one(models.student, records, encoder, version=progress.step)
        tried = [(record, answer) for record, group in zip(records, attempts, strict=True) for answer in group]
        texts = [response_text(answer.ids, encoder.student) for _, answer in tried]
        requests = [self.revising(record, text) for (record, _), text in zip(tried, texts, strict=True)]
        fits = [_has_room(one, encoder) for one in requests]
        fitting = [one for one, fit in zip(requests, fits, strict=True) if fit]
        revisions = iter(self._revised(fitting, models, progress, encoder))
        revised = [next(revisions) if fit else None for fit in fits]
        self._note(revised, texts, encoder)
        answers, prompts = list[list[Written]](), list[tuple[Message, ...]]()
        for (record, attempt), one, revision in zip(tried, requests, revised, strict=True):
            answers.append([_as_it_is(attempt) if revision is None else revision])
            prompts.append(record.prompt if revision is None else one.prompt)
        return judged(encoder.written([record for record, _ in tried], answers, prompts), models)

    def revising(self, record: Record, attempt: str) -> Record:
        """The record with the prompt for the revision of one attempt.

        Raises ValueError for a record without a response that the template shows.
        """
        given = dict[str, str]()
        if self.reads_given({"template": self.template}, written=False):
            if not record.responses:
                raise ValueError(
                    f"record {record.id} of {record.skill} has no response that rollout.template could show; take a "
                    "skill with references, or a template without {demonstration}"
                )
            given = {SHOWN: record.responses[0].text}
        *before, last = record.prompt
        shown = self.template.format(question=last["content"], attempt=attempt, **given)
        message: Message = {**last, "content": shown}
        return replace(record, prompt=(*before, message))

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The report of the student's responses; the revisions' mean length and share of truncated ones; and the shares
        of attempts that were not revised, and of revisions that changed nothing."""
        count, unrevised, unchanged = self._counts
        self._counts = [0.0, 0.0, 0.0]
        revised = self.reviser.take_report()
        return {
            **super().take_report(),
            "revised_length": revised["response_length"],
            "revised_truncation_rate": revised["truncation_rate"],
            "unrevised": (unrevised, count),
            "unchanged": (unchanged, count - unrevised),
        }

    def _revised(
        self, requests: Sequence[Record], models: Models, progress: Progress, encoder: Encoder
    ) -> list[Written]:
        """One revision for each prompt, in the student's ids; ranks without any take part."""
        return [answer for [answer] in self.reviser.responses(models.teacher, requests, progress, encoder)]

    def _note(self, revised: Sequence[Written | None], attempts: Sequence[str], encoder: Encoder) -> None:
        same = [
            answer is not None and response_text(answer.ids, encoder.student) == attempt
            for answer, attempt in zip(revised, attempts, strict=True)
        ]
        new = (len(revised), sum(answer is None for answer in revised), sum(same))
        self._counts = [a + b for a, b in zip(self._counts, new, strict=True)]


def _has_room(request: Record, encoder: Encoder) -> bool:
    """Whether the prompt of a revision leaves room for one, in the tokens of the model that reads it."""
    return len(prompt_ids(request, encoder.teacher or encoder.student)) < encoder.max_length


def _as_it_is(attempt: Written) -> Written:
    """The student's response without its log-probabilities, which revisions do not have."""
    return replace(attempt, behaviour_logprobs=None, old_logprobs=None)
