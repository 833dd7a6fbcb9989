"""The base of engines with weights of their own: weights are transferred to them, and their outputs are checked."""

import json
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import UInt8
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from kd.generators import Begun, Generator, Row, shared
from kd.generators.account import Spent, charge, charge_generation
from kd.generators.generation import end_ids
from kd.generators.rescoring import Reading, read_responses, reread
from kd.generators.sampling import Sampled
from kd.generators.settings import Decoding
from kd.generators.vllm_answers import EXACT, Completion, Order, check_ids, results
from kd.generators.weights.memory import tied_head, untied_state
from kd.models.language_model import LanguageModel
from kd.models.merging import merged
from kd.progress import count_tokens
from kd.types import Source, Written

Text = Annotated[str, Field(min_length=1)]
EXACTNESS = {torch.float64: 0.01, torch.float32: 0.01}  # nats that two engines' arithmetic may differ by, at one token
EXACTNESS_OF_HALF = 0.3  # of bfloat16 and float16
PROBE = 32  # tokens of the prompt that both score, and of the response that both do
DRAWS = 4  # such responses


class ExternalEngine(Generator):
    """Responses from an engine that holds a copy of the model's weights.

    Before it generates, it receives the current weights (`staleness`). The model itself scores the responses, once and
    without gradient: `old_logprobs` are the model's own, `behaviour_logprobs` those that the engine reports for the
    distribution it drew from, and their mean distance is logged as `sampler_mismatch`, in nats per token. Where the
    weights should be the same and the two differ by more than `tolerance`, the engine has other weights: an error.

    After each transfer of weights, both sides score the same prompt, tokens from all over the vocabulary, and none may
    differ by more than `exactness`. (A mean over responses hides weights that were not transferred as long as the model
    has changed little; the largest distance of one token shows them.) Where responses are begun for later steps before
    any was compared (a resumed run), a few short ones are drawn first, with the run's temperature and top_p.

    Args:
        weights: a folder that both sides can read, into which the weights are saved as a checkpoint.
        staleness: steps that the engine's weights may be behind; 0: they are transferred after each step; None: they
            are never transferred (a teacher that the engine holds already).
        tolerance: largest mean distance of log-probabilities, in nats per token.
        exactness: largest distance of one token's log-probability after a transfer, in nats; None: `EXACTNESS`
            of the model's precision.
    """

    holds_weights: ClassVar[bool] = True
    overlaps: ClassVar[bool] = False  # whether it generates while this process does something else

    def __init__(
        self,
        *,
        weights: Text,
        staleness: NonNegativeInt | None = 0,
        tolerance: PositiveFloat = 0.25,
        exactness: PositiveFloat | None = None,
    ):
        self.folder, self.staleness, self.tolerance = Path(weights).absolute(), staleness, tolerance
        self.exactness = exactness
        self.version: int | None = None if staleness is not None else 0  # of the weights that the engine holds
        self._opened = False
        self._compared = set[tuple[float, float]]()  # temperature, top_p of which log-probabilities were compared
        self._kept: dict[str, Tensor] | None = None  # of a resumed run: files of the weights that the engine held
        self._pending = [0.0, 0.0, 0.0, 0.0]  # distance, tokens, steps behind, responses, since the last report

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source = "student",
        version: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Written]]:
        """See `kd.generators.Generator`.

        Raises:
            OSError: the engine cannot be reached, or does not respond in time (ConnectionError, TimeoutError).
            ValueError: it refuses the request, or returns responses that the model could not have generated.
        """
        order = self._ordered(model, prompts, decoding, version)
        if not prompts:
            return []
        found = self._completed(order, model.vocabulary)
        drafts = [[_written(one, order, source) for one in group] for group in found]
        written, readings = reread(model, prompts, drafts, decoding)
        behind = version - (self.version or 0)
        self._compare([one.logprobs for group in found for one in group], readings, decoding, behind)
        count_tokens(sum(len(one.ids) for group in found for one in group))
        if progress is not None:
            progress(len(prompts))
        return written

    def begin(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source = "student",
        version: int = 0,
    ) -> Begun:
        """See `kd.generators.Generator`. The weights are transferred before it returns; where the engine `overlaps`,
        the responses come later. Nothing that was begun with other weights may still be under way."""
        started, begun = time.perf_counter(), Begun()
        order = self._ordered(model, prompts, decoding, version)
        if self.version == version and decoding.temperature and _drawn(decoding) not in self._compared:
            self._check_draws(model, decoding)
        parts, vocabulary = self.submit(order) if prompts else [], model.vocabulary

        def collect() -> None:
            try:
                found = results(parts)
                if found:
                    check_ids(found, order, vocabulary)
                begun.set_result([[_written(one, order, source) for one in group] for group in found])
            except BaseException as error:  # raised where the result is read
                begun.set_exception(error)

        if self.overlaps:
            Thread(target=collect, name="generation", daemon=True).start()
        else:
            collect()
        charge(Spent(seconds=time.perf_counter() - started))
        return begun

    def settle(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        begun: Sequence[Sequence[Written]],
        *,
        decoding: Decoding,
        behind: int,
    ) -> list[list[Written]]:
        """See `kd.generators.Generator`: the cost of generating is charged here, too."""
        if not prompts:
            return []
        started = time.perf_counter()
        written, readings = reread(model, prompts, begun, decoding)
        flat = [one for group in begun for one in group]
        if decoding.temperature:
            drawn = [one.behaviour_logprobs for one in flat if one.behaviour_logprobs is not None]
            self._compare([logprobs.tolist() for logprobs in drawn], readings, decoding, behind)
        else:  # what was drawn from was certain, and its probabilities are not kept
            self._note(0.0, 0, behind, len(flat))
        count_tokens(sum(len(one.ids) for one in flat))
        read = self.read([len(prompt) for prompt in prompts], [[len(one.ids) for one in group] for group in begun])
        seconds = time.perf_counter() - started
        charge_generation([model], read, written, source="student", seconds=seconds)
        return written

    def _ordered(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], decoding: Decoding, version: int
    ) -> Order:
        """The request for these responses, once the engine has its weights."""
        self.check(decoding)
        self._bring(model, version)
        seeds = torch.randint(2**31, (len(prompts),)).tolist() if prompts else []
        return Order(prompts, seeds, decoding, sorted(end_ids(model)))

    def _completed(self, order: Order, vocabulary: int) -> list[list[Completion]]:
        found = results(self.submit(order))
        check_ids(found, order, vocabulary)
        return found

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `kd.generators.Generator`."""
        return {"engine": "vllm"}

    def read(self, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
        """See `kd.generators.Generator`: as our own engine would, and each response once more, its prompt before it."""
        again = ([Row(n, (length,)) for length in group] for n, group in zip(prompts, responses, strict=True))
        return [[*once, *more] for once, more in zip(shared(prompts, responses), again, strict=True)]

    @abstractmethod
    def open(self, model: LanguageModel) -> None:
        """Prepares the engine before the first request; if weights are transferred, `folder` holds a checkpoint."""

    @abstractmethod
    def load(self, model: LanguageModel) -> None:
        """Has the engine load the weights in `folder` and clear caches computed with others."""

    @abstractmethod
    def score(self, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of each id but the first, given those before, at temperature 1."""

    @abstractmethod
    def submit(self, order: Order) -> list[Future[list[Completion]]]:
        """`order.decoding.samples` responses to each prompt, one future for each; an engine that `overlaps` returns
        before they are there, and works on what was submitted first."""

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The mean distance of both log-probabilities per token, and the engine's mean lag in steps."""
        distance, tokens, behind, responses = self._pending
        self._pending = [0.0, 0.0, 0.0, 0.0]
        return {"sampler_mismatch": (distance, tokens), "sampler_staleness": (behind, responses)}

    def state_dict(self) -> dict[str, Any]:
        """The engine's weights as the files in `folder`, where they may differ from the current ones."""
        if not self.staleness or self.version is None:
            return {}
        return {"version": self.version, "weights": self.held() if self._kept is None else self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned: these weights are transferred before the engine generates."""
        if state:
            self.version, self._kept = state["version"], state["weights"]

    def held(self) -> dict[str, UInt8[Tensor, " bytes"]]:
        """The files in `folder`, by name."""
        files = (path for path in sorted(self.folder.iterdir()) if path.is_file())
        return {path.name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in files}

    def restore(self, model: LanguageModel, files: Mapping[str, UInt8[Tensor, " bytes"]]) -> None:
        """Writes the files that `held` returned into `folder`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self.folder / name).write_bytes(content.numpy().tobytes())

    def save(self, model: LanguageModel) -> None:
        """Saves a checkpoint in `folder`, adapters merged, with an untied head (`save_untied`)."""
        with torch.no_grad():
            save_untied(merged(model).network, self.folder)
        model.tokenizer.save_pretrained(self.folder)

    def _bring(self, model: LanguageModel, version: int) -> None:
        due = self.staleness is not None and (self.version is None or version - self.version > self.staleness)
        if due:
            self.save(model)
        elif self._kept is not None:
            self.restore(model, self._kept)
        if not self._opened:
            self.open(model)
            self._opened = True
        if due or self._kept is not None:
            self.load(model)
            self.version, self._kept = version if due else self.version, None
        if due:
            self._check_arrival(model)

    def _check_arrival(self, model: LanguageModel) -> None:
        """Raises ValueError where both sides score the same prompt differently."""
        ids = probe(model)
        theirs = torch.tensor(self.score(ids))
        [own] = read_responses(model, [(ids[:1], ids[1:])], Sampled(1.0), batch_size=1)
        distance, place = (theirs - own.own).abs().max(0)
        bound = self.exactness or EXACTNESS.get(model.network.dtype, EXACTNESS_OF_HALF)
        if not distance <= bound:
            raise ValueError(
                f"the engine was given new weights, and scores the id {ids[int(place) + 1]} of a fixed prompt "
                f"{distance:.3g} nats away from the model itself (at most {bound:g}), so not all of them have arrived; "
                f"start it from the checkpoint in {self.folder}, or raise generator.exactness if its arithmetic "
                "explains that"
            )

    def _check_draws(self, model: LanguageModel, decoding: Decoding) -> None:
        """Compares the log-probabilities of a few short responses, with a seed of their own, before any is learnt from.

        Those that are begun for later steps are not compared: by then the model has other weights."""
        short = replace(decoding, samples=DRAWS, max_new_tokens=min(PROBE, decoding.max_new_tokens))
        order = Order([probe(model)[:1]], [0], short, sorted(end_ids(model)))
        found = self._completed(order, model.vocabulary)
        _, readings = reread(model, order.prompts, [[_written(one, order, "student") for one in found[0]]], short)
        self._check_alike([one.logprobs for one in found[0]], readings)
        self._compared.add(_drawn(decoding))

    def _note(self, distance: float, tokens: int, behind: int, responses: int) -> None:
        new = (distance, float(tokens), float(behind * responses), float(responses))
        self._pending = [a + b for a, b in zip(self._pending, new, strict=True)]

    def _compare(
        self, found: Sequence[Sequence[float]], readings: Sequence[Reading], decoding: Decoding, behind: int
    ) -> None:
        """Notes the distance of the log-probabilities of each response, and raises ValueError where it is too large."""
        reported, drawn = torch.tensor([x for one in found for x in one]), torch.cat([one.drawn for one in readings])
        self._note((reported - drawn).abs().sum().item(), len(reported), behind, len(found))
        if not behind:  # older weights have other log-probabilities
            self._check_alike(found, readings)
            self._compared.add(_drawn(decoding))

    def _check_alike(self, found: Sequence[Sequence[float]], readings: Sequence[Reading]) -> None:
        """Raises ValueError where the mean distance of the log-probabilities of each response is too large."""
        reported = torch.tensor([logprob for logprobs in found for logprob in logprobs])
        own, drawn = (torch.cat(parts) for parts in zip(*readings, strict=True))
        mean, untempered = (reported - drawn).abs().mean().item(), (reported - own).abs().mean().item()
        if mean > EXACT and untempered < mean / 2:
            raise ValueError(
                "the engine returns log-probabilities from before temperature and top_p, which nothing was drawn from; "
                "start it with --logprobs-mode processed_logprobs"
            )
        if not mean <= self.tolerance:
            raise ValueError(
                f"the engine's log-probabilities of its responses are {mean:.3g} nats per token away from the "
                f"model's own (generator.tolerance={self.tolerance}), so it holds another model or other weights; "
                f"start it from the checkpoint in {self.folder}, or raise the tolerance if its arithmetic explains it"
            )


def probe(model: LanguageModel) -> list[int]:
    """A prompt of `PROBE` ids, spaced evenly over the vocabulary without its special ids."""
    ordinary = sorted(set(range(model.vocabulary)) - set(model.tokenizer.all_special_ids))
    return [ordinary[i * (len(ordinary) - 1) // (PROBE - 1)] for i in range(PROBE)]


def save_untied(network: Any, folder: Path) -> None:
    """Saves a checkpoint whose head is a separate tensor, untied also in its configuration.

    vLLM on a CPU keeps a packed copy of a tied head, which `reload_weights` leaves unchanged while it reports success;
    a head that the checkpoint names is loaded like every other tensor. It costs the engine one more matrix of
    vocabulary x width.
    """
    network.save_pretrained(folder, state_dict=untied_state(network))
    if tied_head(network) is not None:
        path = folder / "config.json"
        settings = {**json.loads(path.read_text(encoding="utf-8")), "tie_word_embeddings": False}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _written(one: Completion, order: Order, source: Source) -> Written:
    drawn = torch.tensor(one.logprobs) if order.decoding.temperature else torch.zeros(len(one.ids))
    return Written(one.ids, source, drawn, truncated=one.ids[-1] not in order.ends)


def _drawn(decoding: Decoding) -> tuple[float, float]:
    return float(decoding.temperature), float(decoding.top_p)
