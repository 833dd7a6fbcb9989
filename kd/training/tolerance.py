"""Loggers that end their own logging when they fail, and not the run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger

METHODS = ("log_hyperparams", "log_metrics", "save", "finalize", "after_save_checkpoint", "log_graph")
L = TypeVar("L", bound=Logger)


@dataclass
class Failures:
    """The failures of one logger.

    Attributes:
        name: the logger's, in the group `logger`.
        failed: whether there was one, after which nothing is logged to it.
    """

    name: str
    failed: bool = field(default=False)


@dataclass(frozen=True)
class Tolerated:
    """A method of a logger that does nothing after a failure; the first one is printed."""

    method: Callable[..., Any]
    failures: Failures

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Call the method, unless the logger failed before."""
        if self.failures.failed:
            return
        try:
            self.method(*args, **kwargs)
        except Exception as error:
            self.failures.failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"caution: logger {self.failures.name} failed and logs no more: {reason}", flush=True)


def tolerant(logger: L, name: str) -> L:
    """The same logger, which logs no more after a failure: metrics.csv has all of its numbers."""
    failures = Failures(name)
    for method in METHODS:
        setattr(logger, method, Tolerated(getattr(logger, method), failures))
    return logger
