"""Servers with OpenAI's protocol: one with scripted replies and faults, and llama.cpp with the embedded model."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


def scripted_text(body: Body) -> str:
    """A text that depends on the request alone: what its last message says, backward."""
    said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return said.strip()[::-1] or "nothing"


def usage(body: Body, texts: Sequence[str]) -> dict[str, int]:
    """A token is a word here."""
    said = json.dumps(body.get("messages", body.get("prompt")))
    return {"prompt_tokens": len(said.split()), "completion_tokens": sum(len(text.split()) for text in texts)}


def plain(body: Body) -> dict[str, Any]:
    """The reply of a server without faults."""
    texts = [scripted_text(body) + ("" if i == 0 else f" {i}") for i in range(body.get("n", 1))]
    reason = "length" if body.get("max_tokens") == 1 else "stop"
    choices: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        content = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        choices.append({"index": index, "finish_reason": reason, **content})
    return {"choices": choices, "usage": usage(body, texts)}


@dataclass
class Scripted:
    """What stands behind the server: its faults, one for each of the first requests, and the requests that came."""

    faults: list[str] = field(default_factory=list)
    reply: Callable[[Body], dict[str, Any]] = plain
    delay: float = 0.0
    requests: list[Body] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)  # the header in which a client sends its key
    together: int = 0  # the most requests under way at a time
    url: str = ""
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: Body, key: str | None) -> str | None:
        with self._lock:
            self._under_way += 1
            self.together = max(self.together, self._under_way)
            self.requests.append(body)
            self.times.append(time.monotonic())
            self.keys.append(key)
            return self.faults.pop(0) if self.faults else None

    def leave(self) -> None:
        with self._lock:
            self._under_way -= 1


FAULTS: dict[str, tuple[int, dict[str, str], Callable[[dict[str, Any]], str]]] = {  # status, headers, content
    "429": (429, {"Retry-After": "1"}, lambda reply: '{"error": {"message": "slow down"}}'),
    "500": (500, {}, lambda reply: '{"error": {"message": "out of memory"}}'),
    "400": (400, {}, lambda reply: '{"error": {"message": "context length exceeded"}}'),
    "401": (401, {}, lambda reply: '{"error": {"message": "no such key"}}'),
    "malformed": (200, {}, lambda reply: json.dumps(reply)[:-9]),
    "empty": (200, {}, lambda reply: json.dumps(_with_content(reply, ""))),
    "wrong count": (200, {}, lambda reply: json.dumps({**reply, "choices": [*reply["choices"], reply["choices"][0]]})),
    "no choice": (200, {}, lambda reply: json.dumps({**reply, "choices": []})),
}


def _with_content(reply: dict[str, Any], text: str) -> dict[str, Any]:
    choices = [{**choice, "message": {"role": "assistant", "content": text}} for choice in reply["choices"]]
    return {**reply, "choices": choices}


@contextmanager
def serving(scripted: Scripted) -> Iterator[Scripted]:
    """On a free port of this machine, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = scripted.take(body, self.headers.get("Authorization"))
            try:
                time.sleep(3.0 if fault == "slow" else scripted.delay)
                self._answer(fault, scripted.reply(body))
            finally:
                scripted.leave()

        def _answer(self, fault: str | None, reply: dict[str, Any]) -> None:
            status, headers, content = FAULTS.get(fault or "", (200, {}, json.dumps))
            text = content(reply).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text) + (99 if fault == "cut off" else 0)))
            self.end_headers()
            self.wfile.write(text)
            self.close_connection = fault is not None

        def handle(self) -> None:
            with suppress(ConnectionError, TimeoutError):  # the client has gone
                super().handle()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scripted.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def llama_cpp(gguf: str, threads: int = 1) -> Iterator[str]:
    """The address of llama.cpp's server with the weights of a file, in this process, until the end of the block."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = gguf
    settings.n_ctx, settings.n_parallel, settings.port = 1024, 2, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server
