"""The teacher's own responses, written anew at every step."""

from dataclasses import replace
from typing import ClassVar

from kd.generators import Generator
from kd.models.generation import check_decoding
from kd.models.language_model import LanguageModel
from kd.models.sampling import Sampled
from kd.rewards import judged
from kd.rollouts import Spent
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.sequences import Encoder, response_text
from kd.types import Batch, Models, Progress, Record, Written


class ByTeacher:
    """The teacher answers every prompt of the window: sequence-level distillation (arXiv 1606.07947) with samples that
    are never seen twice. With one fixed response to each record, written once and kept on disk, it is
    augmentation=labeling.

    A teacher with a tokenizer of its own is read as text. The student's log-probabilities are not asked, so nothing
    here corrects for the samples being the teacher's.

    Args:
        samples, max_new_tokens, temperature, top_p, batch_size, generator: as for `kd.rollouts.on_policy.OnPolicy`.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by"})
    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __init__(
        self,
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        batch_size: int = 16,
        generator: Generator | None = None,
    ):
        check_decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, samples=samples)
        self.samples, self.max_new_tokens, self.batch_size = samples, max_new_tokens, batch_size
        self.sampled, self.writing = Sampled(temperature, top_p), Writing(generator)

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with the responses just written, judged."""
        records = records_of(window)
        teacher: LanguageModel = models.teacher.model
        responses = self.writing.alone(
            teacher,
            records,
            encoder,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            sampled=self.sampled,
            batch_size=self.batch_size,
            source="teacher",
            version=progress.step if hasattr(models.teacher, "bind") else 0,  # one that follows the student changes
        )
        read = [
            [_in_students_tokens(record, answer, teacher, encoder) for answer in group]
            for record, group in zip(records, responses, strict=True)
        ]
        return judged(encoder.written(records, read), models)

    def spent(self) -> Spent:
        """See `kd.rollouts.Spent`."""
        return self.writing.spent()

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.rollouts.writing.Writing`."""
        return self.writing.take_report()


def _in_students_tokens(record: Record, answer: Written, teacher: LanguageModel, encoder: Encoder) -> Written:
    """The same ids where the tokenizers are the same, else those of the text; an end token where there was one."""
    own = replace(answer, old_logprobs=None)  # those were the teacher's
    if encoder.teacher is None:
        return own
    text = response_text(answer.ids, teacher.tokenizer)
    ids: list[int] = encoder.student(text, add_special_tokens=False)["input_ids"]
    end = [] if answer.truncated and ids else [encoder.student.eos_token_id]
    return Written((*ids, *end), "teacher", truncated=answer.truncated)
