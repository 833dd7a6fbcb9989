"""A teacher whose answers follow from the prompt by a rule: text alone, as an endpoint's."""

import re
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar

from omegaconf import OmegaConf

from kd.augmentation import Account, Resources, Stage
from kd.components.choices import content
from kd.components.instantiation import instantiate
from kd.data.prompt_templates import template_text
from kd.generators.settings import Decoding
from kd.teachers.interface import Answers, Teacher
from kd.types import Record, Response

Reply = Callable[[str], str]
COUNT = count()


class Rule(Teacher):
    """Answers with what a function makes of the last message; a text that ends in "…" counts as truncated.

    read: the messages that it was given, in order.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(self, reply: Reply):
        self.reply = reply
        self.read: list[list[dict[str, Any]]] = []

    def identity(self) -> str:
        """The same for all rules: the cache is a test's own."""
        return "rule"

    def generate(self, records: Sequence[Record], *, decoding: Decoding, **_: Any) -> list[Answers]:
        """The function's answers, `decoding.samples` times each."""
        self.read += [[dict(message) for message in record.prompt] for record in records]
        texts = [self.reply(str(record.prompt[-1]["content"])) for record in records]
        each = decoding.samples
        return [Answers((text,) * each, (not text.endswith("…"),) * each, len(text.split())) for text in texts]


def record(name: str, prompt: str, *answers: str, **fields: Any) -> Record:
    """A conversation of one turn."""
    told = ({"role": "user", "content": prompt},)
    return Record(name, "toy", told, tuple(Response(text) for text in answers), **fields)


def run(
    stage: Stage, given: Sequence[Record], reply: Reply | Teacher, named: str | None = None, **more: Any
) -> tuple[list[Record], Account]:
    """The records after the stage, and its account.

    named: the teacher's content; None: that of no teacher before, so that no answer is read from disk.
    """
    teacher = reply if isinstance(reply, Teacher) else Rule(reply)
    resources = Resources(seed=0, teacher=teacher, teacher_id=named or f"rule {next(COUNT)}", **more)
    return list(stage(iter(given), resources)), resources.account


def configured(name: str, stage: str | None = None, **settings: Any) -> Stage:
    """A stage as `conf/augmentation/NAME.yaml` has it, with other settings, and our own engine."""
    stages = content("augmentation", name)["stages"]
    node = {**stages[stage or next(iter(stages))], "generator": None, **settings}
    return instantiate(OmegaConf.create(node))


def shown(records: Sequence[Record]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Id, last message and responses of each record."""
    return [(r.id, str(r.prompt[-1]["content"]), tuple(one.text for one in r.responses)) for r in records]


def starts(name: str) -> str:
    """The words with which requests of a template of ours begin, and no other text does."""
    return re.split(r"[{\n]", template_text("template", name))[0].strip()


def after(text: str, words: str) -> str:
    """The part of a request after some of its words."""
    return text.partition(words)[2].strip()
