"""The choice of the responses that the student learns on, and of the model that generates them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from kd.data.sequences import Encoder
from kd.generators.account import Spent
from kd.types import Batch, Models, Progress

__all__ = ["Rollout", "Spent"]


@runtime_checkable
class Rollout(Protocol):
    """A map from one optimizer step's window of records to the window of responses that the step learns from.

    A subclass has `provides`, `requires` and `__call__`; everything else has the default that stands here. Its cost is
    counted where text is generated (`kd.generators.account`), not here: an engine of its own is a
    `kd.generators.Generator`, and a run ends at its first step if tokens of the student's were counted nowhere.

    provides: names of `kd.signals.FROM_ROLLOUT` that its batches carry.
    requires: fields of the models' outputs that it reads; "teacher" for a teacher that generates text.
    adds: what it provides itself, where a `writer` generates for it and `provides` bounds what it passes on.
    keeps_responses: whether the records' own responses stay as they are.
    ordered: whether the first response to a prompt is the preferred one; None: as the writer's, else as the records'.
    one_vocabulary: whether an id has to mean the same to student and teacher.
    teacher_prompts: whether the teacher reads another prompt than the student, so that positions differ.
    uses: steps in a row that get the same window.
    ahead: windows after the present one that it generates for in advance, which it receives in `foresee`.
    samples: responses that it generates to each prompt.
    """

    provides: ClassVar[frozenset[str]]
    requires: ClassVar[frozenset[str]]
    adds: ClassVar[frozenset[str]] = frozenset()
    keeps_responses: ClassVar[bool] = False
    ordered: ClassVar[bool | None] = None
    one_vocabulary: ClassVar[bool] = False
    teacher_prompts: ClassVar[bool] = False
    uses: int = 1
    ahead: int = 0
    samples: int = 1

    @abstractmethod
    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """Random numbers come from torch's global generator, which the caller seeds by step and rank.

        What all ranks must agree on (which model generates, at this step) is drawn from a stream of its own, by seed
        and step.
        """

    @staticmethod
    def responses_each(settings: Mapping[str, Any], written: int | None) -> int | None:
        """The number of responses that a prompt has under these settings of the config; `written`: under its writer's.

        None: as many as the records have, or not always the same.
        """
        return None

    @staticmethod
    def passes_given(settings: Mapping[str, Any], written: bool) -> bool:
        """True if some step learns on the records' own responses as they are, so that what terms require of a group is
        required of the records. `written`: whether its writer's does."""
        return written

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """True if some step reads the records' own responses at all, so that each record has to have one. `written`:
        whether its writer's does."""
        return written

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """The sides that generate what is learnt on ("student", "other") under these settings; None: not known.

        written: those of its writer.
        """
        return written

    def foresee(self, coming: Sequence[list[Batch]]) -> None:
        """Receives the windows of the next steps (at most `ahead`, none after the last) before each call."""
        return None

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return {}

    def after_validation(self, metrics: Mapping[str, float]) -> None:
        """Receives the validation metrics on every rank, by name without "validation/"."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The state that the next step depends on, of each rank: all attributes that are plain Python or tensors.

        A rollout with other state (such as a buffer) adds it here and restores it in `load_state_dict`.
        """
        return {"attributes": {name: value for name, value in vars(self).items() if _plain(value)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        vars(self).update(state["attributes"])


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return all(map(_plain, value)) and (not isinstance(value, dict) or all(map(_plain, value.values())))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)
