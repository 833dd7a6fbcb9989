"""The optimizer of a run: AdamW, a warm-up, a schedule, a clip."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from kd.models.sharding import is_sharded

Rate = Annotated[float, Field(ge=1e-12, le=10)]  # AdamW moves each weight by about as much in a step
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean, which at 1 would never see a gradient


@dataclass(frozen=True)
class Optimization:
    """steps: optimizer steps. window: records per step, over micro-batches and ranks.

    warmup: share of the steps over which the learning rate rises to lr: of W such steps the k-th has k/W of it, the
    first lr/W. (The first step of transformers' own schedules has 0 and learns nothing.) After them the schedule is
    transformers': lr at step W + 1, and its end would be in the step after the last.

    lr: the largest of the schedule. weight_decay: decoupled, times the learning rate. beta1, beta2: decay of the means
    of the gradients and of their squares. clip: largest gradient norm, or None. AdamW itself does not depend on a
    loss's scale, clipping does; comparisons of objectives whose scales differ leave it off, or set an lr for each.
    """

    steps: Annotated[int, Field(ge=1, le=10**9)]
    window: Annotated[int, Field(ge=1, le=2**20)]
    lr: Rate
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    clip: Annotated[float, Field(ge=1e-6, le=1e6)] | None = 1.0

    def build(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float | None = None,
        *,
        fraction: Callable[[], float] | None = None,
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Build optimizer and schedule. Weight decay applies to matrices only, not to gains and biases.

        fraction: the run's progress, between 0 and 1, for a run that may end before its last step.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=lr or self.lr,
            betas=(self.beta1, self.beta2),
            fused=len({is_sharded(p) for p in trained}) < 2,  # one operation takes either kind
            foreach=False,
        )
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        warmup = round(self.warmup * self.steps)
        theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=self.steps)
        factor = theirs.lr_lambdas[0]
        for group in optimizer.param_groups:  # as without a schedule
            group["lr"] = group.pop("initial_lr")

        def at(step: int) -> float:
            done = step if fraction is None else max(step, fraction() * self.steps)
            return float(factor(min(done + 1, warmup) if done < warmup else done))

        return optimizer, LambdaLR(optimizer, at)
