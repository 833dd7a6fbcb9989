"""The time that a checkpoint waits for responses under way belongs to the run."""

import time
from types import SimpleNamespace
from typing import Any

from kd.training.budget import Budget
from kd.training.run_state import RunState


class Waiting:
    """A rollout whose checkpoint waits a fifth of a second."""

    def state_dict(self) -> dict[str, Any]:
        time.sleep(0.2)
        return {"attributes": {}}


def test_the_wait_of_a_checkpoint_is_in_the_seconds_of_the_budget(monkeypatch):
    monkeypatch.setattr("kd.training.run_state.stop_if_not_finite", lambda module: None)
    module = RunState(log_every=1)
    monkeypatch.setattr(RunState, "trainer", SimpleNamespace(world_size=1))
    module.rollout, module.models = Waiting(), SimpleNamespace(teacher=None)
    module.step_count, module.budget = 3, Budget(seconds=1.0)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    saved = checkpoint["distillation"]
    assert saved["rollout"] == [{"attributes": {}}]
    assert saved["budget"]["seconds"] == module.budget.seconds >= 1.2
