"""New records: requests made of a template, the replies of a teacher, drafts parsed out of them, and records.

A new record has an id of its own that begins with that of its seed (`7/fusion1`), the ids of its parents in `meta`, and
nothing else of their `meta`: a verifier would score answers to the new problem by the solution of the old one.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from kd.augmentation import Resources
from kd.augmentation.generation import Generating
from kd.augmentation.ratings import checked_template
from kd.data.prompt_templates import inserted
from kd.teachers.interface import Answers
from kd.types import Message, Record, Response, Source

PARENTS = "parents"  # the key of `meta` that every new problem has, and nothing else does


@dataclass(frozen=True)
class Seed:
    """The material of one request.

    Attributes:
        id: names the request, and begins the ids of its records.
        skill: of its records.
        fields: of the request's template.
        parents: ids of the records or documents that it is made of.
        before: messages before the question of its records, as a system message.
        provenance: of the record that it is made of.
    """

    id: str
    skill: str
    fields: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    before: tuple[Message, ...] = ()
    provenance: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Record, **fields: str) -> "Seed":
        """The seed of one record: the messages before its last one are those of its new records, too."""
        parents, before = (record.id,), record.prompt[:-1]
        return cls(record.id, record.skill, fields, parents, before, record.provenance)

    def asking(self, text: str) -> Record:
        """The request with this text, as a record without a response."""
        return Record(self.id, self.skill, ({"role": "user", "content": text},))


@dataclass(frozen=True)
class Draft:
    """A new record before it has an id.

    Attributes:
        question: the last message of its prompt.
        response: None: the teacher answers the question, if the stage has answers.
        source: of the response.
        score: of the response.
        facts: of `meta`, beside the parents.
        turns: messages of the conversation before the question.
    """

    question: str
    response: str | None = None
    source: Source = "teacher"
    score: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[Message, ...] = ()

    def prompt(self, seed: Seed) -> tuple[Message, ...]:
        """The messages of the record's prompt."""
        return (*seed.before, *self.turns, {"role": "user", "content": self.question})


@dataclass(kw_only=True, eq=False)
class NewRecords(Generating):
    """A stage that makes new records of what the teacher generates.

    Args:
        keep_given: whether the given records stay, before the new ones.
        max_new_tokens, temperature, top_p, batch_size, generator: of every text that it generates, one to each request
            (`kd.augmentation.generation.Generating`).

    Raises:
        ValueError: the engine lacks one of the settings.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})
    name: ClassVar[str]  # in ids and provenance
    answers = True  # whether the teacher answers questions; else a later stage does, as labeling

    keep_given: bool

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The given records if they stay, then the new ones."""
        given = list(records)
        ids = Ids(record.id for record in given)
        if self.keep_given:
            yield from (replace(record, provenance=(*record.provenance, self.name)) for record in given)
        yield from self.answered(self.drafts(given, resources), ids, resources)

    @abstractmethod
    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterable[tuple[Seed, Draft]]:
        """The drafts of new records, each with its seed."""

    def answered(self, drafts: Iterable[tuple[Seed, Draft]], ids: "Ids", resources: Resources) -> Iterator[Record]:
        """The records of the drafts; those without a response have the teacher's, and are dropped where that is cut."""
        found = list(drafts)
        if not self.answers:
            yield from (self.record(seed, draft, ids) for seed, draft in found)
            return
        bare = [Record(seed.id, seed.skill, draft.prompt(seed)) for seed, draft in found if draft.response is None]
        texts = iter(self.texts(bare, resources, "responses"))
        for seed, draft in found:
            text = next(texts) if draft.response is None else draft.response
            if text is not None:
                yield self.record(seed, replace(draft, response=text), ids)

    def record(self, seed: Seed, draft: Draft, ids: "Ids") -> Record:
        """The record of a draft, with its response if it has one."""
        given = () if draft.response is None else (Response(draft.response, draft.source, draft.score),)
        return Record(
            id=ids.next(seed.id, self.name),
            skill=seed.skill,
            prompt=draft.prompt(seed),
            responses=given,
            provenance=(*seed.provenance, self.name),
            meta={PARENTS: list(seed.parents), **draft.facts},
        )

    def replies(self, prompts: Sequence[Record], resources: Resources, what: str) -> list[Answers]:
        """The teacher's reply to each prompt."""
        named = f"{self.name} {what}"
        return resources.generate("teacher", prompts, self.decoding, what=named, engine=self.engine)

    def texts(self, prompts: Sequence[Record], resources: Resources, what: str) -> list[str | None]:
        """The text of each reply; None where there is none or it was truncated, which is counted as a drop."""
        return [whole(reply, resources) for reply in self.replies(prompts, resources, what)]


@dataclass(kw_only=True, eq=False)
class Requests(NewRecords):
    """A stage that makes new records of one reply to each seed.

    Args:
        template: of the requests: a file of `kd/augmentation/prompts`, a path or a text, with the fields of the seeds.
    """

    fields: ClassVar[tuple[str, ...]]  # of the template

    template: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.template = checked_template("template", self.template, *self.fields)

    @abstractmethod
    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterable[Seed]:
        """The material of each request."""

    @abstractmethod
    def parsed(self, seed: Seed, text: str) -> Iterable[Draft | str]:
        """The drafts in a reply; a text stands for one that is dropped, and is the reason."""

    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterator[tuple[Seed, Draft]]:
        """See `NewRecords`. A question and response that were there before are dropped."""
        seeds = list(self.seeds(given, resources))
        texts = self.texts([seed.asking(inserted(self.template, seed.fields)) for seed in seeds], resources, "requests")
        known = set[tuple[str, str | None]]()
        for seed, text in zip(seeds, texts, strict=True):
            for draft in () if text is None else self.parsed(seed, text):
                if isinstance(draft, str):
                    resources.dropped(draft)
                elif (key := (plain(draft.question), draft.response)) in known:
                    resources.dropped("repeated record")
                else:
                    known.add(key)
                    yield seed, draft


class Ids:
    """Ids of new records: `parent/stage1`, `parent/stage2`, and so on, each unlike all that were there before."""

    def __init__(self, taken: Iterable[str]):
        self._taken = set(taken)
        self._counts = Counter[str]()

    def next(self, parent: str, stage: str) -> str:
        """The next id of the stage's records of one parent."""
        while True:
            self._counts[start := f"{parent}/{stage}"] += 1
            if (name := f"{start}{self._counts[start]}") not in self._taken:
                self._taken.add(name)
                return name


def whole(reply: Answers, resources: Resources) -> str | None:
    """The text of a reply, without white space around; None, and counted, where it is empty or was truncated."""
    text = reply.texts[0].strip()
    if not reply.finished[0]:
        resources.dropped("truncated text" if text else "no text")
    elif not text:
        resources.dropped("empty text")
    return text if text and reply.finished[0] else None


def question(record: Record) -> str:
    """The text of the last message of a record's prompt."""
    return str(record.prompt[-1]["content"])


def readable(records: Iterable[Record]) -> list[Record]:
    """The records whose prompts are all that a teacher needs to read: those without images."""
    return [record for record in records if not record.images]


def plain(text: str) -> str:
    """The text by which two are the same: in lower case, with single spaces."""
    return " ".join(text.lower().split())
