"""A model's log-probabilities of responses that another engine has generated with its weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.data.images import view_of
from kd.data.sequences import Encoded, collate, pad_id
from kd.eval_mode import eval_mode
from kd.generators.sampling import Sampled, logprobs_of, nucleus
from kd.generators.settings import Decoding
from kd.kernels.chunks import CHUNK
from kd.models.language_model import LanguageModel
from kd.types import Written


class Reading(NamedTuple):
    """The log-probabilities of a response's ids, on the CPU, in float32."""

    own: Float[Tensor, " L"]  # at temperature 1, of all ids: a response's `old_logprobs`
    drawn: Float[Tensor, " L"]  # under the distribution that they were to be drawn from; for greedy, as `own`


def read_responses(
    model: LanguageModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    sampled: Sampled,
    *,
    batch_size: int,
) -> list[Reading]:
    """One forward pass over each prompt with its response, in the order of `pairs`; no dropout, no gradient."""
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    found: dict[int, Reading] = {}
    with eval_mode([model.network]):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            found |= dict(zip(places, _read(model, [pairs[i] for i in places], sampled), strict=True))
    return [found[i] for i in range(len(pairs))]


def reread(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    begun: Sequence[Sequence[Written]],
    decoding: Decoding,
) -> tuple[list[list[Written]], list[Reading]]:
    """Responses with the model's own log-probabilities of now as `old_logprobs`, and the readings, in their order."""
    pairs = [(prompt, one.ids) for prompt, group in zip(prompts, begun, strict=True) for one in group]
    readings = read_responses(model, pairs, decoding.sampled, batch_size=decoding.batch_size)
    scores = iter(readings)
    return [[replace(one, old_logprobs=next(scores).own) for one in group] for group in begun], readings


def _read(
    model: LanguageModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], sampled: Sampled
) -> list[Reading]:
    rows = [Encoded((*prompt, *response), len(prompt), view=view_of(prompt)) for prompt, response in pairs]
    sequences = collate(rows, pad_id(model.tokenizer)).to(model.network.device)
    labels = sequences.labels[sequences.mask]
    logits = model(sequences, frozenset({"logits"})).logits
    pieces = [slice(start, start + CHUNK) for start in range(0, len(labels), CHUNK)]
    scores = [_of_ids(logits.rows(piece), labels[piece], sampled) for piece in pieces]
    lengths = [len(response) for _, response in pairs]
    own, drawn = (torch.cat(parts).float().cpu().split(lengths) for parts in zip(*scores, strict=True))
    return [Reading(*both) for both in zip(own, drawn, strict=True)]


def _of_ids(logits: Float[Tensor, "c V"], ids: Int[Tensor, " c"], sampled: Sampled) -> tuple[Tensor, Tensor]:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = logprobs_of(wide, ids)
    if sampled.temperature == 0 or sampled.untempered:
        return own, own
    tempered = (wide / sampled.temperature).log_softmax(-1)
    drawn = tempered.gather(-1, ids[:, None])[:, 0]
    if sampled.top_p < 1:  # two engines may differ in the ids at the nucleus' edge: those get no probability of 0
        drawn = drawn - nucleus(tempered, sampled.top_p)[0].logsumexp(-1)
    return own, drawn
