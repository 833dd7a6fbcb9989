"""Documents and their questions: search queries with the document as the answer, and pairs of question and answer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.documents import DocumentRequests
from kd.augmentation.filters.likelihood import likelihoods
from kd.augmentation.new_records import Draft, Seed
from kd.augmentation.replies import blocks
from kd.data.prompt_templates import check_template, inserted
from kd.types import Record, Response

_OUTSIDE = re.compile(
    r"\b(?:the|this|that|above|given|provided) (?:above |given |provided |following )?(?:text|passage|document|article|"
    r"excerpt|paragraph|context|author)\b",
    re.IGNORECASE,
)


@dataclass(kw_only=True, eq=False)
class Queries(DocumentRequests):
    """A search query for each document, which is its answer: InPars.

    Bonifacio et al. (arXiv 2202.05144, section 3): a model generates a query for each document of a collection, of
    which those shorter than 300 characters are left out; the pairs whose query has the highest mean log-probability
    stay. Negative documents, which a reranker is trained on beside, are left out.

    Args:
        shortest: characters of a document that is used.
        share: of the pairs that stay, by the mean log-probability of the query's tokens after the request; 1: all,
            which no log-probabilities are required for.
        prompt: of the records, with {query}.
        documents, part, words, template, max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `DocumentRequests`; the template has {document}.

    Raises:
        ValueError: `share` is not above 0 and at most 1; when called, the teacher has no log-probabilities for it.
    """

    name: ClassVar[str] = "query"

    shortest: int
    share: float | int
    prompt: str
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} is no share of the pairs; set it above 0 and at most 1")
        check_template("prompt", self.prompt, required=("query",), optional=())

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: of documents that are records."""
        new = max(1, int(settings["share"] * records + 0.5))
        kept = records if settings["keep_given"] else 0
        return Expected(kept + new, records, records, records * settings["max_new_tokens"])

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        for seed in super().seeds(given, resources):
            if len(seed.fields["document"]) < self.shortest:
                resources.dropped("short document")
            else:
                yield seed

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        query = " ".join(text.split())
        prompt = inserted(self.prompt, {"query": query})
        yield Draft(prompt, seed.fields["document"], "reference", facts={"query": query})

    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterator[tuple[Seed, Draft]]:
        """See `Requests`; then the share of the pairs with the likeliest queries, in their order."""
        pairs = list(super().drafts(given, resources))
        if self.share == 1 or not pairs:
            yield from pairs
            return
        scores = self._scores(pairs, resources)
        count = max(1, int(self.share * len(pairs) + 0.5))
        best = set(sorted(range(len(pairs)), key=lambda i: (-scores[i], i))[:count])
        for i, (seed, draft) in enumerate(pairs):
            if i in best:
                yield seed, replace(draft, facts={**draft.facts, "mean_logprob": scores[i]})
            else:
                resources.dropped("unlikely query")

    def _scores(self, pairs: Sequence[tuple[Seed, Draft]], resources: Resources) -> list[float]:
        """The mean log-probability of each query's tokens, in nats; of one that does not fit, minus infinity."""
        teacher = resources.teacher
        assert teacher is not None  # `requires`
        if "logprobs" not in teacher.provides:
            raise ValueError(
                f"share={self.share} requires log-probabilities, but teacher {type(teacher).__name__} provides none; "
                "set share=1, or take a teacher whose weights are here"
            )
        asked = [
            replace(seed.asking(inserted(self.template, seed.fields)), responses=(Response(draft.facts["query"]),))
            for seed, draft in pairs
        ]
        found = likelihoods(teacher, asked, max_length=resources.max_length)
        return [float("-inf") if one is None else -one.nll / one.tokens for one in found]


@dataclass(kw_only=True, eq=False)
class DomainQuestions(DocumentRequests):
    """Questions with answers on the documents of a domain: the recipe of law, medicine, finance and science.

    A teacher generates pairs of question and answer from each passage of a domain's texts (arXiv 2402.13116, section 5;
    as the self-QA of XuanYuan 2.0, arXiv 2305.12002, and HuaTuo's instances from a knowledge base, arXiv 2304.06975). A
    question that refers to "the text" or "the passage" is dropped where the record does not contain it: it could not
    be answered.

    Args:
        count: pairs of each passage, at most.
        open_book: whether the passage stands before the question in the record's prompt.
        documents, part, words, template, max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `DocumentRequests`; the template has {document} and {count}, and its reply the headings Question and Answer
            for each pair.

    Raises:
        ValueError: `count` is not positive.
    """

    name: ClassVar[str] = "domain"
    fields: ClassVar[tuple[str, ...]] = ("document", "count")

    count: int
    open_book: bool
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"count={self.count} requests no question; set it to 1 or more")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: of documents that are records, of one passage each."""
        kept, new_tokens = records if settings["keep_given"] else 0, records * settings["max_new_tokens"]
        return Expected(kept + records * settings["count"], records, records, new_tokens)

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        for seed in super().seeds(given, resources):
            yield replace(seed, fields={**seed.fields, "count": str(self.count)})

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        found = [pair for pair in blocks(text, "question", "answer") if pair.get("question") and pair.get("answer")]
        if not found:
            yield "reply without question and answer"
        for pair in found[: self.count]:
            if self.open_book:
                yield Draft(f"{seed.fields['document']}\n\n{pair['question']}", pair["answer"])
            elif _OUTSIDE.search(pair["question"]):
                yield "question about an unseen text"
            else:
                yield Draft(pair["question"], pair["answer"])
