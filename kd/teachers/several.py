"""Several teachers that generate text, with the interface of one: each record by one of them, or the best response."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt

from kd.generators import Generator
from kd.generators.settings import Decoding
from kd.metrics.overlap import token_f1
from kd.seeding import uniform
from kd.teachers.ensemble import member_of
from kd.teachers.interface import Answers, Teacher
from kd.types import Record

VERSION = 1  # of the choice of a member, and of the best response


class Several(Teacher):
    """Teachers with the interface of one that provides text; each has its own server, weights, budget and price.

    Args:
        members: by name, each as a file of conf/teacher describes it; they need not share a tokenizer.
        combine: routed: every record by the member that its `meta` names as `teacher`, else by the one that is called
            as its skill;
            mixture: every record by one member, drawn by the weights from the record's id: text of the mixture of their
            distributions;
            best_of: all generate, and of each prompt's responses those stay that are most like all others, by the mean
            F1 of words (minimum Bayes risk; Kumar and Byrne 2004): an error that one teacher makes is seldom shared.
        weights: of a mixture, by name; None: equal ones.

    Raises:
        ValueError: fewer than two members; a member without text; weights for other names, or without a mixture.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(
        self,
        *,
        members: Mapping[str, Teacher],
        combine: Literal["routed", "mixture", "best_of"],
        weights: Mapping[str, PositiveFloat | PositiveInt] | None = None,
    ):
        if len(members) < 2:
            raise ValueError(f"teacher.members has {len(members)} of two members or more; give one more name")
        if silent := [name for name, member in members.items() if "text" not in member.provides]:
            raise ValueError(
                f"teacher.members.{silent[0]} generates no text, which teacher=several combines; take another member"
            )
        if weights is not None and (combine != "mixture" or weights.keys() != members.keys()):
            raise ValueError(
                f"teacher.weights are for {' and '.join(weights)}, but the members of combine={combine} are "
                f"{' and '.join(members)}; give each of a mixture one, or weights: null"
            )
        self.members, self.names, self.combine = dict(members), list(members), combine
        self.weights = [1.0 if weights is None else float(weights[name]) for name in self.names]

    def identity(self) -> str:
        """A digest of the members' identities and of their combination."""
        content = [self.combine, self.weights, [[name, one.identity()] for name, one in self.members.items()]]
        return f"several {hashlib.sha256(json.dumps(content).encode()).hexdigest()}"

    def generate(
        self,
        records: Sequence[Record],
        *,
        decoding: Decoding,
        engine: Generator,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answers]:
        """See `Teacher`. Raises ValueError for a record that names no member, where it chooses one."""
        if self.combine == "best_of":
            found = [self._respond(name, records, decoding=decoding, engine=engine) for name in self.names]
            return [_best(group, decoding.samples) for group in zip(*found, strict=True)]
        chosen = [self.chosen(record) for record in records]
        answers: list[Answers | None] = [None] * len(records)
        for k, name in enumerate(self.names):
            places = [i for i, own in enumerate(chosen) if own == k]
            own = [records[i] for i in places]
            if own:
                given = self._respond(name, own, decoding=decoding, engine=engine, progress=progress)
                for i, answer in zip(places, given, strict=True):
                    answers[i] = answer
        return [answer for answer in answers if answer is not None]

    def _respond(self, name: str, records: Sequence[Record], **settings: Any) -> list[Answers]:
        try:
            return self.members[name].respond(records, **settings)
        except ValueError as error:
            raise ValueError(f"teacher.members.{name}: {error}") from None

    def chosen(self, record: Record) -> int:
        """The number of the member that answers a record. Raises ValueError for one that names none."""
        if self.combine == "routed":
            return member_of(record, self.names)
        point = uniform(0, "several", record.skill, record.id) * sum(self.weights)
        for k, weight in enumerate(self.weights):
            point -= weight
            if point < 0:
                return k
        return len(self.weights) - 1

    def to(self, device: torch.device) -> "Several":
        """Moves the members' tensors."""
        self.members = {name: member.to(device) for name, member in self.members.items()}
        return self


def _best(group: Sequence[Answers], samples: int) -> Answers:
    """The responses of all members to one prompt that are most like the others, finished ones first."""
    texts = [text for answers in group for text in answers.texts]
    finished = [one for answers in group for one in answers.finished]
    likeness = [sum(token_f1(text, [other]) for j, other in enumerate(texts) if j != i) for i, text in enumerate(texts)]
    order = sorted(range(len(texts)), key=lambda i: (not finished[i], -likeness[i], i))[:samples]
    whole = Answers(tuple(texts[i] for i in order), tuple(finished[i] for i in order), 0)
    return whole._replace(tokens=sum(answers.tokens for answers in group))
