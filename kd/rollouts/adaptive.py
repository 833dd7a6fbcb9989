"""More of the student's own responses when it has become worse on the given ones (arXiv 2402.03898, section 3.2)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch

from kd.data.sequences import Encoder
from kd.ranks import sum_over_ranks
from kd.rollouts import Rollout
from kd.rollouts.buffer import Buffer, merge, without_logprobs
from kd.rollouts.offline import Offline
from kd.rollouts.wrapping import Wrapping, records_of
from kd.seeding import uniform
from kd.types import Batch, Models, Progress

Branch = Literal["write", "replay", "given"]
CPU = torch.device("cpu")
BRANCHES: tuple[Branch, ...] = ("write", "replay", "given")
Decay = Literal["decreasing", "constant", "increasing"]
FRESH: Mapping[Decay, Callable[[float], float]] = {  # the share of generated responses that is new
    "decreasing": lambda fraction: 1 - fraction,
    "constant": lambda fraction: 0.5,
    "increasing": lambda fraction: fraction,
}


class Adaptive(Wrapping):
    """DistiLLM's scheduler with its replay buffer, as released.

    At step s of S (from 1), u is drawn from [0, 1), and with phi the threshold and psi = phi (1 - s / S):

        u < psi, or u < phi while the buffer is not full:  the writer generates, and its responses are kept
        else u < phi:                                      as many groups as the window has, drawn from the buffer
        else:                                              the window as it is

    After a validation, phi grows by `increase` if the metric is at least `tolerance` above the level, which then
    becomes the new level; a metric that falls does not lower it. The first validation sets the level: with
    `checkpoint.validate_first`, as in the paper's code, the one before training. (That code draws u for each
    micro-batch and rank.)

    u is a function of seed and step, so the same on all ranks; phi goes by metrics over all ranks; a buffer counts as
    full when every rank's is: all ranks take the same branch. Each rank has a buffer of its own. It keeps ids, masks,
    the source of each response, and its rewards; the teacher's outputs are computed again.

    Args:
        writer: the rollout that generates: the student, on_policy.
        seed: of the draws.
        capacity: sequences in each rank's buffer.
        initial: phi before the first validation.
        increase: the amount that phi grows by, up to 1.
        metric: the name of a validation metric, lower is better.
        tolerance: in the metric's unit.
        written: the course of psi: "decreasing" as above, "constant" phi / 2, or "increasing" phi s / S.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by"})

    @staticmethod
    def passes_given(settings: Mapping[str, Any], written: bool) -> bool:
        """True: at every step whose draw is not below the threshold."""
        return True

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """Wherever the threshold is not exceeded."""
        return True

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """The writer's sides, and "other" for the records' own responses."""
        return None if written is None else written | {"other"}

    def __init__(
        self,
        writer: Rollout,
        *,
        seed: int,
        capacity: int = 1000,
        initial: float = 0.0,
        increase: float = 0.1,
        metric: str = "nll",
        tolerance: float = 0.1,
        written: Decay = "decreasing",
    ):
        super().__init__(writer)
        if not 0 <= initial <= 1:
            raise ValueError(f"rollout.initial={initial} is no probability; set it between 0 and 1")
        self.seed, self.increase, self.metric, self.tolerance = seed, increase, metric, tolerance
        self.fresh_share = FRESH[written]
        self.threshold = initial  # phi
        self.level: float | None = None  # of the metric; a value above it raises the threshold
        self.buffer, self.given = Buffer(capacity), Offline()
        self.took = dict.fromkeys(BRANCHES, 0.0)  # steps since the last report
        self.age = [0.0, 0.0]  # of the sequences read from the buffer: steps x sequences, and sequences

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window of one of the three branches."""
        records = records_of(window)
        if len(records) * self.samples > self.buffer.capacity:
            raise ValueError(
                f"rollout.capacity={self.buffer.capacity} is less than the {len(records) * self.samples} sequences of "
                "a window, which are to be drawn from it; raise it, or lower optim.window"
            )
        u = uniform(self.seed, "adaptive", progress.step)
        branch = self.branch(u, progress, models.student.network.device)
        self.took[branch] += 1
        if branch == "given":
            return self.given(window, models, progress, encoder)
        if branch == "write":
            written = self.writer(window, models, progress, encoder)
            self.buffer.add([without_logprobs(batch) for batch in written], progress.step)
            return written
        groups = self.buffer.sample(len(records))
        self.age[0] += sum(group.size * (progress.step - group.step) for group in groups)
        self.age[1] += sum(group.size for group in groups)
        return merge([group.batch for group in groups], encoder)

    def branch(self, u: float, progress: Progress, device: torch.device = CPU) -> Branch:
        """The branch that a draw of u selects, at the step after `progress.step` steps."""
        if u < self.threshold * self.fresh_share(replace(progress, step=progress.step + 1).fraction):
            return "write"
        if u >= self.threshold:
            return "given"
        rooms = torch.tensor(float(self.buffer.has_room(self.samples)), device=device)  # reached by all ranks or none
        return "write" if sum_over_ranks(rooms) > 0 else "replay"

    def after_validation(self, metrics: Mapping[str, float]) -> None:
        """Raises the threshold if the metric has become worse."""
        super().after_validation(metrics)
        if self.metric not in metrics:
            raise ValueError(
                f"rollout.metric={self.metric} is not measured in validation; known: {', '.join(sorted(metrics))}"
            )
        value = metrics[self.metric]
        if self.level is None:
            self.level = value
        elif value >= self.level + self.tolerance:
            self.threshold, self.level = min(self.threshold + self.increase, 1.0), value

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The writer's report, the threshold, the share of steps by branch, and the age of replayed responses."""
        steps, (age, count) = sum(self.took.values()), self.age
        report = {
            "adaptive_threshold": (self.threshold * steps, steps),
            "adaptive_written_share": (self.took["write"], steps),
            "adaptive_replayed_share": (self.took["replay"], steps),
            "adaptive_staleness": (age, count),
        }
        self.took, self.age = dict.fromkeys(BRANCHES, 0.0), [0.0, 0.0]
        return {**super().take_report(), **report}

    def state_dict(self) -> dict[str, Any]:
        """See `kd.rollouts.Rollout`; also the buffer, and the writer's state."""
        return {**super().state_dict(), "buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.buffer.load_state_dict(state["buffer"])
