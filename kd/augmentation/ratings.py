"""Ratings of records and responses that a model states in its reply to a prompt.

Example:
    >>> stated("It is clear and complete.\\nScore: 4", 0, 5), stated("Score: 4/5 or 9", 0, 5), stated("good", 0, 5)
    (4.0, 4.0, None)
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kd.augmentation import By, Resources
from kd.data.prompt_templates import check_template, inserted, template_text
from kd.generators import Generator
from kd.generators.settings import Decoding
from kd.types import Record

_SCORE = re.compile(r"score\s*(?:is\b|[:=])\W*?(-?\d+(?:\.\d+)?)", re.IGNORECASE)


def stated(text: str, lowest: float | int, highest: float | int) -> float | None:
    """The number after the last "Score:" of a reply; None where there is none, or it is out of bounds."""
    found = _SCORE.findall(text)
    return float(found[-1]) if found and lowest <= float(found[-1]) <= highest else None


def checked_template(where: str, template: str, *fields: str) -> str:
    """The text of a template, or of the file that it names, which has all of these fields and no other one.

    where: the key of the config, for errors.

    Raises ValueError for one that is none, lacks a field or has another one.
    """
    text = template_text(where, template)
    check_template(where, text, required=fields, optional=())
    return text


def asked(record: Record, template: str, texts: Mapping[str, str] | None = None) -> Record:
    """The record with the template in the place of its last message, which is the field `question`."""
    *before, last = record.prompt
    content = inserted(template, {"question": str(last["content"]), **(texts or {})})
    return replace(record, prompt=(*before, {**last, "content": content}))


def rate(
    resources: Resources,
    by: By,
    pairs: Sequence[tuple[Record, Mapping[str, str]]],
    template: str,
    decoding: Decoding,
    *,
    what: str,
    bounds: tuple[float | int, float | int],
    engine: Generator | None = None,
) -> list[float | None]:
    """The mean rating of each record over `decoding.samples` replies; None where no reply states one.

    Args:
        pairs: a record, and the texts of the template's fields beside `question`.
        what: the ratings, as "complexity".
        bounds: the lowest and the highest rating.
    """
    prompts = [asked(record, template, texts) for record, texts in pairs]
    replies = resources.generate(by, prompts, decoding, what=what, engine=engine)
    found = [[value for text in reply.texts if (value := stated(text, *bounds)) is not None] for reply in replies]
    return [math.fsum(values) / len(values) if values else None for values in found]
