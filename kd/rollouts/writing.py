"""Writing responses to records, and keeping account of what it cost and of what came out."""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import NonNegativeFloat

from kd.data.sequences import Encoder, prompt_ids
from kd.generators import Generator, Row, shared
from kd.generators.generation import write
from kd.generators.sampling import Choose
from kd.generators.settings import Decoding, NewTokens, Nucleus, Samples, Together
from kd.generators.torch import Torch
from kd.models.flops import decoding_flops
from kd.models.language_model import LanguageModel
from kd.rollouts import Spent
from kd.types import Record, Source, Written

log = logging.getLogger(__name__)

MANY_CUT = 0.1  # share of responses without an end token, from which on somebody should know
ENOUGH, RECENT = 32, 256  # responses: before that share means anything, and those that it is taken over


@dataclass(kw_only=True, eq=False)
class Writing:
    """What the rollouts that write have in common: how much and how, the room there is, and the books.

    Args:
        samples: responses to each prompt; they stay adjacent, as one group.
        max_new_tokens: bound on a response, together with what the prompt leaves of the encoder's max_length.
        temperature, top_p: see `kd.generators.sampling.Sampled`.
        batch_size: responses decoded together.
        generator: the engine where one model writes alone (`kd.generators`); None: our own.

    Raises:
        ValueError: a setting is out of range.
    """

    ordered: ClassVar[bool] = False

    samples: Samples = 1
    max_new_tokens: NewTokens
    temperature: NonNegativeFloat = 1.0
    top_p: Nucleus = 1.0
    batch_size: Together = 16
    generator: Generator | None = None

    @staticmethod
    def responses_each(settings: Mapping[str, Any], written: int | None) -> int | None:
        """See `kd.rollouts.Rollout`."""
        return settings.get("samples", 1)

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """The student's, unless a subclass says otherwise."""
        return frozenset({"student"})

    def __post_init__(self) -> None:
        self.generator = Torch() if self.generator is None else self.generator
        self.decoding = Decoding(self.max_new_tokens, self.samples, self.temperature, self.top_p, self.batch_size)
        self._engine.check(self.decoding)
        self._spent = Spent()
        self._untold = [0.0, 0.0, 0.0]  # responses, their tokens, and how many were cut, since the last report
        self._recent: deque[bool] = deque(maxlen=RECENT)  # whether each was cut
        self._warned = False

    def by_one(
        self,
        model: LanguageModel,
        records: Sequence[Record],
        encoder: Encoder,
        *,
        source: Source = "student",
        version: int = 0,
        rooms: Sequence[int] | None = None,
    ) -> list[list[Written]]:
        """Responses to each record, in the ids of the `model` that writes them, by `generator`.

        `version` tells the generator how many steps the weights have made. `rooms` are the longest responses that each
        record has room for, where more than the model's prompt takes some.
        """
        started = time.perf_counter()
        prompts = [prompt_ids(record, model.tokenizer) for record in records]
        rooms = _rooms(encoder, prompts) if rooms is None else rooms
        responses = self._engine(  # asked by every rank in the same steps, also where it has no prompts
            model,
            prompts,
            decoding=replace(self.decoding, max_new_tokens=self._bound(rooms)),
            source=source,
            version=version,
        )
        read = self._engine.read(list(map(len, prompts)), _lengths(responses))
        self._account([model], read, responses, source, rooms, started)
        return responses

    def by_several(
        self, readers: Sequence[LanguageModel], records: Sequence[Record], encoder: Encoder, choose: Choose
    ) -> list[list[Written]]:
        """The same where teachers have a say in each token: `readers` is the student, and after it those teachers."""
        if not records:
            return []
        started = time.perf_counter()
        prompts = [prompt_ids(record, readers[0].tokenizer) for record in records]
        rooms = _rooms(encoder, prompts)
        responses = write(
            readers,
            prompts,
            samples=self.samples,
            max_new_tokens=self._bound(rooms),
            choose=choose,
            batch_size=self.batch_size,
        )
        read = shared(list(map(len, prompts)), _lengths(responses))
        self._account(readers, read, responses, "student", rooms, started)
        return responses

    def spent(self) -> Spent:
        """Since the start, on this rank."""
        return self._spent

    def take_report(self) -> dict[str, tuple[float, float]]:
        """Tokens per response, the share of responses that a bound cut off, and what the generator tells."""
        responses, tokens, cut = self._untold
        self._untold = [0.0, 0.0, 0.0]
        theirs = self._engine.take_report() if hasattr(self._engine, "take_report") else {}
        return {"response_length": (tokens, responses), "truncation_rate": (cut, responses), **theirs}

    def state_dict(self) -> dict[str, Any]:
        """What the generator has to keep."""
        return {"generator": self._engine.state_dict()} if hasattr(self._engine, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        if "generator" in state:
            self._engine.load_state_dict(state["generator"])  # type: ignore[attr-defined]

    @property
    def _engine(self) -> Generator:
        """The generator, which is none before `__post_init__` alone."""
        assert self.generator is not None
        return self.generator

    def _bound(self, rooms: Sequence[int]) -> int:
        """What is longer than the shortest prompt leaves room for would be cut off again."""
        return min(self.max_new_tokens, max(rooms, default=1))

    def _account(
        self,
        readers: Sequence[LanguageModel],
        read: Sequence[Sequence[Row]],
        responses: Sequence[Sequence[Written]],
        source: Source,
        rooms: Sequence[int],
        started: float,
    ) -> None:
        self._spent = self._spent.plus(Spent(seconds=time.perf_counter() - started))
        rows = [row for group in read for row in group]
        tokens, written = sum(row.tokens for row in rows), sum(map(sum, _lengths(responses)))
        if source == "teacher":
            self._spent = self._spent.plus(Spent(teacher_tokens=len(readers) * tokens))
        else:
            costs = (decoding_flops(readers[0], [n], group, samples=len(group)) for n, group in rows)
            self._spent = self._spent.plus(Spent(written, sum(costs), (len(readers) - 1) * tokens))
        ends = [
            answer.truncated or len(answer.ids) > room
            for group, room in zip(responses, rooms, strict=True)
            for answer in group
        ]
        told = (len(ends), written, sum(ends))
        self._untold = [old + new for old, new in zip(self._untold, told, strict=True)]
        self._recent.extend(ends)
        self._warn()

    def _warn(self) -> None:
        cut, count = sum(self._recent), len(self._recent)
        if self._warned or count < ENOUGH or cut <= MANY_CUT * count:
            return
        self._warned = True
        log.warning(
            "%d of the last %d responses were cut off before they ended, by rollout.max_new_tokens=%d or "
            "data.max_length; raise the bound, or have the student learn to end (some steps of objective=sft) first",
            cut,
            count,
            self.max_new_tokens,
        )


def _lengths(responses: Sequence[Sequence[Written]]) -> list[list[int]]:
    return [[len(answer.ids) for answer in group] for group in responses]


def _rooms(encoder: Encoder, prompts: Sequence[Sequence[int]]) -> list[int]:
    """What each prompt leaves for a response."""
    return [encoder.max_length - len(prompt) for prompt in prompts]
