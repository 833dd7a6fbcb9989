"""The teacher's own responses, written anew at every step."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from kd.data.chat_template import response_text
from kd.data.sequences import Encoder, answer_ids
from kd.models.language_model import LanguageModel
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.types import Batch, Models, Progress, Record, Written


class ByTeacher(Writing):
    """The teacher answers every prompt of the window: sequence-level distillation (arXiv 1606.07947) with samples that
    are never seen twice. With one fixed response to each record, written once and kept on disk, it is
    augmentation=labeling.

    A teacher with a tokenizer of its own is read as text. The student's log-probabilities are not asked, so nothing
    here corrects for the samples being the teacher's. The settings are those of `kd.rollouts.writing.Writing`.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by"})
    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """The teacher's."""
        return frozenset({"other"})

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with the responses just written, judged."""
        records = records_of(window)
        teacher: LanguageModel = models.teacher.model
        version = progress.step if hasattr(models.teacher, "bind") else 0  # one that follows the student changes
        responses = self.by_one(teacher, records, encoder, source="teacher", version=version)
        read = [
            [_in_students_tokens(record, answer, teacher, encoder) for answer in group]
            for record, group in zip(records, responses, strict=True)
        ]
        return judged(encoder.written(records, read), models)


def _in_students_tokens(record: Record, answer: Written, teacher: LanguageModel, encoder: Encoder) -> Written:
    """The same ids where the tokenizers are the same, else those of the text; an end token where there was one."""
    own = replace(answer, old_logprobs=None)  # those were the teacher's
    if encoder.teacher is None:
        return own
    text = response_text(answer.ids, teacher.tokenizer)
    ids = answer_ids(record, text, encoder.student, ended=not answer.truncated or not text)
    return Written(tuple(ids), "teacher", truncated=answer.truncated)
