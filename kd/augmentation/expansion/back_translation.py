"""Back-translation: the prompts that texts of others would answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.documents import DocumentRequests
from kd.augmentation.new_records import Draft, Seed
from kd.augmentation.ratings import checked_template, stated
from kd.data.prompt_templates import inserted
from kd.types import Record

LOWEST, HIGHEST = 1, 5  # ratings


@dataclass(kw_only=True, eq=False)
class BackTranslation(DocumentRequests):
    """Texts as responses to prompts that the teacher makes for them: instruction back-translation.

    Li et al. (arXiv 2308.06259, section 2): self-augmentation generates an instruction for each text of a corpus, and
    self-curation keeps the pairs that the model rates 5 on a scale to 5 (A_5), or 4 and above. The paper's backward
    model is trained on seed pairs; here the teacher is prompted. The rating is the score of the response.

    Args:
        least: the lowest rating of a pair that stays.
        rating_template: of the rating, with {prompt} and {response}; the reply ends with "Score: 1" to "Score: 5".
        documents, part, words, template, max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.documents.DocumentRequests`; the template has {document}.

    Raises:
        ValueError: `least` is no rating, or a template lacks a field.
    """

    name: ClassVar[str] = "back_translation"

    least: float | int
    rating_template: str
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not LOWEST <= self.least <= HIGHEST:
            raise ValueError(
                f"least={self.least} is no rating, which is from {LOWEST} to {HIGHEST}; the paper takes 5 or 4"
            )
        self.rating = checked_template("rating_template", self.rating_template, "prompt", "response")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: of documents that are records, a prompt and a rating for each."""
        kept = records if settings["keep_given"] else 0
        return Expected(kept + records, 2 * records, 2 * records, 2 * records * settings["max_new_tokens"])

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        yield Draft(text, seed.fields["document"], "reference")

    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterator[tuple[Seed, Draft]]:
        """See `Requests`; then the pairs whose rating is high enough."""
        pairs = list(super().drafts(given, resources))
        requests = [
            seed.asking(inserted(self.rating, {"prompt": draft.question, "response": str(draft.response)}))
            for seed, draft in pairs
        ]
        for (seed, draft), reply in zip(pairs, self.replies(requests, resources, "ratings"), strict=True):
            score = stated(reply.texts[0], LOWEST, HIGHEST)
            if score is None:
                resources.dropped("no rating")
            elif score < self.least:
                resources.dropped("low rating")
            else:
                yield seed, replace(draft, score=score)
