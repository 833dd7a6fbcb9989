"""The student's own responses, which the teacher reads after a prompt that shows it more."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any, ClassVar

from kd.data.sequences import Encoder, prompt_ids
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.types import Batch, Message, Models, Progress, Record

FIELDS = {"question", "demonstration"}


@dataclass(kw_only=True, eq=False)
class PrivilegedSelf(Writing):
    """The student writes after the plain prompt; the teacher reads the same tokens after one with a demonstration.

    With teacher=own it is self-distillation from a privileged context: SDFT (arXiv 2601.19897) with teacher.mode=ema,
    OPSD (arXiv 2601.18734) with teacher.mode=frozen; with another teacher, that one is shown the demonstration.
    The demonstration is the record's first response. A record whose longer prompt leaves no room for a response within
    the encoder's max_length is left out, its share reported as `left_out`; responses are cut alike on both sides.

    Args:
        template: what the last message of the prompt becomes for the teacher; `{question}` stands for what it was and
            `{demonstration}` for the response that the student does not see.
        samples, max_new_tokens, temperature, top_p, batch_size, generator: as for `kd.rollouts.writing.Writing`.

    Raises:
        ValueError: a setting is out of range, or the template lacks a field or has another one.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset()
    teacher_prompts: ClassVar[bool] = True  # so its positions are not the student's; the loss rows are

    template: str

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """The demonstration that the teacher is shown."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_template(self.template)
        self.left_out, self.asked = 0, 0  # records since the last report

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with the responses just written, judged."""
        records, prompts, rooms = self._fitting(records_of(window), encoder)
        responses = self.by_one(models.student, records, encoder, version=progress.step, rooms=rooms)
        return judged(encoder.written(records, responses, teacher_prompts=prompts), models)

    def privileged(self, record: Record) -> tuple[Message, ...]:
        """The prompt that the teacher reads. Raises ValueError for a record without a response to show."""
        if not record.responses:
            raise ValueError(
                f"record {record.id} of {record.skill} has no response that could be shown to the teacher alone; take "
                "a skill with references, or rollout=on_policy"
            )
        *before, last = record.prompt
        shown = self.template.format(question=last["content"], demonstration=record.responses[0].text)
        return (*before, {**last, "content": shown})

    def take_report(self) -> dict[str, tuple[float, float]]:
        """That of `kd.rollouts.writing.Writing`, and the share of records that were too long with a demonstration."""
        told = (float(self.left_out), float(self.asked))
        self.left_out = self.asked = 0
        return {**super().take_report(), "left_out": told}

    def _fitting(
        self, records: list[Record], encoder: Encoder
    ) -> tuple[list[Record], list[tuple[Message, ...]], list[int]]:
        """The records that leave room for a response, what the teacher reads before it, and each one's room."""
        teacher = encoder.teacher or encoder.student
        prompts = [self.privileged(record) for record in records]
        rooms = [
            encoder.max_length
            - max(len(prompt_ids(replace(record, prompt=shown), teacher)), len(prompt_ids(record, encoder.student)))
            for record, shown in zip(records, prompts, strict=True)
        ]
        kept = [i for i, room in enumerate(rooms) if room > 0]
        if records and not kept:
            raise ValueError(
                "no prompt of this window leaves room for a response once rollout.template shows the teacher more: the "
                f"shortest needs {1 - max(rooms)} tokens beyond data.max_length={encoder.max_length}; raise it"
            )
        self.left_out, self.asked = self.left_out + len(records) - len(kept), self.asked + len(records)
        return [records[i] for i in kept], [prompts[i] for i in kept], [rooms[i] for i in kept]


def _check_template(template: str) -> None:
    named = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    if named != FIELDS:
        raise ValueError(
            f"rollout.template names {sorted(named)}; it needs {{question}} and {{demonstration}} and nothing else "
            "(a brace of the text itself is written twice)"
        )
