"""Rows of the usual shapes as prompts and responses.

A row has a prompt: `messages` (OpenAI's, with `tools`), `conversations` (ShareGPT's), `instruction` with `input` or
`context` (Alpaca, Dolly), `question` with `context`, `prompt`. It may have responses: `chosen` and `rejected`,
`responses` with `scores`, one with a `label`, `choices` with an answer, or one text. The first of these that
a row has is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kd.data.conversations import from_sharegpt, is_conversation, is_sharegpt, split_answer, text_of, with_tools
from kd.data.images import PLACE
from kd.types import Image, Message, Response

TASKS = ("instruction", "question", "query", "prompt")  # the text of a prompt
CONTEXTS = ("input", "context", "passage")  # that stands beside it
TEXTS = ("response", "completion", "output", "answer", "target")
CHOICES, LISTS, SCORES = ("choices", "options"), ("responses", "completions"), ("scores", "ratings", "ranks")
RIGHT = ("answer_index", "answer_idx", "label", "answerKey", "answer_key", "answer", "correct_answer")
OTHERS = ("system", "tools")
REMEDY = (
    'map its columns, as in \'skill.columns={prompt: "{my_column}", response: "{another}"}\', or name a function in '
    "skill.reader"
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Example:
    """A row as it was read.

    Attributes:
        form: the columns that were read, such as `question → answer`.
        prompt: the messages before the response.
        responses: best first where they bear scores.
        meta: the columns that were not read, and what metrics read (`choices`, `answer_index`, `references`).
        images: those of the prompt, in their order.
    """

    form: str
    prompt: tuple[Message, ...]
    responses: tuple[Response, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Image, ...] = ()

    def showing(self, images: tuple[Image, ...]) -> "Example":
        """The example with images: before the text of its last message where its messages have no places for them."""
        parts = [message["content"] for message in self.prompt]
        if not images or any(PLACE in part if isinstance(part, str) else _holds_image(part) for part in parts):
            return replace(self, images=images)
        *before, last = self.prompt
        content, shown = last["content"], PLACE * len(images)
        content = shown + content if isinstance(content, str) else [shown, *content]
        return replace(self, prompt=(*before, {**last, "content": content}), images=images)


def _holds_image(parts: Sequence[Any]) -> bool:
    return any(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)


@dataclass
class _Read:
    """A row while it is read: its columns without nulls, and those that were used."""

    columns: Mapping[str, Any]
    used: list[str] = field(default_factory=list)

    def first(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in self.columns), None)

    def take(self, name: str) -> Any:
        self.used.append(name)
        return self.columns[name]

    def text(self, name: str) -> str:
        return text_of(self.take(name), f"its {name}")


def recognised(values: Mapping[str, Any]) -> Example:
    """The row as a prompt with its responses.

    Raises:
        ValueError: it fits no shape, or a value in it is of the wrong kind; a sentence without the place of the row.
    """
    read = _Read({key: value for key, value in values.items() if value is not None})
    meta: dict[str, Any] = {}
    prompt, own = _prompt(read, meta)
    prompted = list(read.used)
    responses = _answers(read, prompt, meta) or own
    prompt = prompt or _shared_start(read)
    if not prompt:
        raise ValueError(_misfit(values))
    system = read.text("system") if "system" in read.columns else ""
    tools = read.take("tools") if "tools" in read.columns else None
    prompt = with_tools(prompt, tools, system)
    answered = [name for name in read.used if name not in (*prompted, *OTHERS)]
    answered = ["the last answer"] if own and not answered else answered
    form = " → ".join(" + ".join(names) for names in (prompted, answered) if names)
    rest = {k: v for k, v in read.columns.items() if k not in read.used}
    return Example(form, tuple(prompt), tuple(responses), {**rest, **meta})


def _misfit(values: Mapping[str, Any]) -> str:
    empty = [key for key, value in values.items() if value is None]
    nulls = f", of which {', '.join(empty)} {'is' if len(empty) == 1 else 'are'} null" if empty else ""
    if "text" in values and not empty:
        return (
            "is plain text, without a prompt and a response; give it a prompt, as in 'skill.prompt=\"Summarise: "
            "{text}\"', or learn it as plain text with corpus=local and a term on the stream lm"
        )
    return f"fits no known shape: its columns are {', '.join(map(str, values)) or 'none'}{nulls}; {REMEDY}"


# --- the prompt ---


def _prompt(read: _Read, meta: dict[str, Any]) -> tuple[list[Message], tuple[Response, ...]]:
    """The messages of the prompt, and the answer of a conversation that ends with one."""
    for name in ("messages", "conversations", "conversation", "prompt"):
        value = read.columns.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            read.used.append(name)
            messages = from_sharegpt(value, name) if is_sharegpt(value) else is_conversation(value, name)
            return split_answer(messages, answered=name != "prompt")
    task = read.first(TASKS)
    if task is None:
        return [], ()
    text = read.text(task)
    context = read.first(CONTEXTS)
    beside = text_of(read.columns[context], f"its {context}", empty=True) if context else ""
    if context:
        read.take(context)
    parts = [text, beside] if task == "instruction" else [beside, text]
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}], ()


def _shared_start(read: _Read) -> list[Message]:
    """The prompt of a pair of whole conversations: the messages that both begin with."""
    chosen, rejected = read.columns.get("chosen"), read.columns.get("rejected")
    if not (isinstance(chosen, Sequence) and isinstance(rejected, Sequence)) or isinstance(chosen, str):
        return []
    both = [
        from_sharegpt(v, n) if is_sharegpt(v) else is_conversation(v, n)
        for v, n in ((chosen, "chosen"), (rejected, "rejected"))
    ]
    shared: list[Message] = []
    for one, other in zip(*(messages[:-1] for messages in both), strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


# --- the responses ---


def _answers(read: _Read, prompt: list[Message], meta: dict[str, Any]) -> tuple[Response, ...]:
    for reader in (_preference, _ranked, _labelled, _choice, _text):
        if (found := reader(read, prompt, meta)) is not None:
            return found
    return ()


def _preference(read: _Read, prompt: list[Message], meta: dict[str, Any]) -> tuple[Response, ...] | None:
    """`chosen` and `rejected`, texts or conversations that end with them; scores 1 and 0 where the row has none."""
    if not {"chosen", "rejected"} <= read.columns.keys():
        return None
    responses: list[Response] = []
    for name, score in (("chosen", 1.0), ("rejected", 0.0)):
        text = _last_text(read.take(name), f"its {name}")
        given = next((key for key in (f"score_{name}", f"{name}_score") if key in read.columns), None)
        if any(key.startswith("score_") for key in read.used) and given is None:
            raise ValueError("has no score_rejected beside score_chosen; give both, or none")
        responses.append(Response(text, score=_number(read.take(given), given) if given else score))
    return tuple(responses)


def _last_text(value: Any, what: str) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[-1]
    if isinstance(value, Mapping) and ("content" in value or "value" in value):
        value = value.get("content", value.get("value"))
    return text_of(value, what)


def _ranked(read: _Read, prompt: list[Message], meta: dict[str, Any]) -> tuple[Response, ...] | None:
    """A list of responses, best first: by their `scores`, or by `ranks`, of which 1 is the best."""
    name = read.first(LISTS)
    if name is None or not isinstance(read.columns[name], Sequence) or isinstance(read.columns[name], str):
        return None
    items, by = _listed(read.take(name), name), read.first(SCORES)
    texts = [_last_text(_inner(item), f"its {name}[{i}]") for i, item in enumerate(items)]
    if by is None:
        found = [_score_in(item) for item in items]
        if all(score is None for score in found):
            return tuple(map(Response, texts))
        scores = [_number(score, f"score of {name}[{i}]") for i, score in enumerate(found)]
    else:
        scores = [_number(score, f"{by}[{i}]") for i, score in enumerate(_listed(read.take(by), by))]
        scores = [-score for score in scores] if by == "ranks" else scores
    if len(scores) != len(texts):
        raise ValueError(f"has {len(texts)} {name} and {len(scores)} {by}; give each response its score")
    pairs = sorted(zip(texts, scores, strict=True), key=lambda pair: -pair[1])  # stable: equal ones keep their order
    return tuple(Response(text, score=score) for text, score in pairs)


def _inner(item: Any) -> Any:
    names = ("text", "response", "content", "value", "output")
    return next((item[key] for key in names if key in item), None) if isinstance(item, Mapping) else item


def _score_in(item: Any) -> Any:
    names = ("score", "overall_score", "rating", "reward")
    return next((item[key] for key in names if key in item), None) if isinstance(item, Mapping) else None


def _labelled(read: _Read, prompt: list[Message], meta: dict[str, Any]) -> tuple[Response, ...] | None:
    """A response with a verdict, true or false, as KTO reads it."""
    name = read.first(("completion", "response"))
    if name is None or not isinstance(read.columns.get("label"), bool):
        return None
    return (Response(_last_text(read.take(name), f"its {name}"), score=float(read.take("label"))),)


def _choice(read: _Read, prompt: list[Message], meta: dict[str, Any]) -> tuple[Response, ...] | None:
    """`choices` with the right one by number, letter or text. A question is shown with lettered choices."""
    name, right = read.first(CHOICES), read.first(RIGHT)
    if name is None or right is None:
        return None
    value = read.take(name)
    labels = [*map(str, value["label"])] if isinstance(value, Mapping) and "label" in value else None
    texts = value.get("text") if isinstance(value, Mapping) and "text" in value else value
    if isinstance(texts, Mapping):
        labels, texts = [*map(str, texts)], [*texts.values()]
    choices = [text_of(text, f"its {name}[{i}]") for i, text in enumerate(_listed(texts, name))]
    index = _index(read.take(right), choices, labels or LETTERS[: len(choices)], right)
    meta |= {"choices": choices, "answer_index": index}
    if "prompt" not in read.used and prompt:
        lettered = "".join(f"\n{LETTERS[i]}. {choice}" for i, choice in enumerate(choices[: len(LETTERS)]))
        prompt[-1] = {**prompt[-1], "content": prompt[-1]["content"] + lettered}
    return (Response(choices[index]),)


def _index(value: Any, choices: Sequence[str], labels: Sequence[str], name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    text = str(value).strip()
    if text in choices:
        return choices.index(text)
    if text in labels:
        return list(labels).index(text)
    if text.isdigit() and int(text) < len(choices):
        return int(text)
    raise ValueError(
        f"has {name}={value!r}, which is none of its {len(choices)} choices; give the number of the right one "
        "(from 0), its letter or its text"
    )


def _text(read: _Read, prompt: list[Message], meta: dict[str, Any]) -> tuple[Response, ...] | None:
    """One text; `references` or a list of `answers` are further ones that are right, too."""
    listed = next((n for n in ("references", "answers") if n in read.columns), None)
    if listed is not None:
        value = read.take(listed)
        value = value.get("text") if isinstance(value, Mapping) else value
        meta["references"] = [text_of(text, f"its {listed}[{i}]") for i, text in enumerate(_listed(value, listed))]
    if (name := read.first([text for text in TEXTS if text not in read.used])) is None:
        return (Response(meta["references"][0]),) if meta.get("references") else None
    value = read.take(name)
    if isinstance(value, list | tuple) and not isinstance(value[0] if value else None, Mapping):
        meta["references"] = [text_of(text, f"its {name}[{i}]") for i, text in enumerate(_listed(value, name))]
        return (Response(meta["references"][0]),)
    if name != "answer" and isinstance(read.columns.get("answer"), str | int | float):
        meta["answer"] = str(read.columns["answer"])
    return (Response(_last_text(value, f"its {name}")),)


def _listed(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"has no list in {name}, or an empty one; write a list of texts, or leave the row out")
    return value


def _number(value: Any, name: str | None) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"has {name}={value!r}, which is no number; give one, or leave the row out") from None
    if number - number != 0:
        raise ValueError(f"has {name}={number}; give a finite number, or leave the row out")
    return number
