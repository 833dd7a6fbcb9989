"""Selection by how much likelier the teacher finds a response than the student does."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from kd.augmentation import Resources
from kd.augmentation.filters import Filter, Selection, highest
from kd.augmentation.filters.likelihood import likelihoods
from kd.types import Record


class DifferenceSampling(Selection):
    """Keeps the records whose responses the teacher finds likeliest against the student (MiniPLM, arXiv 2410.17215).

    MiniPLM keeps the share of a corpus with the highest log p(x) - log p_ref(x), of a small reference model: it drops
    what is noise to both models, and part of what is easy to both. Here p_ref is the student before the first step, and
    the responses are read after their prompts. MiniPLM's texts have one length; here the difference is one of nats for
    each token (the student's), so that it does not grow with the length.

    Args:
        share: of the records that stay; the paper's 0.5.

    A record without responses, or with one that does not fit whole into `data.max_length`, is dropped.

    Raises:
        ValueError: `share` is not above 0 and at most 1.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher", "native_teacher_logprobs", "student"})
    name: ClassVar[str] = "difference_sampling"

    def __init__(self, *, share: float = 0.5):
        super().__init__(share=share)

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        records = list(records)
        gaps = likelihood_gaps(records, resources)
        known = [i for i, gap in enumerate(gaps) if gap is not None]
        places = highest([gap for gap in gaps if gap is not None], self.share) if known else set()
        stay = {known[place] for place in places}
        for i, (record, gap) in enumerate(zip(records, gaps, strict=True)):
            yield record, NO_SCORE if gap is None else None if i in stay else "small difference"


class PerplexityRatio(Filter):
    """Keeps the records of which the student's perplexity over the teacher's is within bounds.

    exp of the difference of `DifferenceSampling`: MiniPLM (arXiv 2410.17215) finds that data with a ratio near 1
    is easy or noise to both. Beside it: bounds instead of a share, so that each record is judged for itself. What is
    likely for the teacher and very unlikely for the student, above `highest`, may be out of its reach.

    Args:
        lowest, highest: bounds of the ratio, which stay; None: no bound.

    A record without responses, or with one that does not fit whole into `data.max_length`, is dropped.

    Raises:
        ValueError: the bounds leave no ratio.
    """

    requires: ClassVar[frozenset[str]] = DifferenceSampling.requires
    name: ClassVar[str] = "perplexity_ratio"

    def __init__(self, *, lowest: float | None = 1.0, highest: float | None = None):
        low, high = 0.0 if lowest is None else lowest, math.inf if highest is None else highest
        if not 0 <= low <= high:
            raise ValueError(f"lowest={lowest} and highest={highest} leave no ratio; set 0 <= lowest <= highest")
        self.low, self.high = low, high

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        records = list(records)
        for record, gap in zip(records, likelihood_gaps(records, resources), strict=True):
            yield record, NO_SCORE if gap is None else self._fault(math.exp(min(gap, 700.0)))

    def _fault(self, ratio: float) -> str | None:
        if ratio < self.low:
            return "low perplexity ratio"
        return "high perplexity ratio" if ratio > self.high else None


NO_SCORE = "no response that fits whole"


def likelihood_gaps(records: Sequence[Record], resources: Resources) -> list[float | None]:
    """(log p - log q) / n of each record's responses: p the teacher's, q the student's, n the student's tokens.

    The text is the same for both, so tokenizers may differ. None where a model cannot read all responses whole.
    """
    assert resources.teacher is not None  # `requires`
    assert resources.student is not None
    theirs, own = (
        likelihoods(model, records, max_length=resources.max_length) for model in (resources.teacher, resources.student)
    )
    return [
        None if p is None or q is None else (q.nll - p.nll) / max(q.tokens, 1) for p, q in zip(theirs, own, strict=True)
    ]
