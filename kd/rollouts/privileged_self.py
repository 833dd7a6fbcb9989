"""The student's own responses, which the teacher reads after a prompt with a demonstration."""

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
    """Responses of the student to the plain prompt, which the teacher reads after a prompt with a demonstration.

    With teacher=own it is self-distillation from a privileged context: SDFT (arXiv 2601.19897) with teacher.mode=ema,
    OPSD (arXiv 2601.18734) with teacher.mode=frozen; with another teacher, that one is shown the demonstration.
    The demonstration is the record's first response. A record whose longer prompt leaves no room for a response within
    the encoder's max_length is left out, its share reported as `left_out`; responses are cut alike on both sides.

    Args:
        template: the last message of the teacher's prompt; `{question}` stands for the original message and
            `{demonstration}` for the response that the student does not see.
        samples, max_new_tokens, temperature, top_p, batch_size, generator: as for `kd.rollouts.writing.Writing`.

    Raises:
        ValueError: a setting is out of range, or the template lacks a field or has another one.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset()
    teacher_prompts: ClassVar[bool] = True  # so positions differ between the two; the loss rows do not

    template: str

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """The demonstration that the teacher is shown."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_template(self.template)
        self.left_out, self.read = 0, 0  # records since the last report

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with new responses, scored by the reward."""
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
        """The report of `kd.rollouts.writing.Writing`, and the share of records too long with a demonstration."""
        share = (float(self.left_out), float(self.read))
        self.left_out = self.read = 0
        return {**super().take_report(), "left_out": share}

    def _fitting(
        self, records: list[Record], encoder: Encoder
    ) -> tuple[list[Record], list[tuple[Message, ...]], list[int]]:
        """The records that leave room for a response, the teacher's prompts, and the room of each."""
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
                "no prompt of this window leaves room for a response with the demonstration of rollout.template: the "
                f"shortest needs {1 - max(rooms)} tokens beyond data.max_length={encoder.max_length}; raise it"
            )
        self.left_out, self.read = self.left_out + len(records) - len(kept), self.read + len(records)
        return [records[i] for i in kept], [prompts[i] for i in kept], [rooms[i] for i in kept]


def _check_template(template: str) -> None:
    named = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    if named != FIELDS:
        raise ValueError(
            f"rollout.template names {sorted(named)}; it needs {{question}} and {{demonstration}} and nothing else "
            "(a brace of the text itself is written twice)"
        )
