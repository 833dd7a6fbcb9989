"""The student's own responses, which the teacher reads after a prompt with a successful one of the same group."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kd.data.sequences import Encoder
from kd.rewards import judged
from kd.rollouts.buffer import split
from kd.rollouts.privileged_self import PrivilegedSelf
from kd.rollouts.ranked import silent
from kd.rollouts.wrapping import records_of
from kd.types import Batch, Message, Models, Progress, Record, Written

Shown = tuple[Record, tuple[Message, ...], Written]  # a record, the teacher's prompt to it, and one response


@dataclass(kw_only=True, eq=False)
class PrivilegedPeers(PrivilegedSelf):
    """Responses of the student, each of which the teacher reads after a prompt with another, successful response.

    Self-distillation policy optimization (SDPO, arXiv 2601.20802) with teacher=own: the student's successful attempts
    are the additional context of its self-teacher. The demonstration of a response is the first other response to the
    same prompt whose reward is `success` or more, as in the authors' code (lasgroup/SDPO at 0e6d510). A response
    without one is left out, its share reported as `without_success`; where that is so of all of a step, nothing is
    learnt in it. Each response that is learnt from is a group of its own.

    Args:
        template: the last message of the teacher's prompt; `{question}` stands for the original message and
            `{demonstration}` for the successful response.
        success: the least reward of a successful response.
        samples: responses to each prompt, 2 or more.
        max_new_tokens, temperature, top_p, batch_size, generator: as for `kd.rollouts.writing.Writing`.

    Raises:
        ValueError: a setting is out of range, the template lacks a field or has another one, or there is no reward.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset({"rewards"})

    success: float = 0.5

    @staticmethod
    def responses_each(settings: Mapping[str, Any], written: int | None) -> int | None:
        """One: the others of its group are what the teacher is shown."""
        return 1

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """False: demonstrations are the student's own."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise ValueError(f"rollout.samples={self.samples} leaves no other response to show; set it to 2 or more")
        self._alone, self._all = 0, 0  # responses without a successful other one, and all, since the last report

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with new responses, of those that the teacher has a demonstration for."""
        records = records_of(window)
        responses = self.by_one(models.student, records, encoder, version=progress.step)
        groups = split(judged(encoder.written(records, responses), models))
        shown = [one for group in groups for one in self._shown(group)]
        rows = [[answer] for _, _, answer in shown]
        batches = encoder.written([record for record, _, _ in shown], rows, [prompt for _, prompt, _ in shown])
        self.left_out += len(shown) - sum(len(batch.records) for batch in batches)
        self.read += len(shown)
        if groups and not batches:
            return [replace(silent(min(groups, key=lambda group: group.student.tokens.numel())), rewards=None)]
        return batches

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The report of `PrivilegedSelf`, and the share of responses without a successful other one."""
        share = (float(self._alone), float(self._all))
        self._alone = self._all = 0
        return {**super().take_report(), "without_success": share}

    def _shown(self, group: Batch) -> list[Shown]:
        """The responses of one group that the teacher has a demonstration for."""
        if group.rewards is None:
            raise ValueError(
                "rollout PrivilegedPeers shows successful responses, but they have no rewards; take reward=verifier"
            )
        (record,) = group.records
        successful = (group.rewards >= self.success).nonzero()[:, 0].tolist()
        found = []
        for i, response in enumerate(record.responses):
            if others := [j for j in successful if j != i]:
                alone = replace(record, responses=(record.responses[others[0]],))
                found.append((replace(record, responses=(response,)), self.privileged(alone), _written(group, i)))
        self._alone, self._all = self._alone + len(record.responses) - len(found), self._all + len(record.responses)
        return found


def _written(group: Batch, row: int) -> Written:
    """A response of the student as the ids that were generated."""
    mask = group.student.mask[row]
    behaviour, old = (
        None if values is None else values[row][mask] for values in (group.behaviour_logprobs, group.old_logprobs)
    )
    return Written(tuple(group.student.labels[row][mask].tolist()), "student", behaviour, old)
