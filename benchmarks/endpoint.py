"""The client of `teacher=endpoint` beside the limit of its server: one with a known limit, and llama.cpp.

python -m benchmarks.endpoint
python -m benchmarks.endpoint --service 0.02 --slots 32 --concurrency 1 8 32 64
python -m benchmarks.endpoint --gguf model.gguf        llama.cpp with these weights, beside requests without a client
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.head import Rows

WORDS = 200  # of each reply of the server with a known limit


class Slots:
    """A server with OpenAI's protocol that serves `slots` requests at a time, each in `service` seconds."""

    def __init__(self, slots: int, service: float):
        self.free, self.service, self.together, self.most = asyncio.Semaphore(slots), service, 0, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, which is kept alive."""
        try:
            while header := await reader.readuntil(b"\r\n\r\n"):
                lines = header.decode().lower().split("\r\n")
                length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
                await reader.readexactly(length)
                async with self.free:
                    self.together += 1
                    self.most = max(self.most, self.together)
                    await asyncio.sleep(self.service)
                    self.together -= 1
                writer.write(_reply(self.most))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()


def _reply(most: int) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * WORDS}}
    usage = {"prompt_tokens": 20, "completion_tokens": WORDS}
    body = json.dumps({"choices": [choice], "usage": usage, "most": most}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _run_server(slots: int, service: float, port: Any) -> None:
    async def run() -> None:
        server = await asyncio.start_server(Slots(slots, service).serve, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def known_limit(slots: int, service: float) -> Iterator[str]:
    """The address of a server of the first kind, in a process of its own, until the end of the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run_server, args=(slots, service, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.kill()
        process.join()


@contextmanager
def llama_cpp(gguf: Path, slots: int) -> Iterator[str]:
    """The address of llama.cpp's server with the weights of a file, until the end of the block."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port = str(gguf), 0
    settings.n_ctx, settings.n_parallel = 512 * slots, slots
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server


def requests(count: int, tokens: int) -> list[Any]:
    """So many different ones."""
    from kd.teachers.endpoint.client import Request
    from kd.teachers.endpoint.dialect import Dialect

    dialect = Dialect("served")
    questions = [f"Question {i}: which number follows {i}?" for i in range(count)]
    bodies = [dialect.body([{"role": "user", "content": text}], tokens, temperature=0.0, n=1) for text in questions]
    return [Request(f"question {i}", body, dialect.wanted(1)) for i, body in enumerate(bodies)]


def by_client(url: str, given: Sequence[Any], concurrency: int) -> dict[str, float]:
    """All requests by the client, each reply kept on disk. Raises AssertionError where a reply is missing."""
    from kd.teachers.endpoint.client import Client, Connection
    from kd.teachers.endpoint.limits import Purse
    from kd.teachers.endpoint.store import ReplyStore

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replies.sqlite"
        client = Client(url, "served", Connection(concurrency=concurrency), ReplyStore(path), Purse({}, {}, str(path)))
        with machine.Clock() as clock:
            found = client.replies(given)
        assert len(client.store) == len(found) == len(given)
        most = max(json.loads(reply.content).get("most", 0) for reply in found)
    return {**clock.row(), "in_flight": most}


def bare(url: str, given: Sequence[Any], concurrency: int) -> dict[str, float]:
    """The same requests by the standard library's connections, one for each thread; nothing is checked or kept."""
    place, own = urlsplit(url), threading.local()

    def send(request: Any) -> int:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(place.hostname or "", place.port)
        body, kind = json.dumps(request.body), {"Content-Type": "application/json"}
        own.connection.request("POST", f"{place.path}/chat/completions", body, kind)
        return int(json.loads(own.connection.getresponse().read()).get("most", 0))

    with machine.Clock() as clock, ThreadPoolExecutor(concurrency) as pool:
        most = max(pool.map(send, given))
    return {**clock.row(), "in_flight": most}


def compared(rows: Rows, url: str, case: dict[str, Any], options: argparse.Namespace, table: Table) -> None:
    """One line of the table for each concurrency: client and bare requests in turn."""
    for concurrency in options.concurrency:
        given = requests(max(options.least, concurrency * options.rounds), options.tokens)
        found = {name: way(url, given, concurrency) for name, way in (("bare", bare), ("client", by_client))}
        rates = {name: len(given) / said["wall"] for name, said in found.items()}
        limit = rates["bare"]
        if case["service"]:
            limit = min(case["slots"], concurrency) / case["service"]
        for name, said in found.items():
            rows.add({"kind": "time", **case, "contender": name, "concurrency": concurrency, "n": len(given)}, said)
        table.add_row(
            case["server"],
            str(concurrency),
            f"{found['client']['in_flight']:.0f}" if case["service"] else "",
            f"{limit:.1f}",
            f"{rates['bare']:.1f}",
            f"{rates['client']:.1f}",
            f"{rates['client'] / limit:.2f}",
            f"{1000 * found['client']['cpu'] / len(given):.1f}",
        )


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """Both servers, one table."""
    rows = Rows(options.out, machine.described())
    table = Table(title="requests a second")
    for column in ("server", "concurrency", "in flight", "limit", "bare", "client", "client / limit", "CPU ms"):
        table.add_column(column, justify="right")
    with known_limit(options.slots, options.service) as url:
        case = {"server": "known", "slots": options.slots, "service": options.service}
        compared(rows, url, case, options, table)
    if options.gguf is not None:
        with llama_cpp(options.gguf, options.slots) as url:
            compared(rows, url, {"server": "llama.cpp", "slots": options.slots, "service": None}, options, table)
    console.print(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endpoint", description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=32, help="requests that the server serves at a time")
    parser.add_argument("--service", type=float, default=0.2, help="seconds for each, of the server with a known limit")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=10, help="requests for each that is in flight")
    parser.add_argument("--least", type=int, default=20, help="requests of a measurement, at least")
    parser.add_argument("--tokens", type=int, default=32, help="the longest response of llama.cpp")
    parser.add_argument("--gguf", type=Path, help="weights for llama.cpp; without: the server with a known limit alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "endpoint-cpu.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(benchmark(_parser().parse_args(sys.argv[1:]), Console(width=None if sys.stdout.isatty() else 100)))
