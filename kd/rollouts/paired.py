"""The student's own responses beside a preferred one, for objectives that compare the two."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from kd.data.sequences import Encoder
from kd.generators.generation import read_again
from kd.models.language_model import LanguageModel
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Samples, Writing
from kd.types import Batch, Models, Progress, Record, Written


@dataclass(kw_only=True, eq=False)
class Paired(Writing):
    """The record's first response to each prompt, the preferred one, followed by `samples` new responses.

    The preferred response is the reference, or the teacher's where augmentation=labeling put it there; its source is in
    `written_by`. With one sample the groups are pairs, as in SPIN (arXiv 2401.01335), DPKD (2406.19774), DistiLLM-2
    (2503.07067) and ORPO-Distill (2509.25100). A sample may equal the preferred response; the pair is kept, and its
    gradient in an objective that compares the two is zero.

    Args:
        samples: responses generated to each prompt.
        opponent: student: with the weights of this step | reference: with those before the first step, which is SPIN's
            first iteration. A reference is available where a term of the objective requires one (dpo).
        max_new_tokens, temperature, top_p, batch_size, generator: as for `kd.rollouts.writing.Writing`.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by"})
    requires: ClassVar[frozenset[str]] = frozenset()
    ordered: ClassVar[bool | None] = True

    opponent: Literal["student", "reference"] = "student"

    @staticmethod
    def responses_each(settings: Mapping[str, Any], written: int | None) -> int | None:
        """The number of samples, plus one for the preferred response."""
        return settings["samples"] + 1 if "samples" in settings else None

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """The preferred one of each pair."""
        return True

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """Both sides, in each group."""
        return frozenset({"student", "other"})

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts, each with its preferred response and the new ones, scored by the reward."""
        return judged(self._paired(window, models, progress, encoder), models)

    def _paired(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        given = [(record, found[0]) for record in records_of(window) if (found := encoder.given(record))]
        records = [record for record, _ in given]
        preferred = self._preferred(given, models, encoder)
        written = self._write(records, models, progress, encoder)
        return encoder.written(records, [[best, *own] for best, own in zip(preferred, written, strict=True)])

    def _preferred(self, given: list[tuple[Record, Written]], models: Models, encoder: Encoder) -> list[Written]:
        return [best for _, best in given]

    def _write(
        self, records: list[Record], models: Models, progress: Progress, encoder: Encoder
    ) -> list[list[Written]]:
        version = progress.step if self.opponent == "student" else 0
        responses = self.by_one(self._opponent(models), records, encoder, version=version)
        if self.opponent == "student":
            return responses
        return [
            [replace(answer, old_logprobs=None) for answer in group] for group in responses
        ]  # not the student's now

    def _opponent(self, models: Models) -> LanguageModel:
        if self.opponent == "student":
            return models.student
        if models.reference is None:
            raise ValueError(
                "rollout.opponent=reference: no term requires the student before training, so it was not kept; take an "
                "objective that does (dpo), or rollout.opponent=student"
            )
        return models.reference.model


@dataclass(kw_only=True, eq=False)
class Demonstrated(Paired):
    """`Paired` for policy objectives, which require each response's log-probability when it was generated.

    The student scores the preferred responses for that, once. The distribution that they were drawn from is not known;
    the student's log-probabilities stand for it, so that ratios of the two are 1 there.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})

    samples: Samples = 4
    opponent: Literal["student", "reference"] = field(default="student", init=False)

    def _preferred(self, given: list[tuple[Record, Written]], models: Models, encoder: Encoder) -> list[Written]:
        records = [record for record, _ in given]
        scored: dict[str, Tensor] = {}
        for batch in encoder.written(records, [[best] for _, best in given]):
            rows = batch.student.mask.sum(1)
            logprobs = read_again(models.student, batch.student)[batch.student.mask].split(rows.tolist())
            scored |= {record.id: row for record, row in zip(batch.records, logprobs, strict=True)}
        return [
            replace(best, behaviour_logprobs=scored[record.id], old_logprobs=scored[record.id])
            for record, best in given
        ]
