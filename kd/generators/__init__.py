"""The engines that generate where one model generates alone: our own, or another that is given the weights."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Protocol, runtime_checkable

from kd.generators.account import Row, Spent, charge, charge_generation, charge_reading, shared
from kd.generators.rescoring import reread
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.types import Source, Written

__all__ = ["Begun", "Generator", "Row", "shared"]

Begun = Future[list[list[Written]]]  # outer the prompts, inner the samples


@runtime_checkable
class Generator(Protocol):
    """An engine that generates responses to prompts. A subclass has `generate`; a call of it also charges its cost.

    Abilities, read from the class before any object is made:

    is_default: whether a config that names no engine has it. It generates for rollouts that choose each token with
        several models together, too, and stands unread where a text-only teacher generates by itself.
    holds_weights: whether it keeps a copy of one model's weights, so that it cannot generate for two models in turn.
    reads_images: whether it passes on a prompt's images (`kd.data.images.view_of`).
    staleness: optimizer steps that the weights it keeps may be behind; None: they are never transferred.
    """

    is_default: ClassVar[bool] = False
    holds_weights: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False
    staleness: int | None = 0

    @classmethod
    def check_node(cls, path: str, node: Mapping[str, Any]) -> None:
        """Raises ValueError for settings of the config's node at `path` that the constructor's signature lets pass."""
        return None

    @classmethod
    def check_reachable(cls, path: str, node: Mapping[str, Any]) -> None:
        """Raises ValueError where what the engine needs beside this process (a server) is not there."""
        return None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that its text depends on beside a call's arguments, in plain Python; empty for our engine."""
        return {}

    def check(self, decoding: Decoding) -> None:
        """Raises ValueError for a decoding that it does not support."""
        decoding.check()

    def read(self, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
        """The rows that the model has read, by prompt, for the last responses (all lengths in tokens): a prompt once
        for all its samples, unless an engine differs."""
        return shared(prompts, responses)

    @abstractmethod
    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source,
        version: int,
        progress: Callable[[int], None] | None,
    ) -> list[list[Written]]:
        """`decoding.samples` responses of `model` to each prompt: outer the prompts, inner the samples.

        Every rank calls it in the same steps, with no prompts where it has none: ranks may wait for each other.
        Random numbers come from torch's global generator.

        Args:
            prompts: ids.
            decoding: number and length of responses, distribution, batch size.
            source: the model that generates them: their `Written.source`.
            version: optimizer steps that the weights have made; 0 for those that never change.
            progress: called with the number of prompts just finished.
        """

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source = "student",
        version: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Written]]:
        """The responses of `generate`, whose cost is added to every open meter (`kd.generators.account`)."""
        started = time.perf_counter()
        responses = self.generate(model, prompts, decoding=decoding, source=source, version=version, progress=progress)
        seconds = time.perf_counter() - started
        lengths = [[len(answer.ids) for answer in group] for group in responses]
        read = self.read([len(prompt) for prompt in prompts], lengths)
        charge_generation([model], read, responses, source=source, seconds=seconds)
        return responses

    def begin(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source = "student",
        version: int = 0,
    ) -> Begun:
        """Begins to generate responses with the weights of now, for a later step. An engine that generates elsewhere
        returns before they are there; this one generates them at once. `settle` makes them ready to be learnt from, and
        charges their cost, but for this process's time, which is charged here."""
        started = time.perf_counter()
        found: Begun = Future()
        found.set_result(
            self.generate(model, prompts, decoding=decoding, source=source, version=version, progress=None)
        )
        charge(Spent(seconds=time.perf_counter() - started))
        return found

    def settle(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        begun: Sequence[Sequence[Written]],
        *,
        decoding: Decoding,
        behind: int,
    ) -> list[list[Written]]:
        """Responses that were begun `behind` optimizer steps ago, with the model's own log-probabilities of now as
        `old_logprobs`: one forward pass, whose cost, and that of generating them, is added to every open meter."""
        started = time.perf_counter()
        settled, _ = reread(model, prompts, begun, decoding)
        once = self.read([len(prompt) for prompt in prompts], [[len(one.ids) for one in group] for group in begun])
        charge_generation([model], once, settled, source="student", seconds=time.perf_counter() - started)
        lengths = [(len(prompt), len(one.ids)) for prompt, group in zip(prompts, begun, strict=True) for one in group]
        charge_reading(model, [n for n, _ in lengths], [n for _, n in lengths])
        return settled

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state that the next responses depend on, in plain Python and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        return None
