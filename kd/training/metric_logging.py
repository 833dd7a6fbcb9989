"""The metrics that are logged in training: means over steps and ranks, sums kept on the device until then."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from kd.ranks import sum_over_hosts
from kd.training.budget import Budget
from kd.types import Reports


class Logged(lightning.LightningModule):
    """A training loop that counts its steps, and accumulates their metrics, sums them over ranks and logs them.

    means: by name, sums over the steps since the last flush. reports: the same of pairs (sum, count), see
    `kd.types.Reports`. Both are in the checkpoint, each rank's own. active_steps: for names that are not
    accumulated in every step, the number of their steps since the last flush, the same on all ranks.
    unlogged: steps since then.
    learning_rate: the student's in the last step.
    """

    step_count: int
    learning_rate: float
    budget: Budget

    def __init__(self, log_every: int):
        super().__init__()
        self.log_every = log_every
        self.means, self.reports = dict[str, Tensor](), dict[str, Tensor]()  # since the last flush
        self.active_steps, self.unlogged = dict[str, int](), 0
        self.ended = False  # by a callback, before its steps were done
        self.this_step = dict[str, Tensor]()  # of terms whose `after_step` takes their mean

    @property
    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """The scale of the loss in float16; None in any other precision."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def unscale(self, optimizer: Any) -> None:
        """Divide the gradients of one of Lightning's optimizers by that scale, before they are clipped."""
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(optimizer.optimizer)

    def sum_over_hosts(self, values: Tensor) -> Tensor:
        """Sum of a small tensor in the host's memory: no rank waits for its GPU."""
        return sum_over_hosts(values)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum of a small tensor; float64 where it is to be exact."""
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")  # type: ignore[return-value]

    def by_rank(self, value: Tensor) -> Tensor:
        """`[ranks ...]`: every rank's own `value`, exactly."""
        own = value.new_zeros(self.trainer.world_size, *value.shape)
        own[self.global_rank] = value
        return self.sum_over_ranks(own)

    def gathered(self, own: Any) -> list[Any]:
        """Every rank's `own`, on every rank."""
        if self.trainer.world_size == 1:
            return [own]
        ranks: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(ranks, own)
        return ranks

    def add_cost(self, seconds: float, money: float = 0.0) -> None:
        """Add to the budget the ranks' mean of `seconds`, so that all stop at the same step, and the sum of `money`."""
        total, price = self.sum_over_hosts(torch.tensor([seconds, money], dtype=torch.float64)).tolist()
        self.budget.seconds += total / self.trainer.world_size
        self.budget.money += price

    def accumulate(self, name: str, value: Tensor) -> None:
        """Add this rank's share of a mean; nothing leaves the device until `flush`."""
        self.means[name] = self.means.get(name, 0.0) + value
        if name in self.this_step:
            self.this_step[name] = self.this_step[name].to(value.device) + value

    def complete_means(self) -> None:
        """Add a zero for each name that other ranks have alone: a term without rows has no metrics."""
        for name in sorted({name for names in self.gathered(sorted(self.means)) for name in names}):
            self.means.setdefault(name, torch.zeros((), device=self.device))

    def flush(self) -> None:
        """Log the means over the steps since the last call, over all ranks; none of terms that were silent in all."""
        self.complete_means()
        norm = float(self.means.pop("grad_norm"))
        names = sorted(self.means)
        totals = self.sum_over_ranks(torch.stack([self.means[name].double() for name in names]))
        steps = totals.new_tensor([self.active_steps.get(term_of(name), self.unlogged) for name in names])
        metrics = dict(zip(names, (totals / steps).tolist(), strict=True))
        self.means, self.active_steps, self.unlogged = {}, {}, 0
        for name in sorted(self.reports):
            total, times = self.sum_over_ranks(self.reports.pop(name)).tolist()
            metrics |= {name: total / times} if times else {}
        metrics["tokens_per_second"] = self.budget.tokens / max(self.budget.seconds, 1e-9)
        beside = {name: metrics.pop(name) for name in list(metrics) if term_of(name) != name}
        beside |= {} if self.grad_scaler is None else {"loss_scale": self.grad_scaler.get_scale()}
        self.log_all("train", metrics)
        self.log_all("train", {"grad_norm": norm, "lr": self.learning_rate, **beside}, bar=False)

    def log_all(self, split: str, values: Mapping[str, float], bar: bool = True) -> None:
        """Log to the loggers, under the number of steps done; to the bar and to checkpoints through Lightning."""
        named = {f"{split}/{name}": value for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=self.step_count)
        self.log_dict(named, prog_bar=bar, logger=False)

    def record(self, reports: Mapping[str, tuple[float, float]]) -> None:
        """Add pairs (sum, count) to `reports`."""
        for name, pair in reports.items():
            self.reports[name] = self.reports.get(name, 0.0) + torch.tensor(pair, dtype=torch.float64)


def term_of(name: str) -> str:
    """The term whose mean is logged as `<term>`, or whose metric as `<term>/<metric>`."""
    return name.partition("/")[0]


def reports_of(parts: Sequence[Reports]) -> dict[str, tuple[float, float]]:
    """Their reports since the last ones (`kd.types.Reports`)."""
    return {n: pair for part in parts for n, pair in part.take_report().items()}


def listed(one_or_more: Any) -> list:
    """The argument as a list: Lightning returns one object without a list."""
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]
