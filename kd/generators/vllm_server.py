"""A vLLM server, over HTTP: OpenAI's completions, in token ids, and vLLM's method of loading new weights."""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import requests
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from requests.adapters import HTTPAdapter, Retry
from torch import Tensor
from urllib3.exceptions import HTTPError, ReadTimeoutError

from kd.generators.external_engine import ExternalEngine, Text
from kd.generators.vllm_answers import (
    Cards,
    Choices,
    Completion,
    Info,
    Order,
    Results,
    completions,
    parsed,
    prompt_logprobs,
)
from kd.generators.weights.memory import (
    WeightsInMemory,
    check_extended,
    check_transfer,
    checkpoint_tensors,
    server_command,
)
from kd.models.language_model import LanguageModel
from kd.models.merging import merged
from kd.ranks import sum_over_ranks

BUSY = frozenset({429, *range(500, 600)})  # statuses of answers after which a request is repeated
PAUSE = 30.0  # seconds: the longest before a request is repeated, whatever the server requests
LARGEST = 2**28  # bytes of an answer
PIECE = 2**16  # bytes read at a time
MISSING = 404
EVERYTHING_ELSE_OFF = {  # a server takes defaults from a checkpoint's generation settings
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Patience(Retry):
    """Growing pauses between requests; a server's Retry-After counts up to `PAUSE`."""

    def get_retry_after(self, response: Any) -> float | None:
        """The seconds that the server requests, at most `PAUSE`."""
        requested = super().get_retry_after(response)
        return None if requested is None else float(min(requested, PAUSE))


class Requests:
    """At most `most` requests at a time, begun in the order in which they were submitted.

    Its threads end when there is nothing left to do, and a process that ends waits for none of them.
    """

    def __init__(self, most: int):
        self._most, self._threads = most, 0
        self._waiting = deque[tuple[Future[list[Completion]], Callable[[], list[Completion]]]]()
        self._lock = threading.Lock()

    def submit(self, request: Callable[[], list[Completion]]) -> Future[list[Completion]]:
        """The answer to come."""
        answer: Future[list[Completion]] = Future()
        with self._lock:
            self._waiting.append((answer, request))
            more = self._threads < self._most
            self._threads += more
        if more:
            threading.Thread(target=self._work, name="request", daemon=True).start()
        return answer

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                answer, request = self._waiting.popleft()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(request())
            except BaseException as error:  # raised where the answer is read
                answer.set_exception(error)


class Server(ExternalEngine):
    """A vLLM server that was started beside the run, on the same machine or one with the same file system.

    Responses are requested at /v1/completions, one request for each prompt with all its samples. New weights are loaded
    by /collective_rpc with the worker's method `reload_weights` and the folder's path, which vLLM offers with
    VLLM_SERVER_DEV_MODE=1; then /reset_prefix_cache. The first rank transfers the weights; all ranks send requests, and
    score the tokens of one prompt to verify that the weights have arrived.

    With `transfer="memory"` the folder is saved once, to start the server from; new weights lie in shared memory of the
    machine (`kd.generators.weights.memory`), from which a method of ours in the server's workers loads them.

    Args:
        url: the server's address, without the /v1.
        transfer: "folder", or "memory" for a server of this machine, started with our extension of its workers.
        model: the model's name on the server; None: the only one that it serves.
        timeout: seconds that one request, a prompt with all its samples, may take.
        concurrency: requests at a time, of all windows together, the next step's first; the server makes batches of
            them.
        retries: of a request that reached no server, a busy one (429) or one with an error (5xx), with growing pauses,
            none above 30 s.
        weights, staleness, tolerance, exactness: see `kd.generators.external_engine.ExternalEngine`.
    """

    overlaps: ClassVar[bool] = True

    def __init__(
        self,
        *,
        url: Text,
        weights: Text,
        model: Text | None = None,
        timeout: PositiveFloat = 600.0,
        concurrency: PositiveInt = 64,
        retries: NonNegativeInt = 3,
        staleness: NonNegativeInt | None = 0,
        tolerance: PositiveFloat = 0.25,
        exactness: PositiveFloat | None = None,
        transfer: Literal["folder", "memory"] = "folder",
    ):
        super().__init__(weights=weights, staleness=staleness, tolerance=tolerance, exactness=exactness)
        self.retries = retries
        self.memory = WeightsInMemory(self.folder) if transfer == "memory" else None
        self.url, self.model, self.timeout, self.concurrency = url.rstrip("/"), model, timeout, concurrency
        self._requests = Requests(concurrency)
        self._room: int | None = None  # tokens of prompt and response that the server takes
        retry = Patience(
            retries,
            read=False,  # a request that timed out would time out again
            status_forcelist=BUSY,
            allowed_methods=None,
            backoff_factor=0.5,
            backoff_max=PAUSE,
            raise_on_status=False,
        )
        adapter = HTTPAdapter(pool_maxsize=concurrency, max_retries=retry)
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment cannot reach this machine's ports
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    @classmethod
    def check_reachable(cls, path: str, node: Mapping[str, Any]) -> None:
        """Raises ValueError where no server listens at `url`, unless the run has to save its weights first."""
        url = str(node["url"])
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError(f"{path}.url={url} is no address of a server; give one like http://localhost:8000")
        if node.get("staleness") is not None and not Path(str(node["weights"])).exists():
            return  # the first start saves them, and its message names the server's command
        try:
            with socket.create_connection((place.hostname, place.port or {"http": 80, "https": 443}[place.scheme]), 5):
                return
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path}.url={url}: no server listens there ({error}); start vLLM, or correct the address"
            ) from None

    def open(self, model: LanguageModel) -> None:
        """Reads the served model and its maximum length. Raises ValueError if the requested model is not served."""
        cards = parsed(Cards, self._request("GET", "/v1/models"), self.url + "/v1/models")
        served = {card.id: card for card in cards.data}
        if self.model is None and len(served) != 1:
            raise ValueError(f"{self.url} serves {', '.join(served) or 'nothing'}; name one with generator.model")
        self.model = self.model or next(iter(served))
        if self.model not in served:
            raise ValueError(
                f"{self.url} serves {', '.join(served)}, not generator.model={self.model}; name one of them"
            )
        self._room = served[self.model].max_model_len
        if self.memory is not None:
            path = "/server_info?config_format=json"
            info = parsed(Info, self._request("GET", path), self.url + path)
            check_extended(info.vllm_config.parallel_config.worker_extension_cls, self.url, self.folder)

    def save(self, model: LanguageModel) -> None:
        """Saves the checkpoint, on the first rank; all ranks have the same weights."""
        self._first_rank(lambda: self._save(model), model.network.device)

    def held(self) -> dict[str, UInt8[Tensor, " bytes"]]:
        """The checkpoint's files, or what is in shared memory, in the first rank's state alone."""
        if not _is_first_rank():
            return {}
        return super().held() if self.memory is None else self.memory.held()

    def restore(self, model: LanguageModel, files: Mapping[str, UInt8[Tensor, " bytes"]]) -> None:
        """Writes these again, on the first rank. Raises ValueError where they were held by the other transfer."""
        self._first_rank(lambda: self._restore(model, files), model.network.device)

    def load(self, model: LanguageModel) -> None:
        """Has the server load the weights. Raises ValueError if it does not confirm that."""
        self._first_rank(self._reload, model.network.device)

    def submit(self, order: Order) -> list[Future[list[Completion]]]:
        """See `ExternalEngine`; requests are concurrent."""
        longest = max(map(len, order.prompts)) + order.decoding.max_new_tokens
        if self._room is not None and longest > self._room:
            raise ValueError(
                f"a prompt and its response may take {longest} tokens, but {self.url} takes {self._room}; "
                "start it with a larger --max-model-len, or lower rollout.max_new_tokens"
            )
        return [self._requests.submit(partial(self._complete, order, i)) for i in range(len(order.prompts))]

    def score(self, ids: Sequence[int]) -> list[float]:
        """See `ExternalEngine`."""
        body = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        return prompt_logprobs(self._choices(body), ids, self.url)

    def _complete(self, order: Order, i: int) -> list[Completion]:
        body = {
            "model": self.model,
            "prompt": list(order.prompts[i]),
            "n": order.decoding.samples,
            "seed": order.seeds[i],
            "max_tokens": order.decoding.max_new_tokens,
            "temperature": float(order.decoding.temperature),
            "top_p": float(order.decoding.top_p),
            "stop_token_ids": list(order.ends),
            "ignore_eos": True,  # beside those
            "logprobs": 0,  # of the chosen ids alone
            "return_token_ids": True,
            "skip_special_tokens": False,
            **EVERYTHING_ELSE_OFF,
        }
        return completions(self._choices(body), order.prompts[i], order.decoding.samples, self.url)

    def _choices(self, body: Mapping[str, Any]) -> Choices:
        return parsed(Choices, self._request("POST", "/v1/completions", body), self.url + "/v1/completions")

    def _save(self, model: LanguageModel) -> None:
        if self.memory is None or not self._opened:  # a server is started from the folder, whatever it loads later
            super().save(model)
        if self.memory is not None:
            with torch.no_grad():
                self.memory.write(checkpoint_tensors(merged(model).network))

    def _restore(self, model: LanguageModel, files: Mapping[str, UInt8[Tensor, " bytes"]]) -> None:
        check_transfer(files, in_memory=self.memory is not None)
        if self.memory is None:
            super().restore(model, files)
        else:
            super().save(model)
            self.memory.restore(files)

    def _reload(self) -> None:
        if self.memory is None:
            self._call("reload_weights", {"weights_path": str(self.folder)})
        else:
            for reason in filter(None, self._call("reload_shared_weights", self.memory.arguments())):
                raise ValueError(
                    f"the server at {self.url} cannot load the student from memory: {reason}; start it again on the "
                    "machine, and in the container, of the run, with "
                    f"{server_command(self.folder, extended=True)}, or set generator.transfer=folder"
                )
        self._request("POST", "/reset_prefix_cache")  # computed with the weights before

    def _call(self, method: str, arguments: Mapping[str, Any]) -> list[Any]:
        """The result of each worker's method."""
        body = {"method": method, "kwargs": arguments}
        return parsed(Results, self._request("POST", "/collective_rpc", body), self.url + "/collective_rpc").results

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """The content of the answer. Raises ConnectionError, TimeoutError, and ValueError with the server's reason."""
        try:
            with self._session.request(
                method, self.url + path, json=body, timeout=(10, self.timeout), stream=True
            ) as answer:
                content = self._content(answer, path)
        except (requests.ReadTimeout, ReadTimeoutError):
            raise TimeoutError(self._late(path)) from None
        except (requests.RequestException, HTTPError) as error:
            raise ConnectionError(self._unreachable(error)) from None
        if answer.status_code == MISSING and not path.startswith("/v1"):
            raise ValueError(f"{self.url} has no {path}; start it with VLLM_SERVER_DEV_MODE=1 in its environment")
        if not answer.ok:
            again = f" after {self.retries} retries" if answer.status_code in BUSY and self.retries else ""
            reason = " ".join(content.decode(errors="replace").split())[:300]
            raise ValueError(f"{self.url}{path} answers {answer.status_code}{again}: {reason}")
        return content

    def _content(self, answer: requests.Response, path: str) -> bytes:
        """The whole content, within `timeout` and `LARGEST`."""
        deadline, content = time.monotonic() + self.timeout, bytearray()
        while piece := answer.raw.read1(PIECE, decode_content=True):
            content += piece
            if len(content) > LARGEST:
                raise ValueError(
                    f"{self.url}{path} answers more than {LARGEST >> 20} MiB; look at what answers at generator.url"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(self._late(path))
        return bytes(content)

    def _late(self, path: str) -> str:
        return (
            f"{self.url} did not answer {path} within generator.timeout={self.timeout} s; raise it, or lower "
            "generator.concurrency"
        )

    def _unreachable(self, error: requests.RequestException | HTTPError) -> str:
        given = self.staleness is not None
        folder, saved = (self.folder, " (the model has just been saved there)") if given else ("FOLDER", "")
        return (
            f"no vLLM server answers at {self.url} ({type(error).__name__}); start one with "
            f"{server_command(folder, extended=self.memory is not None)}{saved}, or set generator.url"
        )

    def _first_rank(self, action: Callable[[], None], device: torch.device) -> None:
        """Runs `action` on the first rank while the others wait. Raises an error on all ranks if it fails."""
        error: Exception | None = None
        if _is_first_rank():
            try:
                action()
            except (OSError, ValueError) as caught:
                error = caught
        failed = sum_over_ranks(torch.tensor(float(error is not None), device=device))
        if error is not None:
            raise error
        if failed:
            raise RuntimeError(
                f"the first rank could not transfer its weights to {self.url}; its message has the reason"
            )


def _is_first_rank() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
