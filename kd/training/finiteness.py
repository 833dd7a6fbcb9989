"""Checks that all values of a run stay finite: terms, loss, gradient norm and weights, step by step."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd.models.sharding import total_norm
from kd.schedules import Schedule
from kd.training.optimization import Optimization
from kd.training.terms import Term

NEVER = torch.iinfo(torch.int64).max
LOSS, GRADIENT, WEIGHTS = "loss", "grad_norm", "weights"  # beside the names of the terms
OverRanks = Callable[[Tensor], Tensor]


class NotFinite(ValueError):
    """The first value of a run that is not finite, the step in which it appeared, and the remedies that are left."""


class Finiteness:
    """The first step in which a value was not finite, kept on the device: no step waits for it.

    names: the terms of the objective. The loss, the gradient norm and the norm of the trained weights come after them,
    so that the first name with such a value is the cause of those behind it.
    """

    def __init__(self, names: Iterable[str]):
        self.names = [*names, LOSS, GRADIENT, WEIGHTS]
        self._step: Tensor | None = None  # the first bad one, or NEVER
        self._values = torch.zeros(len(self.names), dtype=torch.float64)  # in that step, in the order of `names`

    @torch.no_grad()
    def note(
        self, step: int, values: Mapping[str, Tensor], weights: Iterable[nn.Parameter], *, skips: bool = False
    ) -> None:
        """Record step number `step`: the scalars of `values` by name, and the norm of `weights` after the step.

        A name that `values` lacks was not computed in this step and counts as finite; so does any gradient norm where
        the optimizer `skips` a step with one that is not.
        """
        norm = total_norm(weight.detach() for weight in weights).double()
        zero, values = norm.new_zeros(()), {n: x for n, x in values.items() if not (skips and n == GRADIENT)}
        now = torch.stack([*(values.get(name, zero).to(norm) for name in self.names[:-1]), norm])
        first = norm.new_full((), NEVER, dtype=torch.int64) if self._step is None else self._step
        new = (first == NEVER) & ~now.isfinite().all()
        self._step = torch.where(new, step, first)
        self._values = torch.where(new, now, self._values.to(now, non_blocking=now.device.type != "cpu"))

    def first(self, minimum: OverRanks, total: OverRanks) -> tuple[int, str, float] | None:
        """The first step of any rank whose values were not all finite, the name of the value, and the value itself.

        minimum, total: the smallest and the sum over ranks of a small tensor; all ranks call it after the same step.
        """
        if self._step is None:
            return None
        step = minimum(self._step.clone())
        values = total(torch.where(self._step == step, self._values, 0.0))
        if int(step) == NEVER:
            return None
        place = int((~values.isfinite()).nonzero()[0])
        return int(step), self.names[place], float(values[place])


def stop_if_not_finite(module: Any) -> None:
    """Raises NotFinite, on every rank alike, if a value of a step of the module is not finite."""
    minimum = partial(module.trainer.strategy.reduce, reduce_op="min")
    found = module.finiteness.first(minimum, module.sum_over_ranks)
    if found is None:
        return
    step, name, value = found
    what = {LOSS: "the loss", GRADIENT: "the gradient norm", WEIGHTS: "the norm of the student's weights"}
    at_fault = {key: term for key, term in module.objective.items() if name in (key, LOSS, GRADIENT)}
    ways = [way for key, term in at_fault.items() for way in _of_term(key, term)]
    if step > 1 or name == WEIGHTS:  # before the first update no rate is at fault
        ways += _of_optimizer(module.optimization)
    if (precision := module.trainer.precision).startswith(("16", "bf16")):
        ways.append(f"take trainer.precision=32-true instead of {precision}")
    remedy = ", or ".join(ways) or "check the objective's settings and the initial weights (python -m kd.doctor)"
    raise NotFinite(f"{what.get(name, f'the term {name}')} is {value} at step {step}, where the run stops; {remedy}")


def check_validation(metrics: Mapping[str, float], step: int) -> None:
    """Raises NotFinite for a metric of the validation split that is not finite after `step` steps."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NotFinite(
                f"validation/{name} is {value} after step {step}, though training was finite; lower optim.lr, or check "
                "the weights and the validation split (python -m kd.doctor)"
            )


def _of_term(name: str, term: Term) -> Iterator[str]:
    """The settings of the term that may have been too large."""
    settings = getattr(term.loss, "keywords", None) or vars(term.loss)
    if 0 < (temperature := settings.get("temperature", 1.0)) < 1:
        yield f"raise objective.{name}.loss.temperature={temperature:g}"
    ends = (term.weight.start, term.weight.end) if isinstance(term.weight, Schedule) else (term.weight,)
    if max(ends) > 1:
        yield f"lower objective.{name}.weight={term.weight}"
    if term.lr is not None:
        yield f"lower objective.{name}.lr={term.lr:g}"


def _of_optimizer(settings: Optimization) -> Iterator[str]:
    """The optimizer's settings that bound an update and are not set yet, and those that make it large."""
    if settings.clip is None:
        yield "set optim.clip=1.0"
    if settings.warmup == 0:
        yield "set optim.warmup=0.1"
    if settings.weight_decay > 0.1:
        yield f"lower optim.weight_decay={settings.weight_decay:g}"
    yield f"lower optim.lr={settings.lr:g}"
