"""Textbooks and personas: texts of a topic for an audience, and requests of a person under constraints."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.new_records import Draft, Requests, Seed
from kd.data.prompt_templates import check_template, inserted
from kd.seeding import derive
from kd.types import Record


@dataclass(kw_only=True, eq=False)
class Textbooks(Requests):
    """Sections of textbooks on topics for audiences: phi.

    Gunasekar et al. (arXiv 2306.11644, section 2.2): synthetic textbooks are diverse by constraints on topic and target
    audience; words that are drawn and have to occur make two sections on the same topic differ, as in TinyStories
    (arXiv 2305.07759). Sections with too few words are dropped, and so are those without all the words that were drawn.

    Args:
        topics, audiences: each topic has `each` sections for each audience.
        words: from which `drawn` words are drawn for each section; may be empty.
        prompt: of the records, with {topic} and {audience}.
        shortest: words of a section that stays.
        template: of the request, with {topic}, {audience} and {words}.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`.

    Raises:
        ValueError: there is no topic or audience, or fewer words than are drawn.
    """

    name: ClassVar[str] = "textbook"
    fields: ClassVar[tuple[str, ...]] = ("topic", "audience", "words")

    topics: Sequence[str]
    audiences: Sequence[str]
    each: int
    words: Sequence[str]
    drawn: int
    prompt: str
    shortest: int
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        topics, audiences, words = len(self.topics), len(self.audiences), len(self.words)
        if not topics or not audiences or self.each < 1:
            raise ValueError(
                f"{topics} topics, {audiences} audiences and each={self.each} make no record; give one or more of each"
            )
        if not 0 <= self.drawn <= words:
            raise ValueError(f"drawn={self.drawn} of {words} words cannot be drawn; add words, or draw fewer")
        check_template("prompt", self.prompt, required=("topic", "audience"), optional=())

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        new = len(settings["topics"]) * len(settings["audiences"]) * settings["each"]
        kept = records if settings["keep_given"] else 0
        return Expected(kept + new, new, new, new * settings["max_new_tokens"])

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        skill = given[0].skill if given else self.name
        for topic in self.topics:
            for audience in self.audiences:
                for number in range(self.each):
                    draw = random.Random(derive(resources.seed, self.name, topic, audience, number))
                    words = ", ".join(draw.sample(self.words, self.drawn))
                    yield Seed(skill, skill, {"topic": topic, "audience": audience, "words": words})

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        facts = {name: seed.fields[name] for name in ("topic", "audience")}
        wanted = [word for word in seed.fields["words"].split(", ") if word]
        if len(text.split()) < self.shortest:
            yield "short text"
        elif any(word.lower() not in text.lower() for word in wanted):
            yield "text without the drawn words"
        else:
            yield Draft(inserted(self.prompt, seed.fields), text, facts=facts)


@dataclass(kw_only=True, eq=False)
class Personas(Requests):
    """Requests of personas under constraints that are drawn, with the teacher's answers.

    Persona Hub (Ge et al., arXiv 2406.20094, section 2): a persona in the prompt makes a model generate what this
    person would ask, so that a list of personas is a list of perspectives. As in Tulu 3 (arXiv 2411.15124, section 4.2)
    constraints on the answer are added, which stand in the new prompt word by word.

    Args:
        personas: each has `each` requests.
        constraints: from which `drawn` are drawn for each request; may be empty.
        answers: whether the teacher answers; else a stage after this one does.
        template: of the request, with {persona}.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`.

    Raises:
        ValueError: there is no persona, or there are fewer constraints than are drawn.
    """

    name: ClassVar[str] = "persona"
    fields: ClassVar[tuple[str, ...]] = ("persona",)

    personas: Sequence[str]
    each: int
    constraints: Sequence[str]
    drawn: int
    answers: bool
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        personas, constraints = len(self.personas), len(self.constraints)
        if not personas or self.each < 1:
            raise ValueError(f"{personas} personas and each={self.each} make no record; give one or more of each")
        if not 0 <= self.drawn <= constraints:
            raise ValueError(
                f"drawn={self.drawn} of {constraints} constraints cannot be drawn; add some, or draw fewer"
            )

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        new, kept = len(settings["personas"]) * settings["each"], records if settings["keep_given"] else 0
        prompts = new * (2 if settings["answers"] else 1)
        return Expected(kept + new, prompts, prompts, prompts * settings["max_new_tokens"])

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        skill = given[0].skill if given else self.name
        for persona in self.personas:
            for number in range(self.each):
                draw = random.Random(derive(resources.seed, self.name, persona, number))
                drawn = " ".join(draw.sample(self.constraints, self.drawn))
                yield Seed(skill, skill, {"persona": persona, "constraints": drawn})

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        constraints = seed.fields["constraints"]
        yield Draft(f"{text}\n\n{constraints}" if constraints else text, facts=dict(seed.fields))
