"""A coreset: a share of the records that covers all of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from kd.augmentation import Resources
from kd.augmentation.filters import Selection, number
from kd.augmentation.filters.embeddings import hidden_vectors, k_centers, ngram_vectors
from kd.types import Record


class Coreset(Selection):
    """Keeps a diverse share of the records: k-center greedy on vectors of their n-grams.

    K-center greedy (arXiv 1708.00489), by which WaveCoder (arXiv 2312.14187) selects raw code: from the
    first record on, the next is the one that is farthest from all that were taken.

    Args:
        share: of the records that stay.

    Raises:
        ValueError: `share` is not above 0 and at most 1.
    """

    name: ClassVar[str] = "coreset"

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        records = list(records)
        count = number(self.share, len(records))
        stay = set(k_centers(self.vectors(records, resources), count)) if records else set()
        for i, record in enumerate(records):
            yield record, None if i in stay else "covered by others"

    def vectors(self, records: Sequence[Record], resources: Resources) -> np.ndarray:
        """`[n D]`, the vectors of the records, of length 1."""
        return ngram_vectors(records)


class HiddenCoreset(Coreset):
    """The same on the mean of the student's last hidden states over prompt and response.

    Args:
        share: of the records that stay.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student"})
    name: ClassVar[str] = "hidden_coreset"

    def vectors(self, records: Sequence[Record], resources: Resources) -> np.ndarray:
        """See `Coreset`."""
        assert resources.student is not None  # `requires`
        return hidden_vectors(resources.student, records, max_length=resources.max_length)
