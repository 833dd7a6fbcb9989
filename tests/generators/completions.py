"""A server that speaks as much of vLLM's HTTP protocol as is used, with our own engine and real weights behind it."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from kd.generators.generation import write
from kd.generators.rescoring import read_responses
from kd.generators.sampling import Sampled
from kd.generators.weights.worker.shared_weights import SharedWeights
from kd.models.language_model import LanguageModel


class Worker(SharedWeights):
    """vLLM's worker, with our extension."""

    def __init__(self, model: LanguageModel):
        self.model = model

    def reload_weights(self, weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Of the checkpoint's head and embedding, as of a folder's."""
        head = self.model.network.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        self.model.network.load_state_dict(dict(weights_iterator))


class Served:
    """What stands behind the server, and what it was asked."""

    def __init__(self, model: LanguageModel, name: str = "student"):
        self.model, self.names, self.room = model, [name], 256
        self.developer_mode = self.loads = self.processed = True
        self.token_ids, self.extended, self.delay = True, True, 0.0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.url = ""
        self._one_at_a_time, self._counting = threading.Lock(), threading.Lock()
        self._under_way = self.most_at_once = 0

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self._counting:
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            return self.answered(path, body)
        finally:
            with self._counting:
                self._under_way -= 1

    def answered(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self._one_at_a_time:
            self.asked.append((path, body))
            time.sleep(self.delay)
            if path == "/v1/models":
                return 200, {"data": [{"id": name, "max_model_len": self.room} for name in self.names]}
            if path == "/v1/completions":
                return 200, {"choices": self.scored(body) if "prompt_logprobs" in body else self.choices(body)}
            if path.startswith("/server_info"):
                extension = "shared_weights.SharedWeights" if self.extended else ""
                return 200, {"vllm_config": {"parallel_config": {"worker_extension_cls": extension}}}
            if path in ("/collective_rpc", "/reset_prefix_cache") and self.developer_mode:
                return 200, self.remote(body) if path == "/collective_rpc" else b""
            return 404, {"detail": "Not Found"}

    def remote(self, body: dict[str, Any]) -> dict[str, Any]:
        """As vLLM on a CPU: what a checkpoint says is tied has a head of its own, which stays as it was."""
        if body["method"] == "reload_shared_weights":
            return {"results": [Worker(self.model).reload_shared_weights(**body["kwargs"])]}
        assert body["method"] == "reload_weights"
        if self.loads:
            folder = Path(body["kwargs"]["weights_path"])
            state = load_file(folder / "model.safetensors")
            if json.loads((folder / "config.json").read_text())["tie_word_embeddings"]:
                state.pop("lm_head.weight", None)
            head = self.model.network.get_output_embeddings()
            head.weight = nn.Parameter(head.weight.detach().clone())
            self.model.network.load_state_dict(state, strict=False)
        return {"results": [None]}

    def scored(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """As vLLM: nothing of the first token, of the others a mapping from the id."""
        ids = body["prompt"]
        [read] = read_responses(self.model, [(ids[:1], ids[1:])], Sampled(1.0), batch_size=1)
        said = [
            {str(i): {"logprob": x, "rank": 1, "decoded_token": "?"}}
            for i, x in zip(ids[1:], read.own.tolist(), strict=True)
        ]
        return [{"index": 0, "text": "", "finish_reason": "length", "logprobs": None, "prompt_logprobs": [None, *said]}]

    def choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """As vLLM: greedy log-probabilities are those of temperature 1; the end token is in the ids."""
        assert body["ignore_eos"]
        assert body["stop_token_ids"] == [self.model.tokenizer.eos_token_id]
        sampled = Sampled(body["temperature"], body["top_p"])
        draws = sampled.temperature > 0  # from the generator of the process, which the run uses meanwhile
        with torch.random.fork_rng(enabled=draws):
            if draws:
                torch.manual_seed(body["seed"])
            (written,) = write(
                [self.model],
                [body["prompt"]],
                samples=body["n"],
                max_new_tokens=body["max_tokens"],
                choose=sampled,
                batch_size=16,
            )
        found = []
        for index, one in enumerate(written):
            own = not self.processed or sampled.temperature == 0
            logprobs = one.old_logprobs if own else one.behaviour_logprobs
            ids = {"token_ids": list(one.ids), "prompt_token_ids": body["prompt"]} if self.token_ids else {}
            reason = "length" if one.truncated else "stop"
            told = {"token_logprobs": logprobs.tolist()}
            found.append({"index": index, "text": "", "finish_reason": reason, "logprobs": told, **ids})
        return found[::-1]  # the index tells the order

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def serving(served: Served, port: int = 0) -> Iterator[Served]:
    """On a port of this machine, a free one by default, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            status, told = served.answer(self.path, json.loads(self.rfile.read(length) or b"{}"))
            content = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ids_of(groups: Sequence[Sequence[Any]]) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in group] for group in groups]
