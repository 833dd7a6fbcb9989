"""The student's own responses, generated with the weights of the current step, or of one a few steps before."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveFloat

from kd.data.sequences import Encoder, prompt_ids
from kd.generators import Begun
from kd.generators.account import Spent, charge
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.ranks import sum_over_hosts
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.types import Batch, Models, Progress, Record, Written

log = logging.getLogger(__name__)


class OnPolicy(Writing):
    """`samples` responses of the student to every prompt of the window (arXiv 2306.13649, with lambda = 1).

    All prompts of the window are decoded together, `batch_size` at a time, whatever its micro-batches are; the
    responses form new micro-batches. The settings are those of `kd.rollouts.writing.Writing`.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with new responses, scored by the reward."""
        records = records_of(window)
        responses = self.by_one(models.student, records, encoder, version=progress.step)
        return judged(encoder.written(records, responses), models)


@dataclass(frozen=True)
class Draft:
    """Responses to the records of a later step, which are generated, or have been, with the weights of `version`."""

    version: int
    records: tuple[str, ...]  # their ids
    begun: Begun

    def there(self, seconds: float) -> str | None:
        """None where its responses are there, at the latest after so many seconds; else the reason."""
        try:
            error = self.begun.exception(max(seconds, 0.0))
        except TimeoutError:
            return "they are under way still"
        return None if error is None else f"{type(error).__name__}: {error}"

    def plain(self, lost: bool) -> dict[str, Any]:
        """The draft for a checkpoint. `lost`: without responses, which are generated again."""
        responses = None if lost else [[_plain(one) for one in group] for group in self.begun.result()]
        return {"version": self.version, "records": list(self.records), "responses": responses}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Draft":
        """The draft of which `plain` was made."""
        begun = Begun()
        begun.set_result([[_response(one) for one in group] for group in plain["responses"]])
        return cls(plain["version"], tuple(plain["records"]), begun)


@dataclass(kw_only=True, eq=False)
class Asynchronous(OnPolicy):
    """Responses that are generated for the next steps while the student learns, with weights at most `staleness` steps
    old: one-step off-policy at 1 (arXiv 2410.18252), as of AReaL (2505.24298) above.

    With k = `staleness`: at the steps 0, k, 2k … the engine receives the student's weights, and begins the windows of
    the k steps that follow; a window is learnt from 1 to k steps after its weights (that of step 0 with its own). So
    weights are transferred once for k steps, what is generated is a function of seed and step alone, however long it
    takes, and k = 0 is `OnPolicy`. An engine elsewhere (`generator=vllm`) generates while this
    process trains; one in this process generates at once, which takes as long as on-policy does, and shows what
    the age of responses does.

    Of each response, `behaviour_logprobs` are those that it was drawn with, `old_logprobs` those of the student at the
    beginning of the step that learns from it (one more forward pass, which an engine elsewhere costs anyway). Policy
    objectives correct by the ratio of the present student to the former. Other terms do not, unless
    `importance_bound` weighs their tokens.

    A checkpoint waits for what is under way and holds it, so that a resumed run learns from the same responses. Those
    that an engine failed to generate, or that are not there after `checkpoint_wait`, on any rank, it does not hold: a
    warning names them, and a resumed run generates them again, with the weights of the step that learns from them.

    Args:
        staleness: steps that the weights of a response may be behind those of the step that learns from it.
        importance_bound: weigh every token by its probability at the beginning of the step over that which it was drawn
            with, at most this, for terms that do not correct for that themselves. None: no weights.
        checkpoint_wait: seconds that a checkpoint waits for the responses under way, all together.
        samples, max_new_tokens, temperature, top_p, batch_size, generator: as for `kd.rollouts.writing.Writing`.

    Raises:
        ValueError: the engine's weights have an age of their own, or greedy responses are to be weighed.
    """

    provides: ClassVar[frozenset[str]] = OnPolicy.provides | {"importance_weights"}

    staleness: NonNegativeInt = 1
    importance_bound: PositiveFloat | None = None
    checkpoint_wait: PositiveFloat = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.engine.staleness
        if self.staleness and own != 0:
            raise ValueError(
                f"rollout.staleness={self.staleness} determines when the engine receives weights, and "
                f"generator.staleness={'null' if own is None else own} would keep others; set generator.staleness=0"
            )
        if self.importance_bound is not None and self.temperature == 0:
            raise ValueError(
                f"rollout.importance_bound={self.importance_bound} weighs tokens by the probability that they were "
                "drawn with, but at rollout.temperature=0 nothing is drawn; set one of them to null or above 0"
            )
        self.ahead = self.staleness
        self._coming: Sequence[list[Batch]] = []
        self._drafts: dict[int, Draft] = {}  # by step
        self._age, self._waited = [0.0, 0.0], [0.0, 0.0]  # steps x responses, responses; seconds, steps

    def foresee(self, coming: Sequence[list[Batch]]) -> None:
        """See `kd.rollouts.Rollout`."""
        self._coming = coming

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with responses that were begun before, scored by the reward; begins the next ones."""
        records, step = records_of(window), progress.step
        draft = self._drafts.pop(step, None)
        if draft is None:
            responses = self.by_one(models.student, records, encoder, version=step)
        else:
            responses = self._awaited(draft, records)
        if self.staleness and step % self.staleness == 0:
            self._begin(models.student, progress, encoder)
        if draft is not None:
            responses = self._settled(draft, responses, models.student, records, encoder, step)
        behind, count = step - (step if draft is None else draft.version), sum(map(len, responses))
        self._age = [self._age[0] + behind * count, self._age[1] + count]
        return [self._weighted(batch) for batch in judged(encoder.written(records, responses), models)]

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The report of `kd.rollouts.writing.Writing`, the responses' age in steps, and the seconds that a step has
        waited for responses that were begun before it."""
        age, waited = self._age, self._waited
        self._age, self._waited = [0.0, 0.0], [0.0, 0.0]
        own = {"staleness": (age[0], age[1]), "generation_wait": (waited[0], waited[1])}
        return {**super().take_report(), **own}

    def state_dict(self) -> dict[str, Any]:
        """See `kd.rollouts.Rollout`; also the responses for later steps, once they are there. Every rank calls it."""
        if not self.staleness:
            return super().state_dict()
        lost = self._lost()
        drafts = {step: draft.plain(step in lost) for step, draft in self._drafts.items()}
        return {**super().state_dict(), "buffer": drafts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        held = {step: plain for step, plain in state.get("buffer", {}).items() if plain["responses"] is not None}
        self._drafts = {step: Draft.of(plain) for step, plain in held.items()}

    def _lost(self) -> set[int]:
        """The steps whose responses some rank does not have in time: all ranks have to generate those again."""
        started, steps = time.perf_counter(), sorted(self._drafts)  # the same on every rank
        if not steps:
            return set()
        reasons = [self._drafts[step].there(started + self.checkpoint_wait - time.perf_counter()) for step in steps]
        waited = time.perf_counter() - started
        missing = sum_over_hosts(torch.tensor([float(reason is not None) for reason in reasons])).tolist()
        self._waited = [self._waited[0] + waited, self._waited[1]]
        lost = {step: reason for step, reason, ranks in zip(steps, reasons, missing, strict=True) if ranks}
        if lost:
            log.warning(
                "the checkpoint holds no responses for the steps %s (%s); a run that resumes from it generates them "
                "with the weights of those steps, so it is not exactly the run that was not interrupted",
                ", ".join(str(step + 1) for step in lost),
                next(filter(None, lost.values()), "another rank has none"),
            )
        return set(lost)

    def _begin(self, student: LanguageModel, progress: Progress, encoder: Encoder) -> None:
        """Begins the responses of the next windows with the weights of now."""
        left = min(self.staleness, progress.total - progress.step - 1)
        if len(self._coming) < left:
            raise ValueError(
                f"rollout.staleness={self.staleness} generates for the next {left} windows, of which it has received "
                f"{len(self._coming)}; call its foresee with them before each step, or set rollout.staleness=0"
            )
        for later, window in enumerate(self._coming[:left], progress.step + 1):
            records = records_of(window)
            prompts, decoding, _ = self._request(student, records, encoder)
            begun = self.engine.begin(student, prompts, decoding=decoding, version=progress.step)
            self._drafts[later] = Draft(progress.step, tuple(record.id for record in records), begun)

    def _awaited(self, draft: Draft, records: Sequence[Record]) -> list[list[Written]]:
        """The responses of a draft, which has to be that of these records."""
        if draft.records != tuple(record.id for record in records):
            raise ValueError(
                "the responses that were generated in advance are to other records than the step's; resume with the "
                "data, the window and the seed that the run began with"
            )
        started = time.perf_counter()
        responses = draft.begun.result()
        seconds = time.perf_counter() - started
        charge(Spent(seconds=seconds))
        self._waited = [self._waited[0] + seconds, self._waited[1] + 1]
        return responses

    def _settled(
        self,
        draft: Draft,
        responses: Sequence[Sequence[Written]],
        student: LanguageModel,
        records: Sequence[Record],
        encoder: Encoder,
        step: int,
    ) -> list[list[Written]]:
        prompts, decoding, rooms = self._request(student, records, encoder)
        self.note(responses, rooms)
        return self.engine.settle(student, prompts, responses, decoding=decoding, behind=step - draft.version)

    def _request(
        self, student: LanguageModel, records: Sequence[Record], encoder: Encoder
    ) -> tuple[list[Any], Decoding, list[int]]:
        """The prompts, the decoding, and the room that each prompt leaves."""
        prompts = [prompt_ids(record, student.tokenizer) for record in records]
        rooms = [encoder.max_length - len(prompt) for prompt in prompts]
        return prompts, replace(self.decoding, max_new_tokens=self._bound(rooms)), rooms

    def _weighted(self, batch: Batch) -> Batch:
        """The batch with each label weighed by its probability now over that which it was drawn with, bounded."""
        if self.importance_bound is None:
            return batch
        if batch.old_logprobs is None or batch.behaviour_logprobs is None:
            raise ValueError(
                f"rollout.importance_bound={self.importance_bound} needs the log-probabilities that responses were "
                f"drawn with, which generator {type(self.engine).__name__} does not provide; set it to null"
            )
        ratios = (batch.old_logprobs - batch.behaviour_logprobs).exp().clamp(max=self.importance_bound)
        return replace(batch, importance_weights=ratios * batch.student.mask)


def _plain(one: Written) -> dict[str, Any]:
    """A response without the student's log-probabilities, which are read again."""
    drawn = None if one.behaviour_logprobs is None else one.behaviour_logprobs.detach().cpu().clone()
    return {"ids": list(one.ids), "behaviour_logprobs": drawn, "truncated": one.truncated}


def _response(plain: Mapping[str, Any]) -> Written:
    return Written(tuple(plain["ids"]), "student", plain["behaviour_logprobs"], truncated=plain["truncated"])
