"""The head's loss and gradients by each library, on the same hidden states and head weights.

Each contender takes a `Problem` and returns the mean loss over its rows; gradients land in `hidden.grad` and
`weight.grad`. In bf16 the student's tensors are float32 under autocast and the teacher's are bfloat16, as in
mixed-precision training with a teacher loaded in bfloat16.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CONF = Path(__file__).parent.parent / "conf"
BETA = {"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}  # the peers' name for these objectives
WIDTH = 576


@dataclass
class Problem:
    """n rows: student (with gradients) and teacher (without)."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    objective: str
    bf16: bool

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.hidden)

    def autocast(self) -> AbstractContextManager:
        """bfloat16 products, if that is asked for."""
        return torch.autocast(self.hidden.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def forget(self) -> None:
        """No gradients."""
        self.hidden.grad = self.weight.grad = None


def problem(
    rows: int,
    vocabulary: int,
    objective: str,
    precision: str,
    seed: int = 0,
    *,
    width: int = WIDTH,
    device: str = "cpu",
) -> Problem:
    """Logits of standard deviation 2.4, independent of each other: about 5 nats of forward KL."""
    drawn: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    scale = 2.4 / width**0.5
    hidden, taught = (torch.randn(rows, width, **drawn) for _ in range(2))
    weight, teaching = (torch.randn(vocabulary, width, **drawn).mul_(scale) for _ in range(2))
    bf16 = precision == "bf16"
    if bf16:
        taught, teaching = taught.bfloat16(), teaching.bfloat16()
    return Problem(hidden.requires_grad_(), weight.requires_grad_(), taught, teaching, objective, bf16)


# ---- contenders ------------------------------------------------------------------------------------------------------


def ours(given: Problem) -> Tensor:
    """`over_chunks`, with the objective of conf/objective, as the training step calls it."""
    from kd.kernels import over_chunks
    from kd.kernels.logits import HeadLogits
    from kd.signals import requires
    from kd.types import Head

    loss = objective(given.objective)
    with given.autocast():
        total, _ = over_chunks(
            {given.objective: loss},
            HeadLogits(given.hidden, Head(given.weight)),
            {"teacher_logits": HeadLogits(given.teacher_hidden, Head(given.teacher_weight))},
            {given.objective: given.hidden.new_full((given.n,), 1 / given.n, dtype=torch.float32)},
            {given.objective: requires(loss)},
        )
    total.backward()
    return total.detach()


@lru_cache
def objective(name: str) -> Callable:
    """The term of conf/objective/<name>.yaml at temperature 1."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    term = OmegaConf.load(CONF / "objective" / f"{name}.yaml")[name]
    shared = {"temperature": 1.0, "temperature_squared": False}
    return instantiate(OmegaConf.create({**shared, "term": term}).term.loss)


def plain(given: Problem) -> Tensor:
    """All logits of both models, log-softmax in float32, `F.kl_div`, autograd."""
    student, teacher = (z.log_softmax(-1) for z in _logits(given))
    divergence = _plain_divergence(student, teacher, BETA[given.objective])
    loss = divergence / given.n
    loss.backward()
    return loss.detach()


def _plain_divergence(q: Tensor, p: Tensor, beta: float) -> Tensor:
    if beta == 0:
        return F.kl_div(q, p, reduction="sum", log_target=True)
    if beta == 1:
        return F.kl_div(p, q, reduction="sum", log_target=True)
    m = torch.logaddexp(q + torch.tensor(1 - beta).log(), p + torch.tensor(beta).log())
    kl = [F.kl_div(m, x, reduction="sum", log_target=True) for x in (p, q)]
    return beta * kl[0] + (1 - beta) * kl[1]


def _logits(given: Problem) -> tuple[Tensor, Tensor]:
    """As a model's forward returns them in mixed precision: float32."""
    with given.autocast():
        student = F.linear(given.hidden, given.weight)
        with torch.no_grad():
            teacher = F.linear(given.teacher_hidden, given.teacher_weight)
    return student.float(), teacher.float()


def trl(given: Problem) -> Tensor:
    """`GKDTrainer.generalized_jsd_loss` on all logits, labels all valid."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher = _logits(given)
    labels = torch.zeros(1, given.n, dtype=torch.long, device=student.device)
    loss = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels, beta=BETA[given.objective])
    loss.backward()
    return loss.detach()


def trl_chunked(given: Problem) -> Tensor:
    """TRL's `ChunkedDivergenceFunction`; off a GPU it runs its torch form."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    teacher = given.teacher_hidden, given.teacher_weight, None
    with given.autocast():
        rows, _ = ChunkedDivergenceFunction.apply(given.hidden, given.weight, None, *teacher, BETA[given.objective])
    loss = rows.mean()
    loss.backward()
    return loss.detach()


def liger(given: Problem, chunk: int = 128, compiled: bool = False) -> Tensor:
    """Liger's chunked linear JSD without its cross-entropy half; its defaults are chunk 1024 and compiled."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    settings: dict[str, Any] = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "beta": BETA[given.objective]}
    fused = LigerFusedLinearJSDLoss(**settings, compiled=compiled, chunk_size=chunk)
    student, teacher = (given.hidden, given.weight), (given.teacher_hidden, given.teacher_weight)
    if given.bf16:  # it multiplies what it is given, whatever autocast says
        student = tuple(x.bfloat16() for x in student)
    loss = fused(*student, *teacher, torch.zeros(given.n, dtype=torch.long, device=student[0].device))
    loss.backward()
    return loss.detach()


CONTENDERS: dict[str, Callable[[Problem], Tensor]] = {
    "ours": ours,
    "plain": plain,
    "trl": trl,
    "trl_chunked": trl_chunked,
    "liger": liger,
}
SETTINGS = {
    "ours": "kd.kernels.over_chunks, objective from its yaml; freed memory kept, as run.py does",
    "plain": "all logits, float32 log-softmax, F.kl_div, autograd",
    "trl": "GKDTrainer.generalized_jsd_loss, labels all valid",
    "trl_chunked": "ChunkedDivergenceFunction, its torch form where there is no Triton",
    "liger": "LigerFusedLinearJSDLoss(weight_hard_loss=0, compiled=False, chunk_size=128)",
}


# ---- the truth -------------------------------------------------------------------------------------------------------


def reference(given: Problem, chunk: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and gradients of hidden states and head, on the CPU in float64 by the closed forms of docs/objectives.

    dL/dz = q - p (forward KL), q (log q/p - KL) (reverse), (1 - b) q (log q/m - KL(q || m)) (JSD).
    """
    h, w, th, tw = (
        x.detach().cpu().double() for x in (given.hidden, given.weight, given.teacher_hidden, given.teacher_weight)
    )
    total, dh, dw = torch.zeros((), dtype=torch.float64), torch.empty_like(h), torch.zeros_like(w)
    for start in range(0, len(h), chunk):
        rows = slice(start, start + chunk)
        q, p = (h[rows] @ w.T).log_softmax(-1), (th[rows] @ tw.T).log_softmax(-1)
        value, dz = _closed_form(q, p, BETA[given.objective])
        total += value.sum() / given.n
        dh[rows], dw = dz @ w / given.n, dw.addmm_(dz.T, h[rows], alpha=1 / given.n)
    return total, dh, dw


def _closed_form(q: Tensor, p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    if beta == 0:
        return (p.exp() * (p - q)).sum(-1), q.exp() - p.exp()
    m = p if beta == 1 else ((1 - beta) * q.exp() + beta * p.exp()).log()
    own = (q.exp() * (q - m)).sum(-1)
    if beta == 1:
        return own, q.exp() * (q - p - own[:, None])
    value = beta * (p.exp() * (p - m)).sum(-1) + (1 - beta) * own
    return value, (1 - beta) * q.exp() * (q - m - own[:, None])


def deviations(given: Problem, contender: Callable[[Problem], Tensor], truth: tuple[Tensor, ...]) -> dict[str, float]:
    """Of loss and gradients from the truth, relative in norm."""
    given.forget()
    found = (contender(given), given.hidden.grad, given.weight.grad)
    names = ("loss", "hidden", "weight")
    pairs = zip(names, found, truth, strict=True)
    return {name: float((a.cpu().double() - b).norm() / b.norm()) for name, a, b in pairs}
