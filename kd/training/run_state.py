"""The state of a run that its checkpoints hold beside Lightning's own."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from kd.rollouts import Rollout
from kd.training.budget import Budget, peak_memory_bytes
from kd.training.finiteness import stop_if_not_finite
from kd.training.metric_logging import Logged
from kd.types import Models


class RunState(Logged):
    """A training loop whose step, counters, means, rollout and teacher go into its checkpoints and come back."""

    rollout: Rollout
    models: Models

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state without frozen parameters (a LoRA student's base), which are restored from their source."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add, to weights, optimizers and schedules, the step, the counters, and each rank's means, not logged yet.

        Raises NotFinite instead of overwriting a good checkpoint with values that are not finite.
        """
        stop_if_not_finite(self)
        self.note_peak_memory()
        self.complete_means()
        started = time.perf_counter()
        rollout = self.rollout.state_dict()  # which may wait for responses under way
        self.add_cost(time.perf_counter() - started)
        sums = {
            kind: {name: self.by_rank(value) for name, value in sorted(values.items())}
            for kind, values in (("means", self.means), ("reports", self.reports))
        }
        carried: dict[str, Any] = {
            "rollout": self.gathered(rollout),
            "teacher": {} if self.models.teacher is None else self.models.teacher.carried_state(),
        }
        counted = {"step": self.step_count, "budget": asdict(self.budget), "active_steps": dict(self.active_steps)}
        counted |= {"unlogged": self.unlogged, "ended": self.ended}
        checkpoint["distillation"] = {**counted, **sums, **carried}

    def on_fit_end(self) -> None:
        """Note the peak memory of the training."""
        self.note_peak_memory()

    def note_peak_memory(self) -> None:
        """Keep the largest peak so far, over the parts of a run that was resumed."""
        self.budget.peak_memory_bytes = max(self.budget.peak_memory_bytes, peak_memory_bytes())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore everything that `on_save_checkpoint` wrote."""
        state = checkpoint["distillation"]
        self.step_count, self.budget = state["step"], Budget(**state["budget"])
        self.active_steps, self.unlogged = dict(state.get("active_steps", {})), state["unlogged"]
        self.ended = state.get("ended", False)
        for kind in ("means", "reports"):
            setattr(self, kind, {name: self._share(name, ranks) for name, ranks in state[kind].items()})
        saved = state["rollout"]
        if len(saved) != self.trainer.world_size:
            _check_alike(saved, self.trainer.world_size)
        self.rollout.load_state_dict(saved[self.global_rank % len(saved)])
        if self.models.teacher is not None:
            self.models.teacher.load_carried_state(state["teacher"])

    def _share(self, name: str, ranks: Tensor) -> Tensor:
        """This rank's share of sums that were saved rank by rank, perhaps of another number of ranks."""
        if len(ranks) == self.trainer.world_size or name == "grad_norm":  # which is the same on all
            return ranks[self.global_rank % len(ranks)]
        return ranks[self.global_rank :: self.trainer.world_size].sum(0)


def _check_alike(states: Sequence[Mapping[str, Any]], ranks: int) -> None:
    """Raises ValueError where a rollout keeps responses rank by rank, which another number of ranks cannot share."""
    if any(_has_buffer(state) for state in states):
        raise ValueError(
            f"the checkpoint holds a buffer of responses for each of {len(states)} ranks, and this run has {ranks}; "
            f"resume with trainer.devices={len(states)}"
        )


def _has_buffer(state: Mapping[str, Any]) -> bool:
    return "buffer" in state or ("writer" in state and _has_buffer(state["writer"]))
