"""A mixture of the records' own responses and those of a writer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from kd.data.sequences import Encoder
from kd.rollouts import Rollout
from kd.rollouts.offline import Offline
from kd.rollouts.wrapping import Wrapping, records_of
from kd.schedules import Schedule
from kd.seeding import uniform
from kd.types import Batch, Models, Progress, Record


class Mixed(Wrapping):
    """Responses that a writer generates with probability lambda, else the records' own (arXiv 2306.13649, algorithm 1).

    A coin is a function of seed and step (and of the record, where each has its own): no generator is touched, and all
    ranks toss the same. So a share of 0 is `Offline` and a share of 1 is the writer, to the last bit.

    Args:
        writer: the rollout that generates.
        seed: of the coins.
        share: lambda, between 0 and 1.
        final_share: lambda at the end of the run; None: it is constant.
        shape: the course of the share of given responses, 1 - lambda: "linear", or "exponential", which from 1 to r is
            r^(i/I) at step i of I (ImitKD, arXiv 2009.07253) and neither begins nor ends at 0.
        per: "batch" tosses one coin for an optimizer step, over all ranks, as the paper does; "sequence" one for
            each record and step, which requires one response to each, given or generated.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by"})

    @staticmethod
    def passes_given(settings: Mapping[str, Any], written: bool) -> bool:
        """False if the share of generated responses is 1 throughout, else True."""
        return _gives(settings)

    @staticmethod
    def reads_given(settings: Mapping[str, Any], written: bool) -> bool:
        """Unless the share of what is written is 1 throughout, and the writer reads none."""
        return written or _gives(settings)

    @staticmethod
    def sides(settings: Mapping[str, Any], written: frozenset[str] | None) -> frozenset[str] | None:
        """The writer's sides, and "other" for the records' own responses."""
        return None if written is None else written | ({"other"} if _gives(settings) else set())

    def __init__(
        self,
        writer: Rollout,
        *,
        seed: int,
        share: float = 0.5,
        final_share: float | None = None,
        shape: Literal["linear", "exponential"] = "linear",
        per: Literal["batch", "sequence"] = "batch",
    ):
        super().__init__(writer)
        if per == "sequence" and self.samples != 1:
            raise ValueError(
                f"rollout.per=sequence sets one given response beside rollout.writer.samples={self.samples} written "
                "ones; set samples to 1, or per=batch"
            )
        self.seed, self.per = seed, per
        self.given_share = _given_share(share, share if final_share is None else final_share, shape)
        self.given = Offline()
        self.chosen, self.tossed = 0, 0  # coins since the last report

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window, with new responses to all, some or none of its records."""
        chosen = [self.writes(record, progress) for record in records_of(window)]
        self.chosen, self.tossed = self.chosen + sum(chosen), self.tossed + len(chosen)
        own, theirs = (_part(window, [c == yes for c in chosen], encoder) for yes in (False, True))
        if self.per == "batch" and not theirs:
            return self.given(own, models, progress, encoder)
        written = self.writer(theirs, models, progress, encoder)  # called also without records: it may sum over ranks
        return [*self.given(own, models, progress, encoder), *written]

    def writes(self, record: Record, progress: Progress) -> bool:
        """True if the coin selects the writer; per batch, the record does not matter."""
        own = (record.id,) if self.per == "sequence" else ()
        return uniform(self.seed, "mixed", progress.step, *own) < self.share(progress)

    def share(self, progress: Progress) -> float:
        """Lambda at the step that comes after `progress.step` steps."""
        return 1 - self.given_share(progress)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The writer's report, and the share of records that it generated for."""
        share = (float(self.chosen), float(self.tossed))
        self.chosen = self.tossed = 0
        return {**super().take_report(), "written_share": share}


def _gives(settings: Mapping[str, Any]) -> bool:
    share, final = settings.get("share", 0.5), settings.get("final_share")
    return not (share == 1 and final in (1, None))


def _given_share(share: float, final_share: float, shape: Literal["linear", "exponential"]) -> Schedule:
    """The schedule of 1 - lambda over the run."""
    for value in (share, final_share):
        if not 0 <= value <= 1:
            raise ValueError(f"a share of {value} is not between 0 and 1; set it to a value that is")
    if shape == "exponential" and 1 in (share, final_share):
        raise ValueError(
            f"rollout.share={share} to rollout.final_share={final_share}: a share of given responses that falls "
            "exponentially is never 0; keep both below 1, or take rollout.shape=linear"
        )
    return Schedule(1 - share, 1 - final_share, shape)


def _part(window: list[Batch], kept: Sequence[bool], encoder: Encoder) -> list[Batch]:
    """The window with those of its records that are kept; its own batches where all are."""
    if all(kept):
        return window
    return encoder.batches([record for record, keep in zip(records_of(window), kept, strict=True) if keep])
