"""The records' own responses."""

from collections.abc import Mapping
from typing import Any, ClassVar

from kd.data.sequences import Encoder
from kd.rewards import judged
from kd.rollouts import Rollout
from kd.types import Batch, Models, Progress


class Offline(Rollout):
    """The responses that the skill or an augmentation provided; no model generates during training."""

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by"})
    requires: ClassVar[frozenset[str]] = frozenset()
    keeps_responses: ClassVar[bool] = True  # so that the teacher's outputs on them can come from a cache

    @staticmethod
    def passes_given(settings: Mapping[str, Any], written: bool) -> bool:
        """True: at every step."""
        return True

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """At every step."""
        return True

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """The side "other" alone."""
        return frozenset({"other"})

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window as it is, scored where the reward can score given responses."""
        return judged(window, models)
