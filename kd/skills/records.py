"""A skill of a config, and its records as the rest reads them: checked, with texts in place of lists of text parts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from kd.components.instantiation import instantiate
from kd.data.chat_template import control_tokens_in
from kd.data.conversations import strings
from kd.data.images import PLACE, places
from kd.types import Message, Record, Skill, Split


def skill_of(node: Any) -> Skill:
    """The skill of a config's node `skill`, as plain data; of the same node it is the same, which reads its data once
    for checks, identity and training."""
    return made(json.dumps(node, sort_keys=True))


@lru_cache(maxsize=32)
def made(node: str) -> Skill:
    """The skill of a node in json with sorted keys. The last 32 are kept, with the records that they have read."""
    return instantiate(OmegaConf.create({"skill": json.loads(node)}).skill)  # errors name the key


def load(skill: Skill, split: Split) -> list[Record]:
    """The records of one split. Those of a skill whose `control_tokens` is true have it true as well.

    Raises:
        ValueError: a record cannot be read as text; the sentence names the record, the field, and what to do.
    """
    allowed = skill.control_tokens
    return [checked(record, allowed) for record in skill.load(split)]


def checked(record: Record, allowed: bool = False, place: str | None = None) -> Record:
    """The record with texts in place of lists of text parts; `allowed`: its control tokens are control.

    Raises ValueError as `load` does; the sentence begins with `place`, if it is given.
    """
    where = place or f"record {record.id} of {record.skill}"
    if not record.prompt:
        raise ValueError(f"{where} has an empty prompt; give it a message, or leave the record out")
    shown = bool(record.images)
    prompt = tuple(_message(message, f"{where}: message {i}", shown) for i, message in enumerate(record.prompt))
    responses = tuple(
        replace(response, text=_text(response.text, f"{where}: the text of response {i}"))
        for i, response in enumerate(record.responses)
    )
    _check_unicode(prompt, f"{where}: its prompt")
    if record.images and (count := places(prompt)) != len(record.images):
        raise ValueError(
            f"{where} has {len(record.images)} images and {count} places for them; write a part {{type: image}} in a "
            "message's content for each"
        )
    return replace(record, prompt=prompt, responses=responses, control_tokens=record.control_tokens or allowed)


def _message(message: Message, where: str, shown: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"{where} is {_short(message)}, without a role; write {{role: user, content: text}}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    return {**message, "content": _text(content, f"{where} ({message['role']}): its content", shown)}


def _text(value: Any, where: str, shown: bool = False) -> str:
    """The text, or that of a list of parts, one after another: texts and, with `shown`, the places of images."""
    if isinstance(value, list | tuple):
        parts = [_part(part, shown) for part in value]
        odd = next((part for part, text in zip(value, parts, strict=True) if not isinstance(text, str)), None)
        if odd is not None:
            raise ValueError(f"{where} has a part that is no text ({_short(odd)}); leave the record out, or its part")
        value = "".join(map(str, parts))
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_short(value)}, which is no text; write a text, or leave the record out")
    _check_unicode(value, where)
    return value


def _part(part: Any, shown: bool) -> Any:
    if not isinstance(part, Mapping):
        return part
    text = part.get("text")
    return PLACE if shown and part.get("type") == "image" and text is None else text


def _check_unicode(value: Any, where: str) -> None:
    for text in strings(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = text[error.start : error.end].encode("unicode_escape").decode()
            raise ValueError(
                f"{where} holds {found} at character {error.start}, half of a surrogate pair, which no file can hold; "
                "replace it, or leave the record out"
            ) from error


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=True)
    return text if len(text) <= 60 else text[:60] + "..."


def held(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A sentence about the control tokens that the records' texts hold as strings; None where they hold none."""
    found = [control_tokens_in(_texts(record), tokenizer) for record in records]
    if not any(found):
        return None
    names = sorted(set().union(*found))
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    text = sum(bool(tokens) and not record.control_tokens for tokens, record in zip(found, records, strict=True))
    control = sum(map(bool, found)) - text
    ways = [f"{count} as {what}" for count, what in ((text, "text"), (control, "control tokens")) if count]
    return f"{text + control} of {len(records)} records hold {listed} in their texts; encoded: {', '.join(ways)}"


def _texts(record: Record) -> list[str]:
    return [*strings(record.prompt), *(response.text for response in record.responses)]
