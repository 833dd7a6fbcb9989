"""The log-probabilities of given continuations of prompts: each prompt is read once for all of its continuations."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kd.eval_mode import eval_mode
from kd.generators.decoding import Decoder
from kd.generators.generation import openers
from kd.models.language_model import LanguageModel

Ids = Sequence[int]


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
