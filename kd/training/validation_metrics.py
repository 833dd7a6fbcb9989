"""Metrics of the validation split while a run trains."""

import math
from typing import Any

import torch
from torch import Tensor

from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import label_logprobs
from kd.models.language_model import LanguageModel
from kd.objectives.divergence import kl, log_probs
from kd.types import Batch

LOGITS = frozenset({"logits"})


@torch.no_grad()
def sums(batch: Batch, student: LanguageModel, teacher: Any, alignment: Any) -> Tensor:
    """`[6]`, float64: nats of the references; KL(teacher || student) and KL(student || teacher); rows compared; bytes;
    rows.

    The batch is one of whole references (`kd.data.references`), or bytes would be counted that were not read.
    `teacher` is one whose full logits are available, or None: then nothing is compared.
    """
    mask, labels = batch.student.mask, batch.student.labels[batch.student.mask]
    logits = student(batch.student, LOGITS).logits
    theirs = alignment(teacher.read(batch, LOGITS), batch) if teacher else None
    aligned_mask = None if theirs is None else theirs.aligned_mask
    nll, divergences = 0.0, [0.0, 0.0]
    for piece in slices(int(mask.sum()), CHUNK):
        own = logits.rows(piece)
        nll -= label_logprobs(own, labels[piece]).sum().item()
        if theirs is not None:
            q, p = log_probs(own), log_probs(theirs.logits.rows(piece))
            for i, apart in enumerate((kl(p, q), kl(q, p))):
                divergences[i] += (apart if aligned_mask is None else apart[aligned_mask[piece]]).sum().item()
    texts = (response.text for record in batch.records for response in record.responses)
    size = sum(len(text.encode()) for text in texts)
    compared = mask.sum() if aligned_mask is None else aligned_mask.sum()
    rows = mask.sum().item()
    return torch.tensor([nll, *divergences, compared.item(), size, rows], dtype=torch.float64)


def metrics(sums: Tensor, *, compared: bool) -> dict[str, float]:
    """Bits per byte, nats per token (`nll`), and KL(teacher || student) and its reverse in nats per token."""
    nll, forward, reverse, pairs, size, rows = sums.tolist()
    values = {"bits_per_byte": nll / max(size, 1) / math.log(2), "nll": nll / max(rows, 1)}
    distances = {"forward_kl": forward / max(pairs, 1), "reverse_kl": reverse / max(pairs, 1)}
    return values | (distances if compared else {})
