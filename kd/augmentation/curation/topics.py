"""Topics: a tree of topics and subtopics, and the questions at its leaves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.new_records import Draft, NewRecords, Seed, plain
from kd.augmentation.ratings import checked_template
from kd.augmentation.replies import items
from kd.data.prompt_templates import inserted
from kd.types import Record


@dataclass(kw_only=True, eq=False)
class Topics(NewRecords):
    """Questions of subtopics of topics, each level a list that the teacher generates.

    UltraChat (Ding et al., arXiv 2305.14233, section 3.1, "Questions about the World"): meta-topics have subtopics, and
    these have questions, which open dialogues (`kd.augmentation.curation.dialogues`). A subtopic or question that was
    there before is dropped, so that no part of the tree is counted twice.

    Args:
        topics: the roots.
        subtopics: of each topic, at most. questions: of each subtopic, at most.
        answers: whether the teacher answers the questions; else a stage after this one does.
        subtopic_template: with {topic} and {count}; the reply is a list. question_template: with {topic}, {subtopic}
            and {count}.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in `NewRecords`.

    Raises:
        ValueError: there is no topic, a number is not positive, or a template lacks a field.
    """

    name: ClassVar[str] = "topic"

    topics: Sequence[str]
    subtopics: int
    questions: int
    answers: bool
    subtopic_template: str
    question_template: str
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.topics or self.subtopics < 1 or self.questions < 1:
            raise ValueError(
                f"{len(self.topics)} topics, subtopics={self.subtopics} and questions={self.questions} make no record; "
                "give one or more of each"
            )
        self.subtopic = checked_template("subtopic_template", self.subtopic_template, "topic", "count")
        self.question = checked_template("question_template", self.question_template, "topic", "subtopic", "count")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        roots, leaves = len(settings["topics"]), len(settings["topics"]) * settings["subtopics"]
        new, kept = leaves * settings["questions"], records if settings["keep_given"] else 0
        prompts = roots + leaves + (new if settings["answers"] else 0)
        return Expected(kept + new, prompts, prompts, prompts * settings["max_new_tokens"])

    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterator[tuple[Seed, Draft]]:
        """See `NewRecords`."""
        skill = given[0].skill if given else self.name
        roots = [Seed(skill, skill, {"topic": topic, "count": str(self.subtopics)}) for topic in self.topics]
        leaves = [
            Seed(skill, skill, {"topic": seed.fields["topic"], "subtopic": text, "count": str(self.questions)})
            for seed, text in self._listed(roots, self.subtopic, self.subtopics, "subtopics", resources)
        ]
        for seed, text in self._listed(leaves, self.question, self.questions, "questions", resources):
            yield seed, Draft(text, facts={name: seed.fields[name] for name in ("topic", "subtopic")})

    def _listed(
        self, seeds: Sequence[Seed], template: str, count: int, what: str, resources: Resources
    ) -> Iterator[tuple[Seed, str]]:
        """The first items of the reply to each seed that were in no reply before."""
        known = set[str]()
        replies = self.replies([seed.asking(inserted(template, seed.fields)) for seed in seeds], resources, what)
        for seed, reply in zip(seeds, replies, strict=True):
            found = items(reply.texts[0], finished=reply.finished[0])[:count]
            if not found:
                resources.dropped(f"reply without {what}")
            for text in found:
                if plain(text) in known:
                    resources.dropped(f"repeated {what.removesuffix('s')}")
                else:
                    known.add(plain(text))
                    yield seed, text
