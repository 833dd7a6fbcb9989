"""Generating responses to records, and reporting their lengths."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import NonNegativeFloat

from kd.data.sequences import Encoder, prompt_ids
from kd.generators import Generator
from kd.generators.generation import write
from kd.generators.sampling import Choose
from kd.generators.settings import Decoding, NewTokens, Nucleus, Samples, Together
from kd.generators.torch import Torch
from kd.models.language_model import LanguageModel
from kd.rollouts import Rollout
from kd.types import Record, Source, Written

log = logging.getLogger(__name__)

MANY_CUT = 0.1  # share of truncated responses from which on a warning is logged
ENOUGH, RECENT = 32, 256  # responses: the fewest that this share is computed of, and the most


@dataclass(kw_only=True, eq=False)
class Writing(Rollout):
    """The settings and reports that rollouts which generate have in common: number and length of responses.

    Args:
        samples: responses to each prompt; they are adjacent, as one group.
        max_new_tokens: bound on a response, beside the room that the prompt leaves in the encoder's max_length.
        temperature, top_p: see `kd.generators.sampling.Sampled`.
        batch_size: responses decoded together.
        generator: the engine where one model generates alone (`kd.generators`); None: our own.

    Raises:
        ValueError: a setting is out of range.
    """

    ordered: ClassVar[bool | None] = False

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
        """The student's side, unless a subclass differs."""
        return frozenset({"student"})

    def __post_init__(self) -> None:
        self.generator = Torch() if self.generator is None else self.generator
        self.decoding = Decoding(self.max_new_tokens, self.samples, self.temperature, self.top_p, self.batch_size)
        self.engine.check(self.decoding)
        self.longest: int | None = None  # a bound below `max_new_tokens` that a rollout around it sets at a step
        self._pending = [0.0, 0.0, 0.0]  # responses, their tokens, and how many were cut, since the last report
        self._recent: list[bool] = []  # whether each was cut, of the last RECENT
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
        """Responses to each record, in the ids of the `model` that generates them, by `generator`.

        `version` is the number of optimizer steps of the weights. `rooms` are the longest responses that each record
        has room for, where that is less than the model's prompt leaves.
        """
        prompts = [prompt_ids(record, model.tokenizer) for record in records]
        rooms = _rooms(encoder, prompts) if rooms is None else rooms
        return self.after(model, prompts, rooms, samples=self.samples, source=source, version=version)

    def after(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        rooms: Sequence[int],
        *,
        samples: int,
        source: Source = "student",
        version: int = 0,
    ) -> list[list[Written]]:
        """`samples` responses after each prompt, which is given as ids; otherwise as `by_one`."""
        responses = self.engine(  # called by every rank in the same steps, also where it has no prompts
            model,
            prompts,
            decoding=replace(self.decoding, samples=samples, max_new_tokens=self._bound(rooms)),
            source=source,
            version=version,
        )
        self.note(responses, rooms)
        return responses

    def by_several(
        self, readers: Sequence[LanguageModel], records: Sequence[Record], encoder: Encoder, choose: Choose
    ) -> list[list[Written]]:
        """Responses whose tokens several models choose: `readers` is the student, and after it the teachers."""
        if not records:
            return []
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
        self.note(responses, rooms)
        return responses

    def take_report(self) -> dict[str, tuple[float, float]]:
        """Tokens per response, the share of truncated responses, and the generator's report."""
        responses, tokens, cut = self._pending
        self._pending = [0.0, 0.0, 0.0]
        lengths = {"response_length": (tokens, responses), "truncation_rate": (cut, responses)}
        return {**lengths, **self.engine.take_report()}

    def state_dict(self) -> dict[str, Any]:
        """See `kd.rollouts.Rollout`; also the generator's state."""
        return {**super().state_dict(), "generator": self.engine.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.engine.load_state_dict(state["generator"])

    @property
    def engine(self) -> Generator:
        """The generator, which is None only before `__post_init__`."""
        assert self.generator is not None
        return self.generator

    def _bound(self, rooms: Sequence[int]) -> int:
        """The largest useful bound: a longer response would be truncated for every prompt."""
        return min(self.longest or self.max_new_tokens, self.max_new_tokens, max(rooms, default=1))

    def note(self, responses: Sequence[Sequence[Written]], rooms: Sequence[int]) -> None:
        """Adds responses to the next report; `rooms`: the longest response that each record has room for."""
        ends = [
            answer.truncated or len(answer.ids) > room
            for group, room in zip(responses, rooms, strict=True)
            for answer in group
        ]
        tokens = sum(len(answer.ids) for group in responses for answer in group)
        new = (len(ends), tokens, sum(ends))
        self._pending = [a + b for a, b in zip(self._pending, new, strict=True)]
        if self.longest is None:  # else they are cut on purpose
            self._recent = [*self._recent, *ends][-RECENT:]
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


def _rooms(encoder: Encoder, prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that each prompt leaves for a response."""
    return [encoder.max_length - len(prompt) for prompt in prompts]
