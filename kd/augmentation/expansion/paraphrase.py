"""Paraphrase and fusion: the same problem in other words, and one problem of two."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.new_records import Draft, Ids, Requests, Seed, plain, question, readable
from kd.augmentation.replies import items
from kd.metrics.overlap import rouge_l
from kd.seeding import derive
from kd.types import Record

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_QUOTED = re.compile(r'"([^"\n]+)"')
ALIKE = 0.7  # ROUGE-L from which a fused prompt is one of the two


@dataclass(kw_only=True, eq=False)
class Paraphrase(Requests):
    """Each prompt in several other words, with the same responses: AugGPT.

    Dai et al. (arXiv 2302.13007, section 3): a model rephrases each training sentence into several "conceptually
    similar but semantically different" ones, which have its label. So a paraphrase is the same problem: it has the
    responses and the `meta` of its record. One that is the prompt itself, or was there before, is dropped,
    and so is one with other numbers or quotations than the prompt, of which the answer would be another.

    Args:
        count: paraphrases of each prompt.
        template: of the request, with {prompt} and {count}; the reply is a list.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`.
    """

    name: ClassVar[str] = "paraphrase"
    fields: ClassVar[tuple[str, ...]] = ("prompt", "count")

    count: int
    keep_given: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"count={self.count} requests no paraphrase; set it to 1 or more")

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`: responses are as before."""
        return record

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        kept = records if settings["keep_given"] else 0
        new_tokens = records * settings["max_new_tokens"]
        return Expected(kept + records * settings["count"], records, records, new_tokens)

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The given records if they stay, each with its paraphrases after it."""
        given = list(records)
        ids = Ids(record.id for record in given)
        found: dict[str, list[Draft]] = {}
        for seed, draft in self.drafts(given, resources):
            found.setdefault(seed.id, []).append(draft)
        for record in given:
            passed = (*record.provenance, self.name)
            if self.keep_given:
                yield replace(record, provenance=passed)
            for draft in found.pop(record.id, ()):
                prompt = (*record.prompt[:-1], {**record.prompt[-1], "content": draft.question})
                yield replace(record, id=ids.next(record.id, self.name), prompt=prompt, provenance=passed)

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        for record in readable(given):
            yield Seed.of(record, prompt=question(record), count=str(self.count))

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        prompt = seed.fields["prompt"]
        for item in items(text)[: self.count]:
            if plain(item) == plain(prompt):
                yield "repeated record"
            elif _fixed(item) != _fixed(prompt):
                yield "other numbers or quotations"
            else:
                yield Draft(item, "")  # the responses of its record stand for one


@dataclass(kw_only=True, eq=False)
class Fusion(Requests):
    """One prompt of two, which needs what both do: Instruction Fusion.

    Guo et al. (arXiv 2312.15692): two prompts of a pool are merged by a model into one of their combined difficulty.
    Pairs are drawn among the records of one skill, each record at most once in a pass. A reply that declines ("none"),
    and one that is like either of the two (ROUGE-L of 0.7 and above), is dropped.

    Args:
        share: fused prompts, as a share of the records; above 0.5 records are in several pairs.
        template: of the request, with {first} and {second}.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`.
    """

    name: ClassVar[str] = "fusion"
    fields: ClassVar[tuple[str, ...]] = ("first", "second")

    share: float | int
    keep_given: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.share > 0:
            raise ValueError(f"share={self.share} requests no prompt; set it above 0")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: a fusion and a response for each pair."""
        pairs = int(settings["share"] * records + 0.5)
        kept = records if settings["keep_given"] else 0
        return Expected(kept + pairs, 2 * pairs, 2 * pairs, 2 * pairs * settings["max_new_tokens"])

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        skills: dict[str, list[Record]] = {}
        for record in readable(given):
            skills.setdefault(record.skill, []).append(record)
        for skill, own in skills.items():
            count = int(self.share * len(own) + 0.5) if len(own) > 1 else 0
            made = 0
            while made < count:
                order = list(own)
                random.Random(derive(resources.seed, self.name, skill, made)).shuffle(order)
                for one, other in zip(order[::2], order[1::2], strict=False):
                    if made < count:
                        yield _pair(one, other)
                        made += 1

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        both = [seed.fields["first"], seed.fields["second"]]
        if plain(text).strip(".!\"'") == "none":
            yield "declined fusion"
        elif rouge_l(text, both) >= ALIKE:
            yield "one of the two prompts"
        else:
            yield Draft(text)


def _pair(one: Record, other: Record) -> Seed:
    fields = {"first": question(one), "second": question(other)}
    return replace(Seed.of(one), fields=fields, parents=(one.id, other.id))


def _fixed(text: str) -> tuple[Counter[str], set[str]]:
    """The numbers and the quoted texts, which the answer depends on."""
    return Counter(_NUMBER.findall(text)), set(_QUOTED.findall(text))
