"""The sections of `benchmarks.gpu` that take time and memory: the machine's limits, head, step, decode, memory.

Each is a generator of rows; a row's `share` is the least work of its case over the time and the limit measured here.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks import child, decoding, losses, machine, training
from benchmarks.scene import Row, Scene, Section, share

GIB = 2**30
EIGHT: dict[str, Any] = {  # Llama 3.1 8B's layers
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
ONE: dict[str, Any] = {  # Llama 3.2 1B, 16 layers
    **EIGHT,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}
SMALL: dict[str, Any] = {"vocab_size": 500, "hidden_size": 72, "intermediate_size": 96, "num_attention_heads": 9}
WARM = 2  # steps that are not counted


# ---- the machine -----------------------------------------------------------------------------------------------------


def limits(scene: Scene) -> Iterator[Row]:
    """The best matrix product in each precision, and copies within the device and from page-locked memory."""
    shapes = [(256, 256, 256)] if scene.tiny else [(8192, 8192, 8192), (8192, 4096, 128256), (8192, 4096, 14336)]
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        yield scene.attempt(f"product {name}", "torch", partial(_product, scene.device, dtype, shapes))
    size = 2**20 if scene.tiny else 2 * GIB
    yield scene.attempt("copy", "torch", partial(_copy, scene.device, scene.device, size))
    if scene.device == "cuda":
        yield scene.attempt("upload", "torch", partial(_copy, "cpu", scene.device, size))


def _product(device: str, dtype: torch.dtype, shapes: list[tuple[int, int, int]]) -> Row:
    best = 0.0
    for n, d, m in shapes:
        x, w = torch.randn(n, d, device=device).to(dtype), torch.randn(m, d, device=device).to(dtype)
        least = min(machine.seconds(partial(torch.nn.functional.linear, x, w), device, repeats=10, warm=3))
        best = max(best, 2 * n * d * m / least)
    return {"rate": best, "figure": best / 1e12, "unit": "TFLOP/s"}


def _copy(source: str, target: str, size: int) -> Row:
    """Bytes read and written a second; of an upload, bytes."""
    x = torch.zeros(size, dtype=torch.uint8, device=source)
    x = x.pin_memory() if source != target else x
    y = torch.empty(size, dtype=torch.uint8, device=target)
    rate = size * (2 if source == target else 1) / min(machine.seconds(lambda: y.copy_(x, non_blocking=True), target))
    return {"rate": rate, "figure": rate / 1e9, "unit": "GB/s"}


def extra_bytes(run: Callable[[], Any], device: str) -> int:
    """The peak of a call's memory beyond what was there: allocated on a GPU, else resident."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    child.forget_peak()
    before = child.resident()
    run()
    return child.peak() - before


# ---- the loss head ---------------------------------------------------------------------------------------------------


def head(scene: Scene) -> Iterator[Row]:
    """The head's loss and gradients in bf16, each library on the same numbers; 8192 rows of 4096 by 128 256 ids."""
    size = SMALL if scene.tiny else EIGHT
    rows, few = (48, [16]) if scene.tiny else (8192, [1024, 512])
    for n, objective in [(rows, "jsd"), (rows, "fkl"), (rows, "rkl"), *((one, "jsd") for one in few)]:
        shape = {"width": size["hidden_size"], "device": scene.device}
        given = losses.problem(n, size["vocab_size"], objective, "bf16", **shape)
        least = 8 * size["hidden_size"] * size["vocab_size"] * n
        for name, run in _heads(scene).items():
            given.forget()
            yield scene.attempt(f"{objective} {n} rows", name, partial(_head, scene, given, run, least))


def _heads(scene: Scene) -> Mapping[str, Callable]:
    tuned = {} if scene.tiny else {"liger compiled": partial(losses.liger, chunk=1024, compiled=True)}
    return {**losses.CONTENDERS, **tuned}


def _head(scene: Scene, given: losses.Problem, run: Callable, least: float) -> Row:
    def once() -> None:
        given.forget()
        run(given)

    extra = extra_bytes(once, scene.device)
    seconds = machine.spread(machine.seconds(once, scene.device))["median"]
    figure = {"figure": 1000 * seconds, "unit": "ms", "seconds": seconds, "gib": extra / GIB, "extra_bytes": extra}
    return {**figure, "share": share(least, seconds, scene.limit("product bf16"))}


# ---- a training step -------------------------------------------------------------------------------------------------


def step_case(scene: Scene) -> dict[str, Any]:
    """Layers of an 8B model, eight for the teacher and four for the student, so that all states fit into 80 GB."""
    case = {"precision": "bf16", "objective": "fkl", "lengths": "fixed", "device": scene.device, "steps": WARM + 4}
    if scene.tiny:
        return {**case, "layers": [2, 1], "size": SMALL, "batch": 3, "prompt": 6, "response": 5}
    return {**case, "layers": [8, 4], "size": EIGHT, "batch": 8, "prompt": 512, "response": 512}


def step(scene: Scene) -> Iterator[Row]:
    """An off-policy step, optimizer included: of one length, then of drawn lengths, of which ours reads no padding."""
    for lengths, names in (("fixed", ["ours", "trl", "liger", "plain"]), ("variable", ["ours", "trl"])):
        case = {**step_case(scene), "lengths": lengths}
        for name in names:
            yield scene.attempt(f"{lengths} lengths", name, partial(steps, scene, case, name))


def steps(scene: Scene, case: Mapping[str, Any], name: str) -> Row:
    """Seconds of a step, the tokens read in one, and the peak of the memory."""
    if scene.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    child.forget_peak()
    found = training.CONTENDERS[name](case)
    seconds = machine.spread(clock["wall"] for clock in found["times"][WARM:])["median"]
    peak = torch.cuda.max_memory_allocated() if scene.device == "cuda" else child.peak()
    tokens = sum(len(a) + len(b) - 1 for batch in training.conversations(case) for a, b in batch) / case["steps"]
    limit = scene.limit(f"product {case['precision']}")
    return {
        **{"figure": tokens / seconds, "unit": "tok/s", "seconds": seconds, "losses": found["losses"]},
        **{"gib": peak / GIB, "share": share(1e9 * training.least_gflop(case), seconds, limit)},
    }


def memory(scene: Scene) -> Iterator[Row]:
    """The peak of a step of long sequences, with all activations kept and with them recomputed; share of the device."""
    case = {**step_case(scene), "steps": WARM + 1}
    if not scene.tiny:
        case |= {"prompt": 1024, "response": 1024}
    total = torch.cuda.get_device_properties(0).total_memory if scene.device == "cuda" else None
    for name, changes in {"ours": {}, "ours recomputed": {"recomputes": True}}.items():
        row = scene.attempt("peak, long", name, partial(steps, scene, {**case, **changes}, "ours"))
        if "gib" in row:
            row |= {"figure": row["gib"], "unit": "GiB", "share": None if total is None else row["gib"] * GIB / total}
        yield row


# ---- text ------------------------------------------------------------------------------------------------------------


def decode_cases(scene: Scene) -> list[dict[str, Any]]:
    """A 1B model that generates for few and many prompts at a time."""
    shape = {"layers": 2, "size": SMALL, "new": 4} if scene.tiny else {"layers": 16, "size": ONE, "new": 64}
    return [
        {**shape, "rows": rows, "precision": "bf16", "device": scene.device}
        for rows in ((3,) if scene.tiny else (8, 64, 256))
    ]


def decode(scene: Scene) -> Iterator[Row]:
    """Text at temperature 1, ours against the library's `generate`."""
    for case, (name, make) in itertools.product(decode_cases(scene), decoding.CONTENDERS.items()):
        yield scene.attempt(f"{case['rows']} rows", name, partial(_decode, scene, case, make))


def _decode(scene: Scene, case: Mapping[str, Any], make: Callable) -> Row:
    once = make(case)
    seconds = min(machine.seconds(once, scene.device, repeats=2))
    return generated(scene, case, seconds)


def generated(scene: Scene, case: Mapping[str, Any], seconds: float) -> Row:
    """The row of a call that generated; its limit is bound by products, or by reading weights and states."""
    tokens, product, copy = case["rows"] * case["new"], scene.limit("product bf16"), scene.limit("copy")
    row = {"figure": tokens / seconds, "unit": "tok/s", "seconds": seconds}
    if product is None or copy is None:
        return row
    return {**row, "share": least_seconds(case, product, copy) / seconds}


def least_seconds(case: Mapping[str, Any], product: float, copy: float) -> float:
    """Of generating: the prompts' products, then of each token the slower of its products and of reading in bf16."""
    size = {**training.LLAMA, **case["size"]}
    width, rows, prompt = size["hidden_size"], case["rows"], decoding.PROMPT
    keys = width // size["num_attention_heads"] * size["num_key_value_heads"]
    layers = case["layers"] * width * (2 * width + 2 * keys + 3 * size["intermediate_size"])
    weights = layers + width * size["vocab_size"]
    states = 2 * 2 * case["layers"] * keys * rows * (prompt + case["new"] / 2)
    each = max(2 * weights * rows / product, (2 * weights + states) / copy)
    return 2 * layers * rows * prompt / product + case["new"] * each


SECTIONS: dict[str, Section] = {"limits": limits, "head": head, "step": step, "decode": decode, "memory": memory}
