"""A target that moves from the student to the teacher while the student learns.

At t = 1 the target is the teacher, and the value forward KL: with p = (1/2, 1/2) and q = (1/4, 3/4) 1/2 log(4/3) =
0.1438. Without the adaptive part t is linear: from 0.4 to 1 it is 0.7 at half of the run.

>>> import torch
>>> from kd.objectives.interpolated import TAID
>>> from kd.types import Progress
>>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
>>> TAID(t_start=1.0)(q.log(), p.log())
tensor([0.1438])
>>> taid = TAID(t_start=0.4, t_end=1.0, adaptive=False)
>>> taid.after_step(2.0, Progress(step=50, total=100))
>>> taid.t
tensor(0.7000)
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kd.objectives.divergence import Fraction, Positive, kl, log_probs, temperature_scale
from kd.types import Progress


class TAID(nn.Module):
    """KL(p_t || q), p_t = softmax((1 - t) z_q + t z_p), z_q held constant; so dL/dz = q - p_t. arXiv 2501.16937.

    After each optimizer step n, of `value` L_n:

        m <- beta m + (1 - beta) (L_{n-1} - L_n) / L_{n-1}
        t <- min(t_end, max(t_start + (t_end - t_start) progress, t + alpha sigmoid(m) (1 - t)))

    so t moves at least linearly, and faster while the loss falls; the first loss is only stored.
    `adaptive=False` leaves the linear schedule. L_n is the mean over the whole window and all ranks, so every rank has
    the same t (the authors' code uses each rank's own micro-batch). t, m and L are buffers: a resumed run goes on as
    if it had not stopped.

    Args:
        t_start: t at the first step, 0 (the student itself, no gradient) to 1 (forward KL), at most t_end. 0.4 in the
            authors' scripts for Phi-3, 0.2 for other pairs.
        t_end: largest t, which the last step has, t_start to 1. 1 in the paper.
        alpha: largest step of t beyond the linear schedule, 0 to 1; 0: the linear schedule. 5e-4 in the paper.
        beta: momentum of the loss's relative change, 0 to 1; 0: the last step's alone, 1: m stays 0. 0.99 in the paper.
        adaptive: move t faster while the loss falls; false: the linear schedule alone.
        cross_entropy: report -sum p_t log q, as the authors' code does; same gradient, but a loss that is larger by
            the entropy of p_t falls by a smaller share, so that t moves differently.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """

    def __init__(
        self,
        *,
        t_start: Fraction = 0.4,
        t_end: Fraction = 1.0,
        alpha: Fraction = 5e-4,
        beta: Fraction = 0.99,
        adaptive: bool = True,
        cross_entropy: bool = False,
        temperature: Positive = 1.0,
        temperature_squared: bool = False,
    ):
        super().__init__()
        if t_start > t_end:
            raise ValueError(f"t_start={t_start} lies above t_end={t_end}; t only grows, so set t_start <= t_end")
        self.t_start, self.t_end, self.alpha, self.beta = t_start, t_end, alpha, beta
        self.adaptive, self.cross_entropy = adaptive, cross_entropy
        self.temperature, self.scale = temperature, temperature_scale(temperature, temperature_squared)
        self.t: Tensor
        self.momentum: Tensor
        self.previous_loss: Tensor
        self.register_buffer("t", torch.tensor(float(t_start)))
        self.register_buffer("momentum", torch.tensor(0.0))
        self.register_buffer("previous_loss", torch.tensor(math.inf))  # inf: no step yet

    def forward(
        self, student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"]
    ) -> Float[Tensor, "*n"]:
        """Nats per row."""
        p, q = log_probs(teacher_logits, self.temperature), log_probs(student_logits, self.temperature)
        with torch.no_grad():  # log-probabilities differ from logits by a constant, which softmax takes away
            target = torch.lerp(q, p.to(q.dtype), self.t.to(q.dtype)).log_softmax(-1)
        value = -(target.exp() * q).sum(-1) if self.cross_entropy else kl(target, q)
        return value * self.scale

    def after_step(self, value: float, progress: Progress) -> None:
        """Move t; `value` is the mean loss of the optimizer step that has just been made."""
        t = self.t_start + (self.t_end - self.t_start) * progress.fraction
        if self.adaptive:
            t = max(t, self._advanced(value))
        self.t.fill_(min(t, self.t_end))

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The current t."""
        return {"taid_t": (self.t.item(), 1.0)}

    def _advanced(self, value: float) -> float:
        """t after its adaptive part; updates momentum and the previous loss."""
        t, previous = self.t.item(), self.previous_loss.item()
        if not math.isfinite(value):
            return t  # one overflow must not stay in the momentum
        self.previous_loss.fill_(value)
        if not math.isfinite(previous):
            return t
        change = (previous - value) / previous if previous != 0 else 0.0
        self.momentum.mul_(self.beta).add_((1 - self.beta) * change)
        return t + self.alpha * torch.sigmoid(self.momentum).item() * (1 - t)
