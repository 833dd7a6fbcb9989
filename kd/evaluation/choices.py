"""The likelihood of a record's choices under a model, after its prompt and after an empty one."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from transformers import PreTrainedTokenizerBase

from kd.data.images import PLACE, seen, view_of
from kd.data.sequences import Encoder, answer_ids, prompt_ids
from kd.evaluation.cache import Part
from kd.evaluation.likelihood import nlls
from kd.generators.account import Row
from kd.generators.continuations import branch_logprobs, continuation_logprobs
from kd.models.language_model import LanguageModel
from kd.skills.answer_metrics import Evidence
from kd.teachers.ensemble import Ensemble
from kd.types import Record, Written

SHORT = 16  # tokens of the longest choice up to which a model that cannot branch reads a prompt once; beyond, whole
# sequences are faster
TOGETHER = 256  # records of a part

Choice = tuple[Record, Sequence[int], list[tuple[int, ...]]]  # a record, its prompt and its choices, in ids


def encoded_choices(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[Choice]:
    """The records' prompts and choices in a tokenizer's ids, the choices without an end token.

    Raises:
        ValueError: a record has no choices, or one of no token.
    """
    found = list[Choice]()
    for record in records:
        choices = [tuple(answer_ids(record, c, tokenizer, ended=False)) for c in Evidence(record).choices]
        if not all(choices):
            raise ValueError(f"record {record.id} of {record.skill} has an empty choice; leave it out")
        found.append((record, prompt_ids(record, tokenizer), choices))
    return found


def without_question(record: Record) -> Record:
    """The record with an empty text, after its images, as the last message of its prompt."""
    *before, last = record.prompt
    images = PLACE * last["content"].count(PLACE) if record.images else ""
    return replace(record, prompt=(*before, {**last, "content": images}))


def score_choices(
    model: LanguageModel | Ensemble,
    items: Sequence[Choice],
    *,
    batch_size: int,
    max_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """One row for each item: id, and logprobs, the summed log-likelihood of each choice's tokens in nats.

    Args:
        batch_size: choices that are read at a time, token by token, by a model whose rows cannot branch.
        max_tokens: of a micro-batch.
        progress: called with the number of items just finished.
    """
    prompts, choices = [prompt for _, prompt, _ in items], [choices for *_, choices in items]
    if isinstance(model, LanguageModel) and model.packs:
        found = branch_logprobs(model, prompts, choices, max_tokens=max_tokens, progress=progress)
    elif isinstance(model, LanguageModel) and _short(items):
        found = continuation_logprobs(model, prompts, choices, batch_size=batch_size, progress=progress)
    else:
        found = _of_sequences(model, items, max_tokens)
        if progress is not None:
            progress(len(items))
    return pd.DataFrame({"id": [record.id for record, *_ in items], "logprobs": found})


def choice_parts(items: Sequence[Choice], *, identity: str, batch_size: int, max_tokens: int) -> list[Part]:
    """What `score_choices` does for items, in parts of TOGETHER at most.

    identity: the model's, with its precision.
    """
    parts = []
    for start in range(0, len(items), TOGETHER):
        some = items[start : start + TOGETHER]
        listed = [[one.id, prompt, ids, *seen(view_of(prompt))] for one, prompt, ids in some]
        score = partial(score_choices, items=some, batch_size=batch_size, max_tokens=max_tokens)
        parts.append(Part({"system": identity, "choices": listed}, len(some), score))
    return parts


def tokens_read(model: LanguageModel | Ensemble, items: Sequence[Choice]) -> int:
    """The tokens that each network of `score_choices` reads, padding aside: a prompt once for all its choices, or, by
    whole sequences, with each of them; and the choices but for their last token."""
    once = isinstance(model, LanguageModel) and (model.packs or _short(items))
    lengths = [(len(prompt), [len(ids) for ids in choices]) for _, prompt, choices in items]
    rows = [Row(n, tuple(group)) for n, every in lengths for group in ([every] if once else [[one] for one in every])]
    return sum(row.tokens for row in rows)


def _short(items: Sequence[Choice]) -> bool:
    return max((len(ids) for *_, choices in items for ids in choices), default=0) <= SHORT


def _of_sequences(model: LanguageModel | Ensemble, items: Sequence[Choice], max_tokens: int) -> list[list[float]]:
    """The same by whole sequences of prompt and choice."""
    encoder = Encoder(model.tokenizer, None, max_length=sys.maxsize, max_tokens=max_tokens)
    rows = [
        (replace(record, id=f"{i} {j}"), [Written(ids, "reference", truncated=True)])
        for i, (record, _, choices) in enumerate(items)
        for j, ids in enumerate(choices)
    ]
    found = nlls(model, encoder.written([record for record, _ in rows], [written for _, written in rows]))
    return [[-found[f"{i} {j}"] for j in range(len(choices))] for i, (*_, choices) in enumerate(items)]
