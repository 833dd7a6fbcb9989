"""Conversations as files keep them, as messages: OpenAI's, and ShareGPT's; tools and their calls as text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd.data.tables import LONGEST
from kd.types import Message, Response

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
TOOLS = (
    'You may call these functions, each call as <tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>:\n{tools}'
)


def text_of(value: Any, what: str, *, empty: bool = False) -> str:
    """The value as text: a text or a number. Raises ValueError, without a subject, for anything else, and for none.

    empty: whether a text of blanks alone is allowed.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0:
        return str(value)
    if not isinstance(value, str):
        shown = json.dumps(value, default=str)
        kind = "null" if value is None else f"{shown[:40]}{'...' if len(shown) > 40 else ''}, which is no text"
        raise ValueError(f"has {kind} as {what}; write a text, map it with skill.columns, or leave the row out")
    if not empty and not value.strip():
        raise ValueError(f"has an empty text as {what}; fill it in, or leave the row out")
    if len(value) > LONGEST:
        raise ValueError(f"has {len(value)} characters as {what}; cut it below {LONGEST}, or leave the row out")
    return value


def is_sharegpt(value: Sequence[Any]) -> bool:
    """Whether these are turns of `from` and `value`."""
    return bool(value) and all(isinstance(turn, Mapping) and "from" in turn for turn in value)


def from_sharegpt(turns: Sequence[Any], name: str) -> list[Message]:
    """The turns as messages. Raises ValueError for an unknown speaker or a turn without text."""
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        speaker = turn["from"]
        if speaker not in ROLES:
            raise ValueError(f"has a turn from {speaker!r} ({name}[{i}]); write one of {', '.join(ROLES)}")
        content = text_of(turn.get("value"), f"{name}[{i}].value")
        content = f"<tool_call>{content}</tool_call>" if speaker == "function_call" else content
        messages.append({"role": ROLES[speaker], "content": content})
    return messages


def is_conversation(value: Sequence[Any], name: str) -> list[Message]:
    """The messages, each with role and content. Raises ValueError for one that is none."""
    messages: list[Message] = []
    if not value:
        raise ValueError(f"has no messages in {name}; write some, or leave the row out")
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"has a message without a role ({name}[{i}]); write {{role: user, content: text}}, or leave the row out"
            )
        kept = {key: part for key, part in message.items() if part is not None}  # Parquet fills up with nulls
        if not kept.get("content") and kept.get("tool_calls"):
            kept["content"] = ""
        elif not isinstance(kept.get("content"), list | tuple):  # of parts: `kd.skills.records` reads these
            kept["content"] = text_of(kept.get("content"), f"{name}[{i}].content")
        messages.append(kept)
    return messages


def split_answer(messages: list[Message], *, answered: bool) -> tuple[list[Message], tuple[Response, ...]]:
    """The messages before the last answer, and that answer, if the conversation ends with one and has it so."""
    last = messages[-1]
    if not answered or last["role"] != "assistant":
        return messages, ()
    if len(messages) == 1:
        raise ValueError("has an answer without a question before it; write the user's message, or leave the row out")
    content = last["content"]
    text = content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
    return messages[:-1], (Response(text + _calls(last)),)


def _calls(message: Message) -> str:
    """The tool calls of an answer as the text that a model generates."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    written = []
    for call in calls:
        arguments = call.get("arguments", {})
        arguments = from_json(arguments, f"a call of {call.get('name')} whose arguments are")
        written.append(json.dumps({"name": call.get("name"), "arguments": arguments}, ensure_ascii=False))
    return "\n".join(f"<tool_call>{call}</tool_call>" for call in written)


def from_json(value: Any, what: str) -> Any:
    """The value; a text is read as JSON. Raises ValueError, without a subject, for a text that is none."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f"has {what} no JSON ({value[:40]}); mend it, or leave the row out") from None


def with_tools(prompt: Sequence[Message], tools: Any, system: str = "") -> list[Message]:
    """The prompt with the system text and the tools, as JSON, in its system message."""
    listed = from_json(tools, "tools that are")
    shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in listed) if listed else ""
    if not (shown or system):
        return list(prompt)
    own = prompt[0]["content"] if prompt[0]["role"] == "system" else ""
    parts = [part for part in (system, own, TOOLS.format(tools=shown) if shown else "") if part]
    rest = prompt[1:] if own else prompt
    return [{"role": "system", "content": "\n\n".join(parts)}, *rest]


def strings(value: Any) -> Iterator[str]:
    """All texts in a message, or in a list of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each)
