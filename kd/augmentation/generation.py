"""Stages that generate text: the settings of their decoding, and prompts that are made of a record's by a template."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import NonNegativeFloat

from kd.augmentation import Resources, Stage
from kd.data.prompt_templates import filled, question, template_text
from kd.generators import Generator
from kd.generators.settings import Decoding, NewTokens, Nucleus, Together
from kd.generators.torch import Torch
from kd.types import Record


@dataclass(kw_only=True, eq=False)
class Generating(Stage):
    """A stage that generates text.

    Args:
        max_new_tokens: a response that long is truncated there, without an end token.
        temperature: 0 takes the likeliest token each time, above 0 samples.
        top_p: see `kd.generators.generation.generate`.
        batch_size: responses decoded together, beams counted.
        generator: the engine that writes (`kd.generators`), in this process; None: our own.

    Raises:
        ValueError: the engine cannot decode so.
    """

    max_new_tokens: NewTokens
    temperature: NonNegativeFloat
    top_p: Nucleus = 1.0
    batch_size: Together = 16
    generator: Generator | None = None

    def __post_init__(self) -> None:
        self.engine.check(self.decoding)

    @property
    def engine(self) -> Generator:
        """The engine that generates."""
        return Torch() if self.generator is None else self.generator

    @property
    def decoding(self) -> Decoding:
        """Of each text; subclasses with several samples have their own."""
        return Decoding(self.max_new_tokens, 1, self.temperature, self.top_p, self.batch_size)

    def teacher_texts(
        self, resources: Resources, prompts: Sequence[Record], what: str, reason: str = "truncated response"
    ) -> list[str | None]:
        """One text of the teacher for each prompt, stripped; None for one that is empty, or that was truncated.

        what: names the texts, as "critiques". reason: under which a None is counted as dropped.
        """
        found: list[str | None] = []
        for answer in resources.generate("teacher", prompts, self.decoding, what=what, engine=self.engine):
            text = answer.texts[0].strip()
            found.append(text if text and answer.finished[0] else None)
            if found[-1] is None:
                resources.dropped("empty response" if answer.finished[0] else reason)
        return found


def paragraphs(where: str, template: str) -> list[str]:
    """The paragraphs of a template's text, each of which is a message, a principle, or the like.

    Raises ValueError where there is none.
    """
    if found := [part.strip() for part in template_text(where, template).split("\n\n") if part.strip()]:
        return found
    raise ValueError(f"{where}={template!r} has no paragraph; write one or more, with an empty line between them")


def fenced(record: Record, template: str, texts: Mapping[str, str], plain: Mapping[str, str] | None = None) -> Record:
    """A prompt of one message about the record, whose field `question` is its prompt as one text.

    The record's and a model's texts stand between fences that they cannot close (`kd.data.prompt_templates.filled`),
    and what looks like a control token in them is text. plain: our own texts, as they are.
    """
    content = filled(template, {"question": question(record), **texts}, plain).strip()
    return Record(record.id, record.skill, ({"role": "user", "content": content},))


def instructed(record: Record, system: str) -> Record:
    """The record with a system message, in place of its own if it has one."""
    rest = [message for message in record.prompt if message["role"] != "system"]
    return replace(record, prompt=({"role": "system", "content": system}, *rest))


def quota(share: float) -> Iterator[bool]:
    """An endless sequence of which each beginning of n holds True n x share times, rounded down.

    Example:
        >>> from itertools import islice
        >>> [*islice(quota(0.5), 4)], [*islice(quota(1.0), 2)]
        ([False, True, False, True], [True, True])
    """
    i = 0
    while True:
        i += 1
        yield int(i * share + 1e-9) > int((i - 1) * share + 1e-9)
