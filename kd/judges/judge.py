"""Judges: a model that generates, asked by a prompt which of two answers is better, or how good one is.

MT-Bench's pairwise comparison and single-answer grading, with or without a reference (Zheng et al. 2023, arXiv
2306.05685, section 3 and appendix A). A verdict is read in one of two ways: from the end of the text that the judge
generates, or as the label that it finds most likely to be its reply, which a small model can do.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import pandas as pd
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from kd.data.prompt_templates import check_template, filled, question, template_text
from kd.data.sequences import answer_ids, prompt_ids
from kd.evaluation.cache import remembered
from kd.evaluation.choices import Choice, score_choices, tokens_read
from kd.generators.account import Spent, charge
from kd.generators.settings import Decoding, NewTokens, Nucleus, Together
from kd.generators.torch import Torch
from kd.judges.models import positions
from kd.judges.verdicts import TURNED, Outcome, Reply, Verdict, defused, likeliest, parsed
from kd.progress import phase
from kd.seeding import seeded
from kd.skills.answer_metrics import Evidence
from kd.teachers.interface import Teacher
from kd.types import Record
from kd.versions import versions

VERSION = 3  # verdicts are kept with the tokens that they cost
Mechanism = Literal["text", "likelihood"]
Opponent = Literal["baseline", "teacher", "references"]


class Pair(NamedTuple):
    """Two answers to a record's prompt."""

    record: Record
    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class Judge(ABC):
    """The prompt of a judge and how its replies are read; the model is given with each call.

    Args:
        template: the prompt, with fields in braces (`required`, `optional`), or the path of a file that holds it.
        request: the text of the field `{request}`, by `verdict`: the form of the reply.
        version: of the prompt; raise it with each change, for results name it.
        verdict: text: the judge generates, and its verdict is the label in double brackets at the end of its reply.
            likelihood: the label that is most likely to be the reply, of which nothing is generated.
        system: the system message; None: none.
        items: judged are the answers to so many of the first prompts; None: to all.
        labelled: a file of `conf/skill` whose records hold a preferred and another answer, on which the judge's
            agreement is measured; None: it is not.
        labelled_items: the first so many of its test records.
        max_new_tokens, temperature, top_p, seed: of the replies, where they are generated.
        batch_size: prompts that are answered, and labels that are scored, together.

    Raises:
        ValueError: the template is none, or lacks a field; nothing sensible can be decoded.
    """

    required: ClassVar[Sequence[str]]  # fields of the template
    optional: ClassVar[Sequence[str]] = ("reference", "request")

    template: str
    request: Mapping[str, str] = field(default_factory=dict)
    version: PositiveInt = 1
    verdict: Mechanism = "text"
    system: str | None = None
    items: PositiveInt | None = None
    labelled: str | None = None
    labelled_items: PositiveInt = 64
    max_new_tokens: NewTokens = 512
    temperature: NonNegativeFloat = 0.0
    top_p: Nucleus = 1.0
    seed: NonNegativeInt = 0
    batch_size: Together = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", template_text("template", self.template))
        check_template("template", self.template, required=self.required, optional=self.optional)
        self.decoding.check()

    @property
    def decoding(self) -> Decoding:
        """Of the replies, where they are generated."""
        return Decoding(self.max_new_tokens, 1, self.temperature, self.top_p, self.batch_size)

    @property
    def opponents(self) -> Sequence[Opponent]:
        """Whose answers each system's are compared with; none of a judge that grades."""
        return ()

    @property
    @abstractmethod
    def labels(self) -> Sequence[str]:
        """All verdicts that a reply can be."""

    @abstractmethod
    def compare(self, teacher: Teacher, pairs: Sequence[Pair]) -> list[Verdict]:
        """The judge's verdict on each pair, as it is compared with labels."""

    @property
    def reads_reference(self) -> bool:
        """Whether its prompt shows the record's reference."""
        return "{reference}" in self.template

    def prompt(self, record: Record, answers: Mapping[str, str]) -> Record:
        """The prompt of the judge on answers to a record; the texts' control tokens are text."""
        texts = {"question": question(record), **answers}
        if self.reads_reference:
            texts["reference"] = Evidence(record).references[0]
        if self.verdict == "text":
            texts = {name: defused(text, self.labels) for name, text in texts.items()}
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        content = filled(self.template, texts, {"request": self.request.get(self.verdict, "")}).strip()
        return Record(record.id, record.skill, (*opening, {"role": "user", "content": content}))

    def replies(self, teacher: Teacher, prompts: Sequence[Record]) -> list[Reply]:
        """The reply to each prompt, from the cache where the same judge answered the same prompts before.

        Their cost is added to every open meter (`kd.generators.account`), that of replies in the cache as it was when
        they were made.
        """
        takes = self._takes(teacher, prompts)
        read = [prompt for prompt, fits in zip(prompts, takes, strict=True) if fits]
        if not read:
            return [Reply()] * len(prompts)
        find = self._scored if self.verdict == "likelihood" else self._generated
        table, _ = remembered("verdicts", self._content(teacher, read), lambda: find(teacher, read))
        found = iter([Reply(**{str(key): value for key, value in row.items()}) for row in table.to_dict("records")])
        return [next(found) if fits else Reply() for fits in takes]

    def read(self, reply: Reply) -> str | None:
        """The label that a reply is; None where it holds no verdict."""
        if reply.logprobs is not None:
            return likeliest(reply.logprobs, self.labels)
        return parsed(reply.text, self.labels) if reply.text is not None and reply.finished else None

    def _content(self, teacher: Teacher, prompts: Sequence[Record]) -> dict[str, Any]:
        """What the replies depend on: the model, its precision, the code, the prompts with both texts, the settings."""
        system, decoding = teacher.system, self.decoding
        drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": self.seed}
        by: dict[str, dict[str, Any]] = {
            "text": {"longest": decoding.max_new_tokens, **drawn},
            "likelihood": {"labels": list(self.labels)},
        }
        return {
            "code": versions(__name__, type(teacher).__module__),
            "judge": [teacher.identity(), None if system is None else str(next(system.parameters()).dtype)],
            "prompts": [[dict(message) for message in prompt.prompt] for prompt in prompts],
            self.verdict: {**by[self.verdict], "batch_size": decoding.batch_size},
        }

    def _generated(self, teacher: Teacher, prompts: Sequence[Record]) -> pd.DataFrame:
        with phase("judge", len(prompts), "verdicts") as shown, seeded(self.seed, "judge"):
            answers = teacher.respond(prompts, decoding=self.decoding, engine=Torch(), progress=shown.advance)
        return pd.DataFrame({"text": [a.texts[0] for a in answers], "finished": [a.finished[0] for a in answers]})

    def _scored(self, teacher: Teacher, prompts: Sequence[Record]) -> pd.DataFrame:
        """The log-likelihood of each label as the beginning of a reply; with the end token where one label begins
        another, as 1 does 10."""
        words = teacher.tokenizer
        assert words is not None
        ended = any(a != b and b.startswith(a) for a in self.labels for b in self.labels)
        items: list[Choice] = [
            (p, prompt_ids(p, words), [tuple(answer_ids(p, one, words, ended=ended)) for one in self.labels])
            for p in prompts
        ]
        table = score_choices(teacher.system, items, batch_size=self.decoding.batch_size, max_tokens=2048)
        charge(Spent(teacher_tokens=teacher.readings * tokens_read(teacher.system, items)))
        return table[["logprobs"]]

    def _takes(self, teacher: Teacher, prompts: Sequence[Record]) -> list[bool]:
        """Whether each prompt leaves the judge room for its reply."""
        if (words := teacher.tokenizer) is None:
            return [True] * len(prompts)
        longest = max(len(label.encode()) + 1 for label in self.labels)  # in tokens, at most
        room = positions(teacher) - (self.max_new_tokens if self.verdict == "text" else longest)
        return [len(prompt_ids(prompt, words)) <= room for prompt in prompts]


@dataclass(frozen=True, kw_only=True)
class Pairwise(Judge):
    """A judge that is shown two answers, in both orders.

    Args:
        against: whose answers those of each system are compared with: those of the baseline beside the run (`compare`),
            of the teacher, or the references.
        names: the verdicts for the answer that is shown first, for the other one, and for a tie, if that is offered.
        swap: whether each pair is read in both orders; else every other pair is turned round.

    The other arguments are those of every `Judge`.

    Raises:
        ValueError: there are not two or three names, which differ, and as a `Judge`.
    """

    required = ("question", "answer_a", "answer_b")

    against: Sequence[Opponent] = ("baseline",)
    names: Sequence[str] = ("A", "B", "tie")
    swap: bool = True

    def __post_init__(self) -> None:
        names, against = list(self.names), list(self.against)
        if len(names) not in (2, 3) or len(set(names)) < len(names) or not all(names):
            raise ValueError(
                f"names={names}: give those of the first answer, of the second and of a tie, all different"
            )
        if not against or len(set(against)) < len(against):
            raise ValueError(f"against={against}: name each of baseline, teacher and references at most once")
        super().__post_init__()

    @property
    def opponents(self) -> Sequence[Opponent]:
        """See `against`."""
        return self.against

    @property
    def labels(self) -> Sequence[str]:
        """The verdicts, that of the answer shown first before the others."""
        return self.names

    def compare(self, teacher: Teacher, pairs: Sequence[Pair]) -> list[Verdict]:
        """The verdict on each pair, in both orders."""
        return [verdict for verdict, _ in self.judged(teacher, pairs)]

    def judged(self, teacher: Teacher, pairs: Sequence[Pair]) -> list[tuple[Verdict, list[Reply]]]:
        """The verdict on each pair and the replies that it was read from."""
        return self.verdicts(self.replies(teacher, self.prompts(pairs)), len(pairs))

    def prompts(self, pairs: Sequence[Pair]) -> list[Record]:
        """The prompts on all pairs, one for each order in which a pair is read."""
        turns = self._turns(len(pairs))
        return [self._shown(pair, turned) for pair, several in zip(pairs, turns, strict=True) for turned in several]

    def verdicts(self, replies: Sequence[Reply], pairs: int) -> list[tuple[Verdict, list[Reply]]]:
        """The verdict on each of so many pairs, and its replies, of the replies to their `prompts`."""
        every = iter(replies)
        found = []
        for several in self._turns(pairs):
            own = [next(every) for _ in several]
            orders = tuple(self._outcome(reply, turned) for reply, turned in zip(own, several, strict=True))
            found.append((Verdict(orders, several, not any(reply.left_out for reply in own)), own))
        return found

    def _turns(self, pairs: int) -> list[tuple[bool, ...]]:
        """For each of so many pairs, the orders in which it is read: whether the second answer is shown first."""
        return [(False, True) if self.swap else (bool(i % 2),) for i in range(pairs)]

    def _shown(self, pair: Pair, turned: bool) -> Record:
        first, second = (pair.second, pair.first) if turned else (pair.first, pair.second)
        return self.prompt(pair.record, {"answer_a": first, "answer_b": second})

    def _outcome(self, reply: Reply, turned: bool) -> Outcome | None:
        if (label := self.read(reply)) is None:
            return None
        names: tuple[Outcome, ...] = ("first", "second", "tie")
        outcome = names[list(self.names).index(label)]
        return TURNED[outcome] if turned else outcome


@dataclass(frozen=True, kw_only=True)
class Graded(Judge):
    """A judge that grades one answer, from `low` (worst) to `high`. Of a pair it prefers the one with the higher grade.

    Args:
        low, high: the ends of the scale, whole numbers.

    The other arguments are those of every `Judge`.

    Raises:
        ValueError: the scale has no two grades, and as a `Judge`.
    """

    required: ClassVar[Sequence[str]] = ("question", "answer")

    low: NonNegativeInt = 1
    high: PositiveInt = 10

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}; give a scale of two grades or more")
        super().__post_init__()

    @property
    def labels(self) -> Sequence[str]:
        """The grades."""
        return [str(grade) for grade in range(self.low, self.high + 1)]

    def graded(self, teacher: Teacher, answers: Sequence[tuple[Record, str]]) -> list[tuple[int | None, Reply]]:
        """The grade of each answer, None where the reply holds none, and the reply."""
        prompts = [self.prompt(record, {"answer": text}) for record, text in answers]
        found = [(self.read(reply), reply) for reply in self.replies(teacher, prompts)]
        return [(None if label is None else int(label), reply) for label, reply in found]

    def compare(self, teacher: Teacher, pairs: Sequence[Pair]) -> list[Verdict]:
        """The answer with the higher grade; equal grades are a tie."""
        answers = [(pair.record, text) for pair in pairs for text in (pair.first, pair.second)]
        found = iter(self.graded(teacher, answers))
        return [_preferred(one, other) for one, other in zip(found, found, strict=True)]


def _preferred(one: tuple[int | None, Reply], other: tuple[int | None, Reply]) -> Verdict:
    (first, reply), (second, another) = one, other
    outcome: Outcome | None = None
    if first is not None and second is not None:
        outcome = "tie" if first == second else "first" if first > second else "second"
    return Verdict((outcome,), (False,), not (reply.left_out or another.left_out))
