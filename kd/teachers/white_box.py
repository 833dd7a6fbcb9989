"""A teacher that can be read whole."""

from typing import ClassVar

from torch import nn

from kd.models.language_model import LanguageModel
from kd.teachers.interface import NetworkTeacher
from kd.types import ModelOutput, Sequences, Source


class WhiteBox(nn.Module, NetworkTeacher):
    """All of a model: its text, logits, log-probabilities, hidden states. Frozen, in eval mode, and it stays so."""

    provides: ClassVar[frozenset[str]] = LanguageModel.provides | {"text"}

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.frozen = model.requires_grad_(False)
        self.train(False)

    @property
    def model(self) -> LanguageModel:
        """The network."""
        return self.frozen

    def train(self, mode: bool = True) -> "WhiteBox":
        """Refuses train mode: a teacher has no dropout, whatever its student does."""
        return super().train(False)

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        """See `LanguageModel`."""
        return self.model(sequences, wanted)


class StudentText(WhiteBox):
    """A student as a model that generates text: as a teacher does, at the student's cost."""

    source: ClassVar[Source] = "student"
