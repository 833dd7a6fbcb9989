"""`over_chunks`: any row-wise term, one head pass, no `[n, V]` tensor.

The rows are walked in chunks. In each, the student's logits are made, all terms are evaluated on them, and the
gradients of hidden states and head are taken at once, with the rows' final weights (mask x term weight / global
count) already known: the backward pass then only multiplies by a number. Per row and head weight that is 8 FLOP
(logits of both models, two gradient products) where recomputing in the backward pass takes 12-16.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd.kernels.logits import HeadLogits, Logits, finish, label_logprobs, product_dtype
from kd.kernels.products import times
from kd.kernels.sparse import SparseLogits, evaluated
from kd.types import Head

CHUNK = 128  # rows at least, of any vocabulary, for products of fewer are slow; on a GPU also those evaluated at a time
LOGITS = 48 * 2**20  # bytes of a model's logits in a chunk of `over_chunks`, if that is more rows
BLOCK = 8192  # ids; the gradient of the head is summed in pieces whose products stay in cache
PIECE = 2**20  # logits on which a CPU evaluates the terms at a time: a dozen temporaries of this size stay in cache


@torch.compiler.disable  # a compiled step breaks its graph here: the loop is no graph, and its products are the cost
def over_chunks(
    terms: Mapping[str, Callable],
    student: HeadLogits,
    signals: Mapping[str, Any],
    weights: Mapping[str, Float[Tensor, " n"]],
    wanted: Mapping[str, frozenset[str]],
    *,
    chunk: int | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " n"]]]:
    """sum over terms and rows of weights * values, and each term's detached values and metrics.

    Values stand under the name of the term, metrics (`kd.signals.separated`) under `<term>/<metric>`; a metric is
    missing where there are no rows.

    terms:   name -> row-wise objective (`kd.signals.is_row_wise`).
    student: hidden states of the loss rows and the head; both get gradients.
    signals: the signals that terms require beside the student's logits and log-probabilities. `*_logits` are
             `Logits` or `SparseLogits` (which terms see as K + 1 classes); other tensors have n rows; anything
             else is passed on as it is.
    weights: name -> final weight of each row.
    wanted:  name -> names of the signals that the term takes (`kd.signals.requires`).
    chunk:   rows at a time; None: `chunk_rows`.
    """
    chunk = chunk or chunk_rows(student.size, product_dtype(student.hidden))
    values: dict[str, Tensor] = {}  # allocated whole at the first piece: small pieces would fragment freed memory
    required = frozenset().union(*wanted.values())
    signals = {name: signal.cast() if isinstance(signal, Logits) else signal for name, signal in signals.items()}

    def others(logits: Tensor, rows: slice) -> dict[str, Any]:
        return _chunk_signals(logits, rows, signals, required - {"student_logprobs"})

    def evaluate(logits: Tensor, others: Mapping[str, Any], rows: slice) -> Tensor:
        supply = {**others, "student_logits": logits}
        if "student_logprobs" in required:
            supply["student_logprobs"] = label_logprobs(logits, signals["labels"][rows])
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        for name, term in terms.items():
            value, metrics = evaluated(term, {signal: supply[signal] for signal in wanted[name]})
            found = {name: value.detach(), **{f"{name}/{metric}": x for metric, x in metrics.items()}}
            for key, x in found.items():
                if key not in values:
                    values[key] = x.new_full((student.n,), math.nan)
                values[key][rows] = x
            total = total + (value * weights[name][rows]).sum()
        return total

    learn = torch.is_grad_enabled()  # never true inside a Function
    scale = _scale(weights) if product_dtype(student.hidden) == torch.float16 and student.n else None
    loss = _GradientInForward.apply(
        (others, evaluate), chunk, learn, scale, student.head, student.hidden, student.head.weight, student.head.bias
    )
    empty = student.hidden.new_zeros(0, dtype=torch.float32)
    return loss, {name: empty for name in terms} | values


def _scale(weights: Mapping[str, Float[Tensor, " n"]]) -> Float[Tensor, ""]:
    """The power of two by which the largest weight becomes 1 to 2: the gradients of rows that weigh a millionth each
    would be 0 in float16. (A loss is scaled only when the backward pass begins, and these are made before.)"""
    largest = torch.stack([w.detach().abs().max() for w in weights.values()]).max()
    return torch.exp2(-largest.float().clamp(min=2.0**-100).log2().floor())


def chunk_rows(vocabulary: int, dtype: torch.dtype) -> int:
    """Rows whose logits, `[rows, vocabulary]` of that type, exist at a time."""
    return max(CHUNK, LOGITS // (vocabulary * dtype.itemsize))


def slices(n: int, chunk: int) -> Iterator[slice]:
    """Slices of 0..n in pieces of `chunk`."""
    return (slice(start, min(start + chunk, n)) for start in range(0, n, chunk))


def _chunk_signals(logits: Tensor, rows: slice, signals: Mapping[str, Any], required: frozenset[str]) -> dict:
    supply: dict[str, Any] = {"student_logits": logits}
    for name in required - supply.keys():
        signal = signals[name]
        if isinstance(signal, SparseLogits):
            supply[name] = signal[rows]
        elif name.endswith("_logits"):
            supply[name] = _constant_rows(signal, rows)
        else:
            supply[name] = signal[rows] if isinstance(signal, Tensor) else signal
    return supply


@torch.no_grad()
def _constant_rows(logits: Logits, rows: slice) -> Tensor:
    return logits.rows(rows)


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: tuple[Callable, Callable],
        chunk: int,
        learn: bool,
        scale: Tensor | None,
        head: Head,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        dtype = product_dtype(hidden)
        h, w = hidden.to(dtype), weight.to(dtype)
        b = None if bias is None else bias.to(dtype)
        needs = [learn and need for need in ctx.needs_input_grad[5:]]
        accumulate = torch.promote_types(weight.dtype, torch.float32)
        grads = [
            torch.empty_like(hidden) if needs[0] else None,
            torch.zeros_like(weight, dtype=accumulate) if needs[1] else None,
            torch.zeros_like(bias, dtype=accumulate) if bias is not None and needs[2] else None,
        ]
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for rows in slices(len(hidden), chunk):
            z = times(h[rows], w, b)
            total += _value_and_gradient(terms, z, head, rows, any(needs), scale)
            if any(needs):
                _accumulate(grads, rows, z, h, w)
        ctx.save_for_backward(
            scale,
            *(
                g if g is None or x is None else g.to(x.dtype)
                for g, x in zip(grads, (hidden, weight, bias), strict=True)
            ),
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple:
        (factor,), (scale, *gradients) = grad_outputs, ctx.saved_tensors
        if scale is None and factor.device.type == "cpu" and factor == 1:  # nearly always; the head's gradient is large
            return (None, None, None, None, None, *gradients)
        if scale is not None:
            factor = factor / scale
        return (None, None, None, None, None, *(None if g is None else (g * factor).to(g.dtype) for g in gradients))


def _value_and_gradient(
    terms: tuple[Callable, Callable],
    z: Tensor,
    head: Head,
    rows: slice,
    needs_gradient: bool,
    scale: Tensor | None,
) -> Tensor:
    """The terms' weighted sum over one chunk; its gradient, times `scale`, overwrites `z`, which is not needed then."""
    others, evaluate = terms
    given = others(z, rows)
    total = z.new_zeros((), dtype=torch.promote_types(z.dtype, torch.float32))
    for piece in slices(len(z), max(1, PIECE // z.shape[1]) if z.device.type == "cpu" else CHUNK):
        there = slice(rows.start + piece.start, rows.start + piece.stop)
        part = {name: x[piece] if isinstance(x, Tensor | SparseLogits) else x for name, x in given.items()}
        with torch.set_grad_enabled(needs_gradient):
            logits = z[piece].detach().requires_grad_(needs_gradient)
            value = evaluate(finish(logits, head), part, there)
        total += value.detach()
        if value.requires_grad:
            z[piece] = torch.autograd.grad(value, logits, scale)[0]
        elif needs_gradient:  # no term depends on the student's logits
            z[piece] = 0
    return total


def _accumulate(grads: list[Tensor | None], rows: slice, dz: Tensor, h: Tensor, w: Tensor) -> None:
    hidden, weight, bias = grads
    if hidden is not None:
        hidden[rows] = times(dz, w.T).to(hidden.dtype)
    if weight is not None:
        if weight.dtype == dz.dtype:
            weight.addmm_(dz.T, h[rows])
        else:
            for ids in slices(len(weight), BLOCK):
                weight[ids].add_(dz[:, ids].T @ h[rows])
    if bias is not None:
        bias += dz.sum(0)
