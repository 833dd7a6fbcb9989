"""vLLM in this process, on the GPU that the model learns on."""

import importlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch.distributed as dist
from pydantic import NonNegativeInt, PositiveFloat

from kd.generators.external_engine import ExternalEngine, Text
from kd.generators.vllm_answers import Completion, Order
from kd.models.language_model import LanguageModel


class Colocated(ExternalEngine):
    """A vLLM engine that sleeps while the model learns: its cache is freed, its weights are in main memory.

    Weights go through the folder (a RAM disk such as /dev/shm serves well) and the worker's method `reload_weights`.
    For one process; with several ranks, take the server. Needs the extra `vllm`. No GPU was at hand when this was
    written: it is tested against a double of `vllm.LLM`, and was never run with vLLM itself.

    Args:
        memory: share of the GPU's memory for vLLM.
        room: tokens of prompt and response together; None: the model's maximum.
        sleep: whether vLLM frees its memory while the model learns.
        weights, staleness, tolerance, exactness: see `kd.generators.external_engine.ExternalEngine`.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        ValueError: the share is none, or there are several ranks.
    """

    def __init__(
        self,
        *,
        weights: Text,
        memory: PositiveFloat = 0.3,
        room: NonNegativeInt | None = None,
        sleep: bool = True,
        staleness: NonNegativeInt | None = 0,
        tolerance: PositiveFloat = 0.25,
        exactness: PositiveFloat | None = None,
    ):
        super().__init__(weights=weights, staleness=staleness, tolerance=tolerance, exactness=exactness)
        if memory >= 1:
            raise ValueError(f"generator.memory={memory} leaves the model nothing; give vLLM a share below 1")
        if staleness is None:
            raise ValueError("generator.staleness=null gives vLLM no weights; name a number of steps, 0 for none")
        self.memory, self.room, self.sleep = memory, room, sleep
        self._vllm = _imported()
        self._engine: Any = None
        self._asleep = False

    def open(self, model: LanguageModel) -> None:
        """Makes the engine from the checkpoint in the folder."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError("generator=vllm_colocated is for one process; take generator=vllm, a server for all ranks")
        self._engine = self._vllm.LLM(
            model=str(self.folder),
            gpu_memory_utilization=self.memory,
            max_model_len=self.room,
            enable_sleep_mode=self.sleep,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",  # not the checkpoint's
        )

    def load(self, model: LanguageModel) -> None:
        """Has the workers load the weights in the folder."""
        self._wake()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(self.folder)})
        self._engine.reset_prefix_cache()

    def score(self, ids: Sequence[int]) -> list[float]:
        """See `ExternalEngine`."""
        settings = self._vllm.SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        [output] = self._engine.generate([{"prompt_token_ids": list(ids)}], [settings], use_tqdm=False)
        return [scores[i].logprob for scores, i in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]

    def submit(self, order: Order) -> list[Future[list[Completion]]]:
        """See `ExternalEngine`: the responses are there when it returns."""
        self._wake()
        prompts = [{"prompt_token_ids": list(prompt)} for prompt in order.prompts]
        outputs = self._engine.generate(prompts, [self._settings(order, seed) for seed in order.seeds], use_tqdm=False)
        found = [Future[list[Completion]]() for _ in outputs]
        for future, output in zip(found, outputs, strict=True):
            future.set_result([_completion(one) for one in sorted(output.outputs, key=lambda one: one.index)])
        if self.sleep:
            self._engine.sleep(level=1)
            self._asleep = True
        return found

    def _settings(self, order: Order, seed: int) -> Any:
        return self._vllm.SamplingParams(
            n=order.decoding.samples,
            seed=seed,
            max_tokens=order.decoding.max_new_tokens,
            temperature=float(order.decoding.temperature),
            top_p=float(order.decoding.top_p),
            stop_token_ids=list(order.ends),
            ignore_eos=True,  # beside those
            logprobs=0,  # of the chosen ids alone
            detokenize=False,
        )

    def _wake(self) -> None:
        if self._asleep:
            self._engine.wake_up()
            self._asleep = False


def _completion(one: Any) -> Completion:
    ids = tuple(one.token_ids)
    return Completion(ids, tuple(scores[i].logprob for scores, i in zip(one.logprobs or (), ids, strict=False)))


def _imported() -> Any:
    try:
        return importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ModuleNotFoundError(
            "generator=vllm_colocated needs vLLM; install the extra with pip install -e '.[vllm]', or take "
            "generator=torch",
            name="vllm",
        ) from None
