"""Label-conditioned texts: the inputs of a classification that has none."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.new_records import Draft, Requests, Seed
from kd.data.prompt_templates import check_template, inserted
from kd.types import Record


@dataclass(kw_only=True, eq=False)
class LabelConditioned(Requests):
    """As many texts of each label, which the teacher generates for it: ZeroGen.

    Ye et al. (arXiv 2202.07922, section 3.1): a text is generated conditioned on a label, which it then has, and the
    classes are equally large. A text that was generated for two labels is dropped: one of them is wrong.

    Args:
        labels: what a text of each label is, by label: the template contains it.
        each: texts of each label.
        prompt: of the records, with {text}.
        template: of the request, with {label}.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`. The temperature has to be above 0, for all requests of a label are
            the same.

    Raises:
        ValueError: there are fewer than two labels, `each` is not positive, or several texts would be the same.
    """

    name: ClassVar[str] = "zerogen"
    fields: ClassVar[tuple[str, ...]] = ("label",)

    labels: Mapping[str, str]
    each: int
    prompt: str
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        count, each = len(self.labels), self.each
        if count < 2 or each < 1:
            raise ValueError(f"{count} labels with each={each} texts are no classification; give two labels or more")
        if each > 1 and self.decoding.temperature == 0:
            raise ValueError(f"each={each} texts of a label at decoding.temperature=0 are all the same; raise it")
        check_template("prompt", self.prompt, required=("text",), optional=())

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        new, kept = len(settings["labels"]) * settings["each"], records if settings["keep_given"] else 0
        return Expected(kept + new, new, new, new * settings["max_new_tokens"])

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        skill = given[0].skill if given else self.name
        for label, meaning in self.labels.items():
            for number in range(1, self.each + 1):
                yield Seed(f"{skill}/{label}{number}", skill, {"label": meaning, "name": label})

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        names = list(self.labels)
        facts = {"choices": names, "answer_index": names.index(seed.fields["name"])}
        yield Draft(inserted(self.prompt, {"text": text}), seed.fields["name"], facts=facts)

    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterator[tuple[Seed, Draft]]:
        """See `Requests`."""
        found = list(super().drafts(given, resources))
        labels = defaultdict[str, set[str | None]](set)
        for _, draft in found:
            labels[draft.question].add(draft.response)
        for seed, draft in found:
            if len(labels[draft.question]) > 1:
                resources.dropped("text of two labels")
            else:
                yield seed, draft
