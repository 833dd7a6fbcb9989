"""The numbers of `results.json`: a value with its interval, and what is made of several."""

from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator


class Page(BaseModel):
    """A part of a page without other keys than those that are named."""

    model_config = ConfigDict(extra="forbid")


class Estimate(Page):
    """A mean over `n` items (or tokens) with its interval."""

    value: float | None
    n: NonNegativeInt
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Estimate":
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"interval low={self.low} is above high={self.high}")
        return self


class VariantPair(Page):
    """One metric of one system on the same items, as they are and changed (`kd.evaluation.variants.robustness`)."""

    clean: Estimate
    varied: Estimate
    drop: Estimate
    flipped: Estimate
    attack_success: Estimate


class VariantScores(Page):
    """A variant of a skill's items: those measured, those left out as it does not change them, those that it makes too
    long for an answer, pairs by metric and system."""

    items: NonNegativeInt
    left_out: NonNegativeInt
    too_long: NonNegativeInt = 0
    metrics: dict[str, dict[str, VariantPair | None]]
