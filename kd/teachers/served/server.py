"""The server of a teacher: a language model on its own device, its head, and the last hidden states of what is sent."""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import torch

from kd.errors import sentence
from kd.models.language_model import LanguageModel
from kd.teachers.heads import head_tensors
from kd.teachers.interface import NetworkTeacher
from kd.teachers.served.wire import TEACHER, VERSION, About, Reading, files_of, hidden_of, packed, sequences_of

LONGEST = 1 << 30  # bytes of a request
LOGITS = frozenset({"logits"})


class ServedModel:
    """A teacher as its server reads with it, one request after the other.

    Raises ValueError for a teacher that reads images.
    """

    def __init__(self, teacher: NetworkTeacher, device: torch.device):
        model: LanguageModel = teacher.model
        if model.vision is not None:
            raise ValueError("the teacher reads images, which are not sent over the wire; take a model of text alone")
        self.model, self.device, self._alone = model, device, Lock()
        self.tokens, self.seconds, self.requests = 0, 0.0, 0
        self.about = About(VERSION, teacher.identity(), model.vocabulary, model.head().weight.shape[1], model.packs)

    def frame(self) -> bytes:
        """The head, and the tokenizer's files."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.tokenizer.save_pretrained(folder)
            return packed({**head_tensors(self.model.head()), **files_of(Path(folder))})

    @torch.no_grad()
    def states(self, body: bytes, query: str) -> bytes:
        """The reply to a request for states. Raises ValueError for a malformed one."""
        reading = Reading.of(query)
        sequences = sequences_of(body, reading.side, self.about.vocabulary)
        kind = torch.autocast(
            self.device.type,
            dtype=getattr(torch, reading.autocast or "bfloat16"),
            enabled=bool(reading.autocast),
        )
        with self._alone:  # attention is exchanged for the time of a call
            started = time.perf_counter()
            with kind:
                logits = self.model(sequences.to(self.device), LOGITS).logits
            reply = hidden_of(logits, reading.dtype)
            self.tokens += sum(sequences.known_lengths)
            self.seconds, self.requests = self.seconds + time.perf_counter() - started, self.requests + 1
        return reply


def listening(served: ServedModel, host: str, port: int) -> ThreadingHTTPServer:
    """A server of the teacher, which `serve_forever` runs. Raises ValueError for an address that is not free."""

    class Bound(_Handler):
        desk = served

    return _listening(host, port, Bound)


def check_free(host: str, port: int) -> None:
    """Raises ValueError for an address that no server can listen at, before a model is prepared for it."""
    _listening(host, port, BaseHTTPRequestHandler).server_close()


def _listening(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    try:
        return _Server((host, port), handler)
    except (OSError, OverflowError) as error:  # the latter of a number that is no port
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ValueError(
            f"no server can listen at {host}:{port} ({reason.lower()}); take another --port, "
            "or --port 0 for any that is free"
        ) from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    desk: ServedModel
    protocol_version, timeout = "HTTP/1.1", 6 * 3600.0  # seconds that a connection may be idle

    def do_GET(self) -> None:
        """The teacher's name and sizes, or its head and tokenizer."""
        place = urlsplit(self.path).path
        if place == "/teacher":
            self._answer(lambda: json.dumps(asdict(self.desk.about)).encode())
        elif place == "/head":
            self._answer(self.desk.frame)
        else:
            self._send(404, b"this server has /teacher, /head and /states")

    def do_POST(self) -> None:
        """The states of sequences."""
        place, size = urlsplit(self.path), self.headers.get("Content-Length", "")
        if place.path != "/states" or not size.isdigit() or int(size) > LONGEST:
            self.close_connection = True  # the body was not read
            self._send(400, f"a request for /states has a Content-Length of at most {LONGEST} bytes".encode())
            return
        body = self.rfile.read(int(size))
        self._answer(lambda: self.desk.states(body, place.query))

    def _answer(self, make: Callable[[], bytes]) -> None:
        try:
            body, status = make(), 200
        except ValueError as error:
            body, status = sentence(error).encode(), 400
        except Exception as error:  # out of memory, a fault of the model: the client has the sentence
            body, status = sentence(error).encode(), 500
        self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
        with suppress(ConnectionError, TimeoutError):  # the client has gone
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.send_header(TEACHER, self.desk.about.teacher)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed for a request."""
