"""The teacher's outputs in the student's tokens and vocabulary."""

from abc import abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kd.types import Batch, ModelOutput


@runtime_checkable
class Alignment(Protocol):
    """A map of a teacher's output into the student's coordinates.

    A subclass has `provides`, `translates`, `check` and `__call__`; all other members have defaults. Each name of
    `kd.signals.FROM_ALIGNMENT` that it provides is a method of that name, from a batch to the signal.

    provides: fields of `ModelOutput` that are mapped, and names of `kd.signals.FROM_ALIGNMENT`.
    translates: whether rows and ids may differ between student and teacher.
    summary: a sentence about the two tokenizers, set by `check`; "" for none.
    """

    provides: ClassVar[frozenset[str]]
    translates: ClassVar[bool]
    summary: str = ""

    @abstractmethod
    def check(
        self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ids: tuple[int, int] | None = None
    ) -> None:
        """Receives the two tokenizers, and the number of ids that the heads of student and teacher have.

        Raises ValueError for two tokenizers that it cannot align.
        """

    @abstractmethod
    def __call__(self, native: ModelOutput, batch: Batch) -> ModelOutput:
        """The teacher's output `native` on `batch.teacher`, at the positions and in the ids of `batch.student`."""

    def shared_ids(self) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]] | None:
        """Ids of the student, and their counterparts of the teacher; None where these are not known."""
        return None

    def forbidden(self) -> int:
        """The number of the student's ids that get no probability of the teacher."""
        return 0

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return {}
