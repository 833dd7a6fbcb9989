"""Selection by complexity and quality as a model rates them, and by diversity."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.filters import Selection, number
from kd.augmentation.filters.embeddings import apart, ngram_vectors
from kd.augmentation.ratings import checked_template, rate
from kd.generators import Generator
from kd.generators.settings import Decoding
from kd.types import Record

LOWEST, HIGHEST = 1, 6  # ratings


class QualityComplexity(Selection):
    """Keeps a share of the records with the highest complexity x quality, each unlike those before it: DEITA.

    Liu et al. (arXiv 2312.15685): records are sorted by the product of both scores, and taken from the top
    if their nearest neighbour among those taken has a cosine similarity below 0.9, until the budget is used up. DEITA
    trains scorers on ratings by ChatGPT of evolved instructions; here the teacher rates each record itself, from 1 to
    6. DEITA's vectors are hidden states; here they are n-grams, for the teacher may give text alone.

    Args:
        share: of the records that stay, at most.
        similarity: from which two records are alike.
        complexity_template: the prompt of its rating, with the field {question}: the last message.
        quality_template: with the fields {question} and {response}; of several responses the first is rated.
        samples: replies to each prompt, of which ratings are the mean.
        max_new_tokens, temperature, top_p, batch_size: of the replies.
        generator: the engine that generates (`kd.generators`); None: our own.

    A record without a response or a rating is dropped.

    Raises:
        ValueError: `share` or `similarity` is not above 0 and at most 1; a template lacks a field.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})
    name: ClassVar[str] = "deita"

    def __init__(
        self,
        *,
        share: float,
        similarity: float = 0.9,
        complexity_template: str = "deita_complexity",
        quality_template: str = "deita_quality",
        samples: int = 1,
        max_new_tokens: int = 16,
        temperature: float = 0.0,
        top_p: float = 1.0,
        batch_size: int = 16,
        generator: Generator | None = None,
    ):
        super().__init__(share=share)
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity={similarity} is no cosine of texts; set it above 0 and at most 1")
        self.similarity, self.generator = similarity, generator
        self.complexity = checked_template("complexity_template", complexity_template, "question")
        self.quality = checked_template("quality_template", quality_template, "question", "response")
        self.decoding = Decoding(max_new_tokens, samples, temperature, top_p, batch_size)
        self.decoding.check()

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: two ratings of each record."""
        replies = 2 * records * settings["samples"]
        return Expected(number(settings["share"], records), 2 * records, replies, replies * settings["max_new_tokens"])

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        records = list(records)
        answered = [i for i, record in enumerate(records) if record.prompt and record.responses]
        scores = self._scores([records[i] for i in answered], resources)
        known = {i: score for i, score in zip(answered, scores, strict=True) if score is not None}
        order = sorted(known, key=lambda i: (-known[i], i))
        count = number(self.share, len(records))
        stay = apart(ngram_vectors(records), order, similarity=self.similarity, count=count)
        last = order.index(stay[-1]) if len(stay) == count else len(order)
        below = set(order[last + 1 :])  # those of lower scores than all that were taken
        for i, record in enumerate(records):
            if i in stay:
                yield record, None
            elif i not in known:
                yield record, "no rating"
            else:
                yield record, "low complexity x quality" if i in below else "like a better one"

    def _scores(self, records: list[Record], resources: Resources) -> list[float | None]:
        bounds = (LOWEST, HIGHEST)
        shown = [(record, {"response": record.responses[0].text}) for record in records]
        complexity, quality = (
            rate(resources, "teacher", shown, template, self.decoding, what=what, bounds=bounds, engine=self.generator)
            for what, template in (("complexity", self.complexity), ("quality", self.quality))
        )
        return [None if a is None or b is None else a * b for a, b in zip(complexity, quality, strict=True)]
