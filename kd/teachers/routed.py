"""Several teachers, each of which reads the records of its own domain."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from kd.teachers.ensemble import Ensemble, member_of
from kd.teachers.white_box import WhiteBox
from kd.types import Batch, ModelOutput, Record


class Routed(Ensemble):
    """Teachers of one tokenizer, one for each domain; every record is read by its own alone.

    Multi-teacher on-policy distillation (MOPD, arXiv 2606.30406): the experts of several domains teach one student on
    its own responses. A record's domain is its meta's `key`, else its skill, and is the name of a member. The share of
    tokens that each member reads is logged as `teacher_share/NAME`.

    Args:
        members: by domain, each as a file of conf/teacher describes it.
        key: the key of a record's `meta` that names its member; a record without it has that of its skill's name.
        combine: how members are combined; records choose theirs.

    Raises:
        ValueError: fewer than two members, or tokenizers that differ; with the record's name, one that names no member.
    """

    def __init__(self, *, members: Mapping[str, WhiteBox], key: str = "teacher", combine: Literal["routed"] = "routed"):
        super().__init__(members=members, combine=combine)
        self.key = key
        self._read = dict.fromkeys(self.names, 0.0)  # tokens, since the last report

    def output(self, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
        """See `Ensemble`; also counts the tokens of each member."""
        for k, tokens in zip(self.owners(batch).tolist(), batch.teacher.lengths.tolist(), strict=True):
            self._read[self.names[k]] += tokens
        return super().output(batch, wanted)

    @property
    def domains(self) -> Sequence[str]:
        """The names of the members."""
        return self.names

    def owners(self, batch: Batch) -> Tensor:
        """The number of the member that reads each sequence, `[B]`."""
        chosen = torch.tensor([self.chosen(record) for record in batch.records], dtype=torch.int64)
        return chosen.repeat_interleave(batch.group_size)

    def chosen(self, record: Record) -> int:
        """The number of the member of the record's domain."""
        return member_of(record, self.names, self.key)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The share of tokens that each member has read."""
        read, self._read = self._read, dict.fromkeys(self.names, 0.0)
        total = sum(read.values())
        return {f"teacher_share/{name}": (tokens, total) for name, tokens in read.items()}
