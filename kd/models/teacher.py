"""How deep a teacher can be read."""

from torch import nn

from kd.models.language_model import LanguageModel
from kd.types import ModelOutput, Sequences


class WhiteBox(nn.Module):
    """All of a model: logits, log-probabilities, hidden states. Frozen, in eval mode, and it stays so."""

    provides = LanguageModel.provides

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "WhiteBox":
        """Refuses train mode: a teacher has no dropout, whatever its student does."""
        return super().train(False)

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        """See `LanguageModel`."""
        return self.model(sequences, wanted)
