"""Duplicates: of records that are the same, or nearly, the first stays."""

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

from kd.augmentation import Resources
from kd.augmentation.filters import Filter, conversation
from kd.data.divisions import THRESHOLD, near_duplicates
from kd.types import Record

Of = Literal["prompt", "record"]


class ExactDuplicates(Filter):
    """Drops a record whose prompt stood in an earlier one, but for case and white space.

    Lee et al. 2022 (arXiv 2107.06499) measure what such copies do to a model; Self-Instruct (arXiv 2212.10560, section
    2.2) drops identical instances, too.

    Args:
        of: prompt: records with one prompt are the same | record: prompt and responses count.
    """

    name: ClassVar[str] = "exact_duplicates"

    def __init__(self, *, of: Of = "prompt"):
        self.of = of

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        seen = set[str]()
        for record in records:
            text = _plain(_compared(record, self.of))
            yield record, "exact duplicate" if text in seen else None
            seen.add(text)


class NearDuplicates(ExactDuplicates):
    """Drops a record that is nearly an earlier one, by MinHash of its characters (Lee et al. 2022, arXiv 2107.06499).

    Records of which each is nearly the next are one cluster, and its first stays. What many records share, as the words
    of a template around each problem, does not count (`kd.data.divisions.near_duplicates`); so a second pass, in which
    other texts are frequent, may drop more. Images are compared by their content: another image makes another prompt.

    Args:
        of: as in `ExactDuplicates`.
        threshold: the Jaccard similarity of their sets of four characters from which two texts are nearly the same, at
            least 0.7; the paper's is 0.8, on sets of five words.

    Raises:
        ValueError: the threshold is not within [0.7, 1].
    """

    name: ClassVar[str] = "near_duplicates"

    def __init__(self, *, of: Of = "prompt", threshold: float = THRESHOLD):
        super().__init__(of=of)
        if not THRESHOLD <= threshold <= 1:
            raise ValueError(f"threshold={threshold} is not within [{THRESHOLD}, 1]; less similar texts are not found")
        self.threshold = threshold

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        records = list(records)
        by_images = dict[tuple[str, ...], list[int]]()
        for i, record in enumerate(records):
            by_images.setdefault(tuple(image.digest for image in record.images), []).append(i)
        first = set[int]()
        for places in by_images.values():
            texts = [_compared(records[i], self.of) for i in places]
            clusters = dict[str, int]()
            for i, cluster in zip(places, near_duplicates(texts, self.threshold), strict=True):
                first.add(clusters.setdefault(cluster, i))
        for i, record in enumerate(records):
            yield record, None if i in first else "near-duplicate"


def _compared(record: Record, of: Of) -> str:
    responses = [response.text for response in record.responses] if of == "record" else []
    return "\n".join([conversation(record), *responses])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
