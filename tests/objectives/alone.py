"""The values of an objective without its metrics, for tests that are about nothing else."""

from collections.abc import Callable
from functools import wraps

from torch import Tensor

from kd.signals import separated


def values_of(objective: Callable) -> Callable[..., Tensor]:
    """The objective, which returns its values alone."""

    @wraps(objective)
    def alone(*signals, **named) -> Tensor:
        return separated(objective(*signals, **named))[0]

    return alone
