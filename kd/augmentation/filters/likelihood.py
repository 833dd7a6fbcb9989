"""The likelihood of a record's responses under a model, for the filters that read it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from kd.data.sequences import Encoder
from kd.evaluation.reading import device_of
from kd.progress import phase
from kd.teachers.interface import Teacher
from kd.types import Batch, Message, Record

NO_QUESTION: tuple[Message, ...] = ({"role": "user", "content": ""},)
MAX_TOKENS = 4096  # of a micro-batch


class Likelihood(NamedTuple):
    """The negative log-likelihood of a record's responses in nats, and the number of their tokens, end tokens included.

    Both are summed over the responses.
    """

    nll: float
    tokens: int


def likelihoods(
    model: Teacher, records: Sequence[Record], *, max_length: int | None, questions: bool = True
) -> list[Likelihood | None]:
    """The likelihood of each record's responses; None of a record without any, or with one that does not fit whole.

    Args:
        model: provides log-probabilities, in its own tokens.
        max_length: tokens of prompt and response together; None: without limit.
        questions: whether the responses are read after their prompts; else after an empty message, which leaves the
            model's template as it is.
    """
    assert model.tokenizer is not None  # of ids that log-probabilities are of
    encoder = Encoder(model.tokenizer, None, max_length=max_length or 2**31, max_tokens=MAX_TOKENS)
    given = records if questions else [replace(r, prompt=NO_QUESTION, images=()) for r in records]
    single = [(i, replace(r, responses=(response,))) for i, r in enumerate(given) for response in r.responses]
    places = {id(record): i for i, record in single}  # ids of records may occur twice
    found: list[Likelihood | None] = [Likelihood(0.0, 0) if record.responses else None for record in given]
    for i, record in single:
        rows = encoder.encode(record)
        if rows is None or rows[0].truncated:
            found[i] = None
    kept = [record for i, record in single if found[i] is not None]
    with phase(f"score ({model.charged_to})", len(kept), "responses") as shown:
        for batch in encoder.batches(kept):
            for record, nll, tokens in zip(batch.records, *_read(model, batch), strict=True):
                before = found[i := places[id(record)]]
                assert before is not None
                found[i] = Likelihood(before.nll + nll, before.tokens + tokens)
            shown.advance(len(batch.records))
    return found


@torch.no_grad()
def _read(model: Teacher, batch: Batch) -> tuple[list[float], list[int]]:
    """The negative log-likelihood and the number of tokens of each response of a batch."""
    device = None if model.system is None else device_of(model.system)
    logprobs = model.read(batch, frozenset({"logprobs"}), device).logprobs
    assert logprobs is not None
    mask = batch.teacher.mask
    values = torch.where(mask, logprobs.cpu().double(), 0.0).sum(-1)
    return (-values).tolist(), mask.sum(-1).tolist()
