"""Log-probabilities within the library's `generate`: the model's own, and those that its tokens are chosen from."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, SequenceBiasLogitsProcessor

from kd.generators.generation import DIVERGED
from kd.generators.sampling import logprobs_of

READS_TEXT = (NoRepeatNGramLogitsProcessor, SequenceBiasLogitsProcessor)  # and would treat padding as a part of it


class RecordingProcessors:
    """The library's processors, with the log-probabilities before them (the model's) and after them (chosen from).

    Only log-probabilities of chosen ids are kept: all logits of all steps, as the library would return them, take
    gigabytes.
    """

    def __init__(self, vocabulary: int, width: int, ends: Tensor, beams: int, padding: Int[Tensor, " b"]):
        self.vocabulary, self.width, self.ends, self.beams, self.padding = vocabulary, width, ends, beams, padding
        self.processors: Any = LogitsProcessorList()
        self.steps = 0
        self._open: tuple[Tensor, Tensor] | None = None  # logits and processed ones, while an id is chosen
        self._own: list[Tensor] = []
        self._drawn: list[Tensor] = []

    def unpadded(self, processors: Sequence[LogitsProcessor]) -> LogitsProcessorList:
        """The same processors, none of which reads padding."""
        padded = bool(self.padding.any())
        return LogitsProcessorList(
            [_Unpadded(one, self.padding) if padded and isinstance(one, READS_TEXT) else one for one in processors]
        )

    def __call__(self, ids: Int[Tensor, "b s"], scores: Float[Tensor, "b V"]) -> Float[Tensor, "b V"]:
        """The processed logits, which the next ids are chosen from."""
        if self.beams == 1:
            self._settle(ids[:, -1])
        logits = self._known(scores)
        processed = self.processors(ids, logits)
        self._check(ids, logits, processed)
        self._open, self.steps = (logits, processed), self.steps + 1
        return processed

    def logprobs(self, ids: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
        """Log-probabilities of the ids after the last step: the model's own, and those they were drawn with.

        The library may have removed the last ones, which are left out.
        """
        length = ids.shape[1]
        self._settle(ids[:, -1])
        own, drawn = (torch.stack(parts[:length], dim=1).cpu() for parts in (self._own, self._drawn))
        return own, drawn

    def _settle(self, ids: Int[Tensor, " b"]) -> None:
        if self._open is not None:
            logits, processed = self._open
            self._own.append(logprobs_of(logits, ids))
            self._drawn.append(logprobs_of(processed, ids))
        self._open = None

    def _known(self, scores: Float[Tensor, "b V"]) -> Float[Tensor, "b V"]:
        """-inf for ids beyond the tokenizer's; log-probabilities for a search, which adds them up."""
        if scores.shape[-1] == self.vocabulary:
            return scores
        known = scores.clone()
        known[:, self.vocabulary :] = -torch.inf
        return known if self.beams == 1 else known.log_softmax(-1)

    def _check(self, ids: Tensor, logits: Tensor, processed: Tensor) -> None:
        """Raises an error for rows without an id to draw, or with NaN: their text would be garbage, and a GPU fails."""
        lost = ~processed.amax(-1).isfinite()
        if self.beams > 1:
            lost = lost.view(-1, self.beams).all(-1).repeat_interleave(self.beams)
        else:
            lost &= ~torch.isin(ids[:, self.width :], self.ends).any(-1)  # finished rows stay in the batch
        if not lost.any():
            return
        if logits[lost].isnan().any():
            raise FloatingPointError(DIVERGED)
        raise ValueError(
            f"generator.options leave no id to be written after {ids.shape[1] - self.width} tokens; let them ban less"
        )


class _Unpadded(LogitsProcessor):
    """A processor that reads each row from the start of its prompt."""

    def __init__(self, processor: LogitsProcessor, padding: Int[Tensor, " b"]):
        self.processor, self.padding = processor, padding

    def __call__(self, input_ids: Int[Tensor, "b s"], scores: Float[Tensor, "b V"]) -> Float[Tensor, "b V"]:
        """The processor's scores, computed for the rows of one padding together."""
        processed = torch.empty_like(scores)
        for missing in self.padding.unique().tolist():
            rows = (self.padding == missing).nonzero()[:, 0].to(scores.device)
            processed[rows] = self.processor(input_ids[rows, missing:], scores[rows])
        return processed
