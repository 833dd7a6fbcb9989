"""The teacher's own responses, generated at every step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from kd.data.chat_template import response_text
from kd.data.sequences import Encoder, answer_ids, prompt_ids
from kd.models.language_model import LanguageModel
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.teachers.interface import Teacher
from kd.types import Batch, Models, Progress, Record, Written


class ByTeacher(Writing):
    """Responses of the teacher to every prompt of the window: sequence-level distillation (arXiv 1606.07947) with new
    samples at every step. With one fixed response to each record, generated once and kept on disk, it is
    augmentation=labeling.

    Responses of a teacher with another tokenizer are encoded from its text. The student's log-probabilities are not
    computed, so nothing here corrects for the samples being the teacher's. The settings are those of
    `kd.rollouts.writing.Writing`.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by"})
    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """The teacher's."""
        return frozenset({"other"})

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with new responses, scored by the reward."""
        records = records_of(window)
        return judged(encoder.written(records, self.responses(models.teacher, records, progress, encoder)), models)

    def responses(
        self, teacher: Teacher, records: Sequence[Record], progress: Progress, encoder: Encoder
    ) -> list[list[Written]]:
        """The teacher's responses to each record's prompt, in the student's ids."""
        if not teacher.has_weights:
            return self._texts(teacher, records, encoder)
        version = progress.step if teacher.follows_student else 0
        responses = self.by_one(teacher.model, records, encoder, source="teacher", version=version)
        return [
            [_in_students_tokens(record, answer, teacher.model, encoder) for answer in group]
            for record, group in zip(records, responses, strict=True)
        ]

    def _texts(self, teacher: Teacher, records: Sequence[Record], encoder: Encoder) -> list[list[Written]]:
        """The responses of a teacher that provides text alone, in the student's ids."""
        answers = teacher.respond(records, decoding=self.decoding, engine=self.engine)
        responses = [
            [
                _of_text(record, text, encoder, finished=finished)
                for text, finished in zip(answer.texts, answer.finished, strict=True)
            ]
            for record, answer in zip(records, answers, strict=True)
        ]
        rooms = [encoder.max_length - len(prompt_ids(record, encoder.student)) for record in records]
        self.note(responses, rooms)
        return responses


def _in_students_tokens(record: Record, answer: Written, teacher: LanguageModel, encoder: Encoder) -> Written:
    """The answer's ids where the tokenizers are the same, else those of its text; an end token where there was one."""
    own = replace(answer, old_logprobs=None)  # those were the teacher's
    if encoder.teacher is None:
        return own
    return _of_text(record, response_text(answer.ids, teacher.tokenizer), encoder, finished=not answer.truncated)


def _of_text(record: Record, text: str, encoder: Encoder, *, finished: bool) -> Written:
    """A text in the student's ids; an empty text is one end token, whether or not it was finished."""
    ids = answer_ids(record, text, encoder.student, ended=finished or not text)
    return Written(tuple(ids), "teacher", truncated=not finished)
