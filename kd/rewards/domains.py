"""Advantages from several teachers, brought to one scale over their domains."""

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from kd.ranks import sum_over_ranks
from kd.rewards.log_ratio import LogRatio
from kd.types import Batch, Models

Bound = Annotated[float, Field(gt=0, le=1e6)]


class DomainNormalised(LogRatio):
    """Advantages A_t = w_d (log p_d(y_t) - log q_old(y_t)), w_d = clip(sigma / sigma_d, low, high), of domain d with
    teacher p_d: DN-MOPD, arXiv 2609.35347.

    sigma_d is the standard deviation (of the population) of the log-ratios at the step's response tokens of domain d,
    over all ranks; sigma that over all domains. A domain whose teacher disagrees more does not take the update over;
    signs stay as they are. w_d = 1 where either is 0, or is of fewer than two tokens. With low = high = 1 it is
    label-routed MOPD (arXiv 2606.30406), and with the objective `policy_gradient` the loss of `opd`. The domain of a
    response is the member of teacher=routed that reads it.

    Logged: `sampled_reverse_kl`, for each domain `sampled_reverse_kl/NAME` (the mean of log q_old - log p_d, in nats a
    token), and `domain_weight/NAME` (w_d).

    Args:
        low, high: bounds on w_d. 0.25 and 4 in the paper.

    Raises:
        ValueError: bounds out of order.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"advantages"})
    of_domains: ClassVar[bool] = True

    def __init__(self, *, low: Bound = 0.25, high: Bound = 4.0):
        super().__init__(length_normalised=False, discount=0.0, scale=1.0, clip=None, whiten=False)
        if low > high:
            raise ValueError(f"reward.low={low} is above reward.high={high}; exchange the two")
        self.low, self.high = low, high
        self._domains: dict[str, list[float]] = {}  # tokens, sum of log-ratios, steps and sum of w_d, since the report

    @torch.no_grad()
    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The same batches with `advantages`, scaled over the whole step."""
        names = list(models.teacher.domains)
        found = super().__call__(batches, models)
        owners = [models.teacher.owners(batch) for batch in found]
        sums = torch.zeros(len(names), 3, dtype=torch.float64)
        for batch, owner in zip(found, owners, strict=True):
            sums += _moments(batch, owner, len(names))
        sums = sum_over_ranks(sums.to(models.student.network.device)).cpu()
        weights = self.weights(sums)
        self._note(names, sums, weights)
        return [_scaled(batch, weights[owner]) for batch, owner in zip(found, owners, strict=True)]

    def weights(self, sums: Float[Tensor, "D 3"]) -> Float[Tensor, " D"]:
        """w_d of domains whose tokens, log-ratios and squared log-ratios sum up to `sums`."""
        spread, of_all = deviation(sums), deviation(sums.sum(0, keepdim=True))
        weights = (of_all / spread).clamp(self.low, self.high)
        return torch.where((spread > 0) & (of_all > 0), weights, 1.0)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The report of `LogRatio`, and each domain's sampled reverse KL and weight."""
        report = super().take_report()
        for name, (tokens, total, steps, weight) in self._domains.items():
            report[f"sampled_reverse_kl/{name}"] = (-total, tokens)
            report[f"domain_weight/{name}"] = (weight, steps)
        self._domains = {name: [0.0] * 4 for name in self._domains}
        return report

    def _note(self, names: list[str], sums: Float[Tensor, "D 3"], weights: Float[Tensor, " D"]) -> None:
        for name, (tokens, total, _), weight in zip(names, sums.tolist(), weights.tolist(), strict=True):
            before = self._domains.setdefault(name, [0.0] * 4)
            self._domains[name] = [a + b for a, b in zip(before, (tokens, total, 1.0, weight), strict=True)]


def deviation(sums: Float[Tensor, "D 3"]) -> Float[Tensor, " D"]:
    """The standard deviation of each row's numbers, given their count, sum and sum of squares; 0 of fewer than two."""
    count, total, squares = sums.T
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    return torch.where(count >= 2, variance.sqrt(), 0.0)


def _moments(batch: Batch, owner: Int[Tensor, " B"], domains: int) -> Float[Tensor, "D 3"]:
    """Number, sum and sum of squares of the log-ratios at response tokens, by domain."""
    mask = batch.student.mask.cpu()
    assert batch.advantages is not None
    ratios = batch.advantages.cpu()[mask].double()
    row = owner[:, None].expand_as(mask)[mask]
    found = torch.stack([torch.ones_like(ratios), ratios, ratios.square()], -1)
    return torch.zeros(domains, 3, dtype=torch.float64).index_add(0, row, found)


def _scaled(batch: Batch, factors: Float[Tensor, " B"]) -> Batch:
    assert batch.advantages is not None
    return replace(batch, advantages=batch.advantages * factors.to(batch.advantages)[:, None])
