"""The log-probabilities of given continuations of prompts: each prompt is read once for all of its continuations."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd.data.sequences import micro_batches
from kd.eval_mode import eval_mode
from kd.generators.decoding import Decoder
from kd.generators.generation import openers
from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import Logits
from kd.models.language_model import LanguageModel
from kd.types import Sequences

Ids = Sequence[int]


class _Row(NamedTuple):
    """A prompt and all of its continuations but for their last tokens, as one text that branches after the prompt.

    branches: 0 in the prompt, k in its k-th continuation. places, ids, owners: of each token of each continuation, the
        place in the row that predicts it, its id, and the number of its continuation.
    """

    tokens: list[int]
    branches: list[int]
    places: list[int]
    ids: list[int]
    owners: list[int]

    @classmethod
    def of(cls, prompt: Ids, continuations: Sequence[Ids]) -> "_Row":
        row = cls([*prompt], [0] * len(prompt), [], [], [])
        for k, ids in enumerate(continuations):
            start, following = len(row.tokens), len(ids) - 1
            row.tokens.extend(ids[:-1])
            row.branches.extend([k + 1] * following)
            row.places.extend([len(prompt) - 1, *range(start, start + following)])
            row.ids.extend(ids)
            row.owners.extend([k] * len(ids))
        return row


def branch_logprobs(
    model: LanguageModel,
    prompts: Sequence[Ids],
    continuations: Sequence[Sequence[Ids]],
    *,
    max_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """The same as `continuation_logprobs` in one forward pass, of any lengths, for a model that `packs`.

    Args:
        max_tokens: of prompts and continuations that are read at a time.
    """
    rows = [_Row.of(prompt, several) for prompt, several in zip(prompts, continuations, strict=True)]
    found: dict[int, list[float]] = {}
    with eval_mode([model.network]):
        for group in micro_batches([len(row.tokens) for row in rows], max_tokens, max_padding=1.0):
            sums = _branch_sums(model, [rows[i] for i in group], [len(continuations[i]) for i in group])
            found |= dict(zip(group, sums, strict=True))
            if progress is not None:
                progress(len(group))
    return [found[i] for i in range(len(rows))]


def _branch_sums(model: LanguageModel, rows: Sequence[_Row], counts: Sequence[int]) -> list[list[float]]:
    """The summed log-probability of each of the `counts[i]` continuations in row i."""
    tokens = pad_sequence([torch.tensor(row.tokens) for row in rows], batch_first=True)
    branches = pad_sequence([torch.tensor(row.branches) for row in rows], batch_first=True, padding_value=-1)
    width = tokens.shape[1]
    flat = torch.tensor([i * width + place for i, row in enumerate(rows) for place in row.places])
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    mask.view(-1)[flat] = True
    lengths = torch.tensor([len(row.tokens) for row in rows])
    sequences = Sequences(tokens, tokens, mask, lengths).to(model.network.device)
    predicting = mask.view(-1).cumsum(0)[flat] - 1  # the loss row that predicts each token
    ids = torch.tensor([token for row in rows for token in row.ids])
    values = _logprobs_at(model.read_branches(sequences, branches), predicting, ids)
    starts = [sum(counts[:i]) for i in range(len(rows))]
    owners = torch.tensor([start + k for start, row in zip(starts, rows, strict=True) for k in row.owners])
    sums = torch.zeros(sum(counts), dtype=torch.float64).index_add(0, owners, values).tolist()
    return [sums[start : start + count] for start, count in zip(starts, counts, strict=True)]


def _logprobs_at(logits: Logits, rows: Int[Tensor, " m"], ids: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """log softmax(logits[rows])[ids] in float64; logits exist for a chunk of rows at a time."""
    values = torch.empty(len(rows), dtype=torch.float64)
    for piece in slices(logits.n, CHUNK):
        z = logits.rows(piece)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        here = ((rows >= piece.start) & (rows < piece.stop)).nonzero()[:, 0]
        row, column = (rows[here] - piece.start).to(z.device), ids[here].to(z.device)
        values[here] = (z[row, column] - z.logsumexp(-1)[row]).double().cpu()
    return values


def continuation_logprobs(
    model: LanguageModel,
    prompts: Sequence[Ids],
    continuations: Sequence[Sequence[Ids]],
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """log p(continuation | prompt) in nats, summed over its tokens: outer the prompts, inner their continuations.

    All continuations of a prompt are read token by token from the states of the one prompt, so they should be short.

    Args:
        batch_size: continuations that are read at a time; more where one prompt has more.
        progress: called with the number of prompts just finished.
    """
    found: dict[int, list[float]] = {}
    longest = max((len(ids) for several in continuations for ids in several), default=0)
    with eval_mode([model.network]):
        groups = list(_groups(prompts, continuations, batch_size))
        opened = openers([model], steps=len(groups) * longest)[0]
        for group in groups:
            decoder = opened(room=max(len(prompts[i]) for i in group) + longest)
            rows = [ids for i in group for ids in continuations[i]]
            logits = decoder.start([prompts[i] for i in group])
            owner = torch.tensor([k for k, i in enumerate(group) for _ in continuations[i]], device=logits.device)
            decoder.keep(owner)
            sums = iter(_sums(decoder, logits[owner], rows).tolist())
            found |= {i: [next(sums) for _ in continuations[i]] for i in group}
            if progress is not None:
                progress(len(group))
    return [found[i] for i in range(len(prompts))]


def _groups(prompts: Sequence[Ids], continuations: Sequence[Sequence[Ids]], batch_size: int) -> Iterator[list[int]]:
    """Prompts of similar length, longest first, with `batch_size` continuations in all."""
    group: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        if group and sum(len(continuations[j]) for j in (*group, i)) > batch_size:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _sums(decoder: Decoder, logits: Float[Tensor, "b V"], rows: Sequence[Ids]) -> Float[Tensor, " b"]:
    """The summed log-probability of each row. logits: of the token after its prompt."""
    device = logits.device
    lengths = torch.tensor([len(ids) for ids in rows], device=device)
    longest = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    sums = torch.zeros(len(rows), dtype=torch.float64)
    line = torch.arange(len(rows), device=device)  # that each row of the decoder reads
    for place in range(longest):
        following = ids[line, place]
        logprobs = logits.log_softmax(-1).gather(-1, following[:, None])[:, 0]
        sums[line.cpu()] += logprobs.double().cpu()
        going = (lengths[line] > place + 1).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(line):
            decoder.keep(going)
            line, following = line[going], following[going]
        logits = decoder.step(following)
    return sums
