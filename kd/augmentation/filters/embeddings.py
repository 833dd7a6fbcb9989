"""Records as unit vectors, and choices among them by distance."""

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np
import torch

from kd.augmentation.filters import conversation
from kd.data.references import prompted
from kd.data.sequences import Encoder
from kd.evaluation.reading import device_of
from kd.metrics.words import rouge_tokens
from kd.progress import phase
from kd.teachers.interface import Teacher
from kd.types import Record

WIDTH = 1024  # of an n-gram vector
NGRAMS = (1, 2)  # words
MAX_TOKENS = 4096  # of a micro-batch


def ngram_vectors(records: Sequence[Record]) -> np.ndarray:
    """`[n D]`, of length 1: the words and pairs of words of prompt and first response, hashed with signs.

    Signed hashing (Weinberger et al. 2009, arXiv 0902.2206) leaves inner products as they are on average. A record
    without words has the zero vector, at distance 1 of all.
    """
    vectors = np.zeros((len(records), WIDTH), dtype=np.float32)
    for vector, record in zip(vectors, records, strict=True):
        response = record.responses[0].text if record.responses else ""
        words = rouge_tokens(f"{conversation(record)}\n{response}")
        for n in NGRAMS:
            for gram in zip(*(words[i:] for i in range(n)), strict=False):
                code = crc32(" ".join(gram).encode("utf-8", "surrogatepass"))
                vector[code % WIDTH] += 1.0 if code & 2**31 else -1.0
    return unit(vectors)


@torch.no_grad()
def hidden_vectors(model: Teacher, records: Sequence[Record], *, max_length: int | None) -> np.ndarray:
    """`[n D]`, of length 1: the mean of a model's last hidden states over prompt and first response.

    A longer one is truncated at `max_length` tokens; one of which the prompt leaves no room has the zero vector.
    """
    assert model.tokenizer is not None  # of a model with hidden states
    encoder = Encoder(model.tokenizer, None, max_length=max_length or 2**31, max_tokens=MAX_TOKENS)
    single = [prompted(replace(record, responses=record.responses[:1])) for record in records]
    places = {id(record): i for i, record in enumerate(single)}  # ids of records may occur twice
    device = None if model.system is None else device_of(model.system)
    rows = dict[int, np.ndarray]()
    with phase(f"read ({model.charged_to})", len(single), "records") as shown:
        for batch in encoder.batches(single):
            hidden = model.read(batch, frozenset({"hidden"}), device).hidden
            assert hidden is not None
            real = batch.teacher.real
            states = torch.where(real[..., None], hidden[-1].cpu().float(), 0.0).sum(1) / real.sum(1)[:, None]
            rows |= {places[id(r)]: state.numpy() for r, state in zip(batch.records, states, strict=True)}
            shown.advance(len(batch.records))
    width = len(next(iter(rows.values()), np.zeros(1)))
    return unit(np.stack([rows.get(i, np.zeros(width, np.float32)) for i in range(len(records))]))


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors `[n D]` at length 1; zero ones stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def k_centers(vectors: np.ndarray, count: int) -> list[int]:
    """The places of `count` vectors so that every other is near one of them, greedily: each next is the farthest.

    K-center greedy (Sener and Savarese 2018, arXiv 1708.00489, algorithm 1), from the first vector, by cosine distance;
    of equally far ones the first.
    """
    chosen = [0] if len(vectors) and count > 0 else []
    nearest = np.full(len(vectors), np.inf, dtype=np.float64)
    while chosen and len(chosen) < min(count, len(vectors)):
        nearest = np.minimum(nearest, 1.0 - vectors @ vectors[chosen[-1]])
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    return chosen


def apart(vectors: np.ndarray, order: Sequence[int], *, similarity: float, count: int) -> list[int]:
    """The first `count` places in an order of which each has a cosine similarity below a bound with all before it.

    The representation filter of DEITA (arXiv 2312.15685).
    """
    chosen = list[int]()
    for i in order:
        if len(chosen) == count:
            break
        if not chosen or float((vectors[chosen] @ vectors[i]).max()) < similarity:
            chosen.append(i)
    return chosen
