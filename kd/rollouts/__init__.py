"""Who writes the responses that the student learns on."""

from typing import NamedTuple, Protocol, runtime_checkable

from kd.data.sequences import Encoder
from kd.types import Batch, Models, Progress


class Spent(NamedTuple):
    """What writing has cost on this rank since the rollout was made; a run that is resumed counts on from its budget.

    generated_tokens: written by the student, alone or together with a teacher, end tokens included.
    decoding_flops: of the student, in writing and in whatever else it read for the rollout (`kd.models.flops`).
    teacher_tokens: read by a teacher while it wrote, or while it helped to: prompts and all written but the last.
    seconds: of writing alone, without what judges or reads again.
    judge_flops: of a reward model, or a discriminator, that judged what was written.
    """

    generated_tokens: int = 0
    decoding_flops: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    judge_flops: int = 0

    def plus(self, other: "Spent") -> "Spent":
        """Both together."""
        return Spent(*(one + more for one, more in zip(self, other, strict=True)))  # type: ignore[arg-type]


@runtime_checkable
class Rollout(Protocol):
    """One optimizer step's window in, the window to learn from out.

    A rollout may have more to it; the module asks:
    keeps_responses: True where the records' own responses stay as they are.
    uses: how many steps in a row get the same window (1).
    ordered: whether the first response to a prompt is the preferred one, as far as the rollout decides on it.
    responses_each(settings, written) -> int | None: static; how many responses a prompt has under these settings of the
        config, where its `writer` gives it `written`. None: as many as the records, or not always the same.
    passes_given(settings) -> bool: static; whether under these settings some step learns on the records' own responses
        as they are, so that what terms ask of a group is asked of the records. Without it: no.
    sides(settings, written) -> frozenset | None: static; the sides that generate what is learnt on ("student", "other")
        under these settings, where its `writer` gives `written`. Without it: as the writer, or not known.
    spent() -> Spent, and take_report() as in `kd.types.Reports`.
    after_validation(metrics): told what was measured, on every rank, by name without "validation/".
    state_dict() and load_state_dict(state): plain Python and tensors, each rank's own; what the next step depends on.
    """

    provides: frozenset[str]  # names of kd.signals.FROM_ROLLOUT that its batches carry
    requires: frozenset[str]  # fields of the models' outputs that it reads

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """Random numbers come from torch's global generator, which the caller seeds by step and rank.

        What all ranks must agree on (who writes, at this step) is drawn from a stream of its own, by seed and step.
        """
