"""The settings of decoding as one value: number and length of responses, distribution, batch size."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeFloat

from kd.generators.sampling import Sampled

Samples = Annotated[int, Field(ge=1, le=4096)]
NewTokens = Annotated[int, Field(ge=1, le=2**20)]
Nucleus = Annotated[float, Field(gt=0, le=1)]
Together = Annotated[int, Field(ge=1, le=2**16)]


@dataclass(frozen=True)
class Decoding:
    """The decoding that is requested of an engine.

    Args:
        max_new_tokens: a response that long is truncated there.
        samples: responses to each prompt.
        temperature, top_p: of the distribution that each token is drawn from (`kd.generators.sampling.Sampled`).
        batch_size: responses that the model generates, or reads, at a time.
    """

    max_new_tokens: NewTokens
    samples: Samples = 1
    temperature: NonNegativeFloat = 1.0
    top_p: Nucleus = 1.0
    batch_size: Together = 16

    @property
    def sampled(self) -> Sampled:
        """The distribution that each token is drawn from."""
        return Sampled(self.temperature, self.top_p)

    def check(self, *, distinct: int | None = None) -> None:
        """Raises ValueError for settings with which nothing sensible can be decoded.

        distinct: the number of responses to a prompt that differ by chance alone; None: all of them.
        """
        distinct = self.samples if distinct is None else distinct
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} leaves no room for a response; set it to 1 or more")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} is negative; set it to 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not a share of probability; set it above 0 and at most 1")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} requests no response; set it to 1 or more")
        if distinct > 1 and self.temperature == 0:
            raise ValueError(
                f"samples={distinct} at temperature=0 are all the same; raise temperature or set samples=1"
            )
