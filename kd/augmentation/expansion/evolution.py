"""Evolution: prompts are rewritten into harder and rarer ones, round by round, and failures are eliminated."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.new_records import Draft, NewRecords, Seed, question, readable
from kd.augmentation.ratings import checked_template
from kd.data.prompt_templates import inserted
from kd.seeding import derive
from kd.types import Record

COPIED = ("given prompt", "rewritten prompt", "created prompt")  # words of the templates
SHORT = 80  # words of a response with "sorry" that counts as a refusal
STOP_WORDS = frozenset(
    {"a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "i", "in", "is", "it", "of", "on", "or", "that"}
    | {"the", "this", "to", "was", "were", "will", "with", "you"}
)


@dataclass(kw_only=True, eq=False)
class Evolution(NewRecords):
    """Evol-Instruct: in each round every prompt is rewritten by an operator that is drawn, and answered.

    WizardLM (Xu et al., arXiv 2304.12244, section 3.2): one of the in-depth operators or in-breadth evolution, with
    equal probability. What section 3.2 calls elimination evolving drops an evolved prompt

    - that carries no new information, as the teacher compares it with the one before;
    - to which the response has "sorry" and is shorter than 80 words;
    - to which the response is of punctuation and stop words alone;
    - that copies words of the evolving prompt, such as "given prompt".

    A prompt of which the evolution failed goes into the next round as it was; those that succeeded are all records.

    Args:
        rounds: of evolution; the paper's 4.
        operators: of in-depth evolution, by name: what it does, a sentence that the depth template contains.
        depth_template: with {method} and {prompt}. breadth_template: with {prompt}. equal_template: with {first} and
            {second}, to which a reply begins with "equal" or not.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in `NewRecords`.

    Raises:
        ValueError: `rounds` is not positive, or a template lacks a field.
    """

    name: ClassVar[str] = "evol"

    rounds: int
    operators: Mapping[str, str]
    depth_template: str
    breadth_template: str
    equal_template: str
    keep_given: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} evolves nothing; set it to 1 or more")
        self.depth = checked_template("depth_template", self.depth_template, "method", "prompt")
        self.breadth = checked_template("breadth_template", self.breadth_template, "prompt")
        self.equal = checked_template("equal_template", self.equal_template, "first", "second")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: an evolution, a comparison and a response for each prompt and round."""
        new = records * settings["rounds"]
        kept = records if settings["keep_given"] else 0
        return Expected(kept + new, 3 * new, 3 * new, 3 * new * settings["max_new_tokens"])

    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterator[tuple[Seed, Draft]]:
        """See `NewRecords`."""
        pool = [(Seed.of(record), question(record)) for record in readable(given)]
        for number in range(1, self.rounds + 1):
            for place, draft in self._round(number, pool, resources):
                pool[place] = (pool[place][0], draft.question)
                yield pool[place][0], draft

    def _round(
        self, number: int, pool: Sequence[tuple[Seed, str]], resources: Resources
    ) -> Iterator[tuple[int, Draft]]:
        """The prompts that evolved, each with its place in the pool."""
        names = [self._operator(number, seed, resources.seed) for seed, _ in pool]
        requests = [seed.asking(self._request(name, text)) for name, (seed, text) in zip(names, pool, strict=True)]
        found = self.texts(requests, resources, f"evolutions {number}")
        evolved = [
            (i, text) for i, text in enumerate(found) if text is not None and not _dropped(copied(text), resources)
        ]
        changed = self._changed(number, pool, evolved, resources)
        drafts = [(i, Draft(text, facts={"round": number, "operator": names[i]})) for i, text in changed]
        asked = [replace(pool[i][0].asking(""), prompt=draft.prompt(pool[i][0])) for i, draft in drafts]
        answers = self.texts(asked, resources, f"responses {number}")
        for (i, draft), answer in zip(drafts, answers, strict=True):
            if answer is not None and not _dropped(unanswered(answer), resources):
                yield i, replace(draft, response=answer)

    def _operator(self, number: int, seed: Seed, run: int) -> str:
        draw = random.Random(derive(run, self.name, number, seed.id))
        return draw.choice([*self.operators, "breadth"])

    def _request(self, operator: str, text: str) -> str:
        if operator == "breadth":
            return inserted(self.breadth, {"prompt": text})
        return inserted(self.depth, {"method": self.operators[operator], "prompt": text})

    def _changed(
        self, number: int, pool: Sequence[tuple[Seed, str]], evolved: Sequence[tuple[int, str]], resources: Resources
    ) -> list[tuple[int, str]]:
        """Those that the teacher finds unequal to the prompts that they were made of."""
        requests = [
            pool[i][0].asking(inserted(self.equal, {"first": pool[i][1], "second": text})) for i, text in evolved
        ]
        verdicts = self.replies(requests, resources, f"comparisons {number}")
        equal = [reply.texts[0].lstrip("\"'*#. \n").lower().startswith("equal") for reply in verdicts]
        return [
            own for own, same in zip(evolved, equal, strict=True)
            if not _dropped("no new information" if same else None, resources)
        ]  # fmt: skip


def copied(text: str) -> str | None:
    """The reason to eliminate an evolved prompt that has words of the evolving one; None where it has none."""
    return "words of the template" if any(words in text.lower() for words in COPIED) else None


def unanswered(text: str) -> str | None:
    """The reason to eliminate a prompt for the response to it; None where it stays."""
    words = re.findall(r"\w+", text.lower())
    if "sorry" in words and len(words) < SHORT:
        return "refusal"
    return "response without content" if all(word in STOP_WORDS for word in words) else None


def _dropped(reason: str | None, resources: Resources) -> bool:
    if reason is not None:
        resources.dropped(reason)
    return reason is not None
