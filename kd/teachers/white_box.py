"""A teacher that provides all outputs of a model."""

from typing import ClassVar

from torch import nn

from kd.models.language_model import LanguageModel
from kd.teachers.interface import NetworkTeacher
from kd.types import ModelOutput, Sequences, Source


class WhiteBox(nn.Module, NetworkTeacher):
    """A teacher that provides a model's text, logits, log-probabilities and hidden states; frozen, in eval mode."""

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

    charged_to: ClassVar[Source] = "student"
