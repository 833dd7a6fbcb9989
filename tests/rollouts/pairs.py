"""What student and teacher say at each label of a batch, from whole sequences and without a cache."""

import torch
from torch import Tensor

from kd.kernels.logits import label_logprobs
from kd.models.language_model import LanguageModel
from kd.types import Batch, Sequences

LOGITS = frozenset({"logits"})


def at_labels(model: LanguageModel, sequences: Sequences) -> Tensor:
    """`[n V]`: log-probabilities at the loss rows, at temperature 1."""
    with torch.no_grad():
        logits = model.eval()(sequences, LOGITS).logits
        return logits.rows(slice(0, logits.n)).log_softmax(-1)


def of_labels(logprobs: Tensor, batch: Batch) -> Tensor:
    """`[n]`: those of the labels themselves."""
    return label_logprobs(logprobs, batch.student.labels[batch.student.mask])


class Meter:
    """Counts the tokens that a network reads, as its embedding meets them."""

    def __init__(self, model: LanguageModel):
        self.tokens = 0
        model.network.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, _: object, inputs: tuple[Tensor, ...], __: object) -> None:
        self.tokens += inputs[0].numel()
