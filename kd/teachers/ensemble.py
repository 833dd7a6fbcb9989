"""Several teachers combined into one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kd.data.sequences import Encoder, same_text
from kd.kernels.chunks import CHUNK, slices
from kd.kernels.combined import MeanLogits, RoutedLogits
from kd.kernels.logits import Logits, label_logprobs
from kd.models.language_model import LanguageModel
from kd.teachers.interface import Teacher
from kd.teachers.white_box import WhiteBox
from kd.types import Batch, ModelOutput, Record, Sequences

Combine = Literal["mean_logits", "mean_probabilities", "routed"]


class Ensemble(nn.Module, Teacher):
    """Teachers of one tokenizer with the interface of one teacher; it provides a distribution and no text.

    A term's temperature is applied to the combined distribution, softmax(z / T) of the combined z, and not to each
    member's before.

    Args:
        members: by name, each as a file of conf/teacher describes it.
        combine: mean_logits: the weighted mean of their logits (their distributions' normalised geometric mean);
            mean_probabilities: of their distributions (the mixture);
            routed: every record by the member that its `meta` names as `teacher`.
        weights: by name, divided by their sum; None: equal ones. Routed records have none.

    Raises:
        ValueError: fewer than two members; tokenizers that differ; weights for other names, or for routed members.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits", "logprobs"})

    def __init__(
        self,
        *,
        members: Mapping[str, WhiteBox],
        combine: Combine,
        weights: Mapping[str, PositiveFloat | PositiveInt] | None = None,
    ):
        super().__init__()
        _check_members(members)
        _check_weights(members, combine, weights)
        self.members = nn.ModuleDict(dict(members))
        self.parts: dict[str, LanguageModel] = {name: member.model for name, member in members.items()}
        self.names, self.combine = list(members), combine
        given = [1.0 if weights is None else float(weights[name]) for name in self.names]
        self.weights = [weight / sum(given) for weight in given]
        self.train(False)

    def identity(self) -> str:
        """A digest of the members' identities and of their combination."""
        members = [[name, member.identity()] for name, member in self.parts.items()]
        return hashlib.sha256(json.dumps([self.combine, self.weights, members]).encode()).hexdigest()

    @property
    def routed(self) -> bool:
        """True if a record chooses the member that reads it."""
        return self.combine == "routed"

    @property
    def readings(self) -> int:
        """The number of members that read each sequence."""
        return 1 if self.routed else len(self.names)

    @property
    def model(self) -> "Ensemble":
        """The ensemble itself, and not one of its members."""
        return self

    @property
    def system(self) -> "Ensemble":
        """The ensemble itself: it is evaluated as one model."""
        return self

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the members share."""
        return self.parts[self.names[0]].tokenizer

    @property
    def vocabulary(self) -> int:
        """The number of ids, the same for every member."""
        return self.parts[self.names[0]].vocabulary

    def reads_packed(self) -> bool:
        """See `LanguageModel.packs`."""
        return all(part.packs for part in self.parts.values())

    def train(self, mode: bool = True) -> "Ensemble":
        """Refuses train mode, as every teacher."""
        return super().train(False)

    def forward(self, sequences: Sequences, wanted: frozenset[str], records: Sequence[Record] = ()) -> ModelOutput:
        """See `LanguageModel`. `records`: the records of the sequences, for members that are chosen by record.

        Raises ValueError for a record that names no member.
        """
        logits = self._routed(sequences, records) if self.routed else self._mean(sequences)
        return ModelOutput(
            logits=logits if "logits" in wanted else None,
            logprobs=_logprobs(logits, sequences) if "logprobs" in wanted else None,
        )

    def combined(self, logits: Sequence[Logits]) -> MeanLogits:
        """The mean of every member's logits at the same rows."""
        return MeanLogits(logits, self.weights, "logits" if self.combine == "mean_logits" else "probabilities")

    def output(self, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
        """See `Teacher`: members may be chosen by record."""
        return self(batch.teacher, wanted, batch.records)

    def check(
        self, records: Sequence[Record], read: Sequence[Record], audited: Sequence[Record], encoder: Encoder
    ) -> None:
        """Raises ValueError for a record that names no member, if members are chosen by record."""
        for record in records if self.routed else ():
            self.chosen(record)

    def chosen(self, record: Record) -> int:
        """The number of the member that the record names."""
        return member_of(record, self.names)

    def _mean(self, sequences: Sequences) -> MeanLogits:
        return self.combined([self._logits_of(k, sequences) for k in range(len(self.names))])

    def _routed(self, sequences: Sequences, records: Sequence[Record]) -> RoutedLogits:
        """Each member reads its own records alone. The responses of one record are adjacent rows."""
        if not records or len(sequences.tokens) % len(records):
            raise ValueError(
                f"teacher.combine=routed was given {len(records)} records for {len(sequences.tokens)} sequences, so "
                "members cannot be chosen; read it by Ensemble.read(batch, wanted), or "
                "take combine=mean_probabilities"
            )
        each = len(sequences.tokens) // len(records)
        chosen = torch.tensor([self.chosen(record) for record in records], device=sequences.tokens.device)
        owner = chosen.repeat_interleave(each)
        present = owner.unique()
        logits = [self._logits_of(int(k), sequences.at((owner == k).nonzero()[:, 0])) for k in present]
        return RoutedLogits(
            logits, torch.searchsorted(present, owner)[:, None].expand_as(sequences.mask)[sequences.mask]
        )

    def _logits_of(self, k: int, sequences: Sequences) -> Logits:
        return self.members[self.names[k]](sequences, frozenset({"logits"})).logits


def member_of(record: Record, members: Sequence[str], key: str = "teacher") -> int:
    """The number of the member that the record's meta names under `key`, else the one that is called as its skill.

    Raises ValueError for a record that names none.
    """
    name: Any = record.meta.get(key, record.skill if record.skill in members else None)
    if name not in members:
        fact = f"names {key} {name!r}" if key in record.meta else f"has no `{key}`"
        raise ValueError(
            f"record {record.id} of {record.skill} {fact} in its meta, but the members of teacher.combine=routed are "
            f"{' and '.join(members)}; name one of them, or take teacher.combine=mean_probabilities"
        )
    return list(members).index(name)


def _check_members(members: Mapping[str, WhiteBox]) -> None:
    if len(members) < 2:
        raise ValueError(
            f"teacher.members has {len(members)} of the two members or more that make an ensemble; give one more name "
            "with the content of a file of conf/teacher"
        )
    (first, leader), *others = members.items()
    for name, member in others:
        if not same_text(leader.model.tokenizer, member.model.tokenizer):
            raise ValueError(
                f"teacher.members.{name} tokenizes text otherwise than teacher.members.{first}, so their "
                "distributions cannot be combined; take members that share one tokenizer"
            )
        if leader.model.vocabulary != member.model.vocabulary:
            raise ValueError(
                f"teacher.members.{name} has {member.model.vocabulary} ids and teacher.members.{first} "
                f"{leader.model.vocabulary}; take members whose heads have the same ids"
            )


def _check_weights(
    members: Mapping[str, WhiteBox], combine: Combine, weights: Mapping[str, float | int] | None
) -> None:
    if weights is None:
        return
    if combine == "routed":
        raise ValueError(
            "teacher.weights have no meaning with combine=routed, which uses one member; set weights: null"
        )
    if weights.keys() != members.keys():
        raise ValueError(
            f"teacher.weights are for {' and '.join(weights) or 'no member'}, but the members are "
            f"{' and '.join(members)}; give each member one, or weights: null"
        )
    if bad := [f"teacher.weights.{name}={weight}" for name, weight in weights.items() if not 0 < weight < float("inf")]:
        raise ValueError(f"{bad[0]} is no positive number; leave out a member that is to have no weight")


@torch.no_grad()
def _logprobs(logits: Logits, sequences: Sequences) -> Float[Tensor, "B T"]:
    """Log-probabilities of the labels, 0 elsewhere."""
    labels = sequences.labels[sequences.mask]
    pieces = [label_logprobs(logits.rows(piece), labels[piece]) for piece in slices(logits.n, CHUNK)]
    values = torch.cat(pieces) if pieces else torch.zeros(0, device=labels.device)
    return values.new_zeros(sequences.mask.shape).masked_scatter(sequences.mask, values)
