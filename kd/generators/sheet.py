"""The responses of a batch while they are generated."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd.types import Source, Written


class Sheet:
    """One line for each response. Each row of the batch continues a line; one that has ended, or not begun, has no row.

    Args:
        lines: number of responses.
        length: tokens that a response has at most.
        ends: ids that end a response.
    """

    def __init__(self, lines: int, length: int, ends: Int[Tensor, " e"]):
        device = ends.device
        self.ends = ends
        self.ids = torch.zeros(lines, length, dtype=torch.long, device=device)
        self.behaviour, self.old = torch.zeros(2, lines, length, dtype=torch.float32, device=device)
        self.lengths = torch.zeros(lines, dtype=torch.long, device=device)
        self.ended = torch.zeros(lines, dtype=torch.bool, device=device)
        self.line = torch.zeros(0, dtype=torch.long, device=device)  # of each row

    def add(self, lines: Int[Tensor, " n"]) -> None:
        """Appends rows, which begin these lines."""
        self.line = torch.cat([self.line, lines.to(self.line)])

    def put(self, ids: Int[Tensor, " b"], behaviour: Float[Tensor, " b"], old: Float[Tensor, " b"]) -> Tensor:
        """Adds the next token of each row, and returns the unfinished rows in their new order."""
        place = self.lengths[self.line]
        self.ids[self.line, place] = ids
        self.behaviour[self.line, place], self.old[self.line, place] = behaviour.float(), old.float()
        self.lengths[self.line] = place + 1
        ended = torch.isin(ids, self.ends)
        self.ended[self.line] = ended
        going = filled_up(~ended & (place + 1 < self.ids.shape[1]))
        if len(going) < len(ids):
            self.line = self.line[going]
        return going

    def responses(self, source: Source) -> list[Written]:
        """All responses, in the order of the lines."""
        ids, lengths, ended = self.ids.tolist(), self.lengths.tolist(), self.ended.tolist()
        behaviour, old = self.behaviour.cpu(), self.old.cpu()
        return [
            Written(tuple(ids[i][:n]), source, behaviour[i, :n].clone(), old[i, :n].clone(), truncated=not ended[i])
            for i, n in enumerate(lengths)
        ]


def filled_up(going: Bool[Tensor, " b"]) -> Int[Tensor, " c"]:
    """The unfinished rows: the last ones move to the places of finished rows, and all others keep theirs."""
    rows = going.nonzero()[:, 0]
    count = len(rows)
    kept = torch.arange(count, device=going.device)
    kept[~going[:count]] = rows[rows >= count]
    return kept
