"""How deep a teacher can be read."""

from typing import Any

from torch import nn

from kd.models.language_model import LanguageModel
from kd.types import Batch, ModelOutput, Sequences, Shape


class WhiteBox(nn.Module):
    """All of a model: its text, logits, log-probabilities, hidden states. Frozen, in eval mode, and it stays so."""

    provides = LanguageModel.provides | {"text"}

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "WhiteBox":
        """Refuses train mode: a teacher has no dropout, whatever its student does."""
        return super().train(False)

    @property
    def shape(self) -> Shape:
        """See `LanguageModel`."""
        return self.model.shape

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        """See `LanguageModel`."""
        return self.model(sequences, wanted)


def ask(teacher: Any, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
    """What a teacher says about a batch in its own tokens; one whose members are chosen by record is told them."""
    told = (batch.records,) if getattr(teacher, "routed", False) else ()
    return teacher(batch.teacher, wanted, *told)
