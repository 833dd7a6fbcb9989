"""A teacher that provides all outputs of a model."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from kd.generators.account import Spent, charge, is_metered
from kd.models.flops import reading_flops
from kd.models.language_model import LanguageModel
from kd.teachers.interface import NetworkTeacher
from kd.types import Batch, ModelOutput, Sequences, Source


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
    """A student as a model that generates text, and is read, as a teacher is, at the student's cost."""

    charged_to: ClassVar[Source] = "student"

    def read(self, batch: Batch, wanted: frozenset[str], device: torch.device | None = None) -> ModelOutput:
        """See `Teacher`; its FLOPs are added to every open meter."""
        if is_metered():
            charge(Spent(decoding_flops=reading_flops(self.model, batch.teacher)))
        return self.output(batch if device is None else replace(batch, teacher=batch.teacher.to(device)), wanted)
