"""Between the library's `generate` and the model: what it says, and what its words are chosen from."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, SequenceBiasLogitsProcessor

from kd.generators.generation import DIVERGED
from kd.generators.sampling import logprobs_of

READS_TEXT = (NoRepeatNGramLogitsProcessor, SequenceBiasLogitsProcessor)  # and takes padding for a part of it


class Watched:
    """The library's processors, and on either side of them what the model says and what its words are chosen from.

    Only log-probabilities of chosen ids are kept: all logits of all steps, as the library would return them, take
    gigabytes.
    """

    def __init__(self, vocabulary: int, width: int, ends: Tensor, beams: int, padding: Int[Tensor, " b"]):
        self.vocabulary, self.width, self.ends, self.beams, self.padding = vocabulary, width, ends, beams, padding
        self.processors: Any = LogitsProcessorList()
        self.steps = 0
        self._open: tuple[Tensor, Tensor] | None = None  # what was said, and made of it; an id is being chosen
        self._own: list[Tensor] = []
        self._drawn: list[Tensor] = []

    def unpadded(self, processors: Sequence[LogitsProcessor]) -> LogitsProcessorList:
        """The same, none of which sees padding."""
        padded = bool(self.padding.any())
        return LogitsProcessorList(
            [_Unpadded(one, self.padding) if padded and isinstance(one, READS_TEXT) else one for one in processors]
        )

    def __call__(self, ids: Int[Tensor, "b s"], scores: Float[Tensor, "b V"]) -> Float[Tensor, "b V"]:
        """What is chosen from."""
        if self.beams == 1:
            self._settle(ids[:, -1])
        said = self._known(scores)
        made = self.processors(ids, said)
        self._check(ids, said, made)
        self._open, self.steps = (said, made), self.steps + 1
        return made

    def told(self, ids: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
        """Log-probabilities of the ids, when all are chosen: the model's own, and of what they were drawn from.

        The library may have taken back the last ones, of which nothing is told.
        """
        length = ids.shape[1]
        self._settle(ids[:, -1])
        own, drawn = (torch.stack(parts[:length], dim=1).cpu() for parts in (self._own, self._drawn))
        return own, drawn

    def _settle(self, ids: Int[Tensor, " b"]) -> None:
        if self._open is not None:
            said, made = self._open
            self._own.append(logprobs_of(said, ids))
            self._drawn.append(logprobs_of(made, ids))
        self._open = None

    def _known(self, scores: Float[Tensor, "b V"]) -> Float[Tensor, "b V"]:
        """Nothing for ids beyond the tokenizer's; a search, which adds up log-probabilities, gets such."""
        if scores.shape[-1] == self.vocabulary:
            return scores
        known = scores.clone()
        known[:, self.vocabulary :] = -torch.inf
        return known if self.beams == 1 else known.log_softmax(-1)

    def _check(self, ids: Tensor, said: Tensor, made: Tensor) -> None:
        """What is drawn from nothing, or from NaN, would be garbage; a GPU would end the process."""
        lost = ~made.amax(-1).isfinite()
        if self.beams > 1:
            lost = lost.view(-1, self.beams).all(-1).repeat_interleave(self.beams)
        else:
            lost &= ~torch.isin(ids[:, self.width :], self.ends).any(-1)  # finished rows are dragged along
        if not lost.any():
            return
        if said[lost].isnan().any():
            raise FloatingPointError(DIVERGED)
        raise ValueError(
            f"generator.options leave no id to be written after {ids.shape[1] - self.width} tokens; let them ban less"
        )


class _Unpadded(LogitsProcessor):
    """A processor that is shown each row from the start of its prompt."""

    def __init__(self, processor: LogitsProcessor, padding: Int[Tensor, " b"]):
        self.processor, self.padding = processor, padding

    def __call__(self, input_ids: Int[Tensor, "b s"], scores: Float[Tensor, "b V"]) -> Float[Tensor, "b V"]:
        """The rows of one padding together."""
        made = torch.empty_like(scores)
        for missing in self.padding.unique().tolist():
            rows = (self.padding == missing).nonzero()[:, 0].to(scores.device)
            made[rows] = self.processor(input_ids[rows, missing:], scores[rows])
        return made
