"""Conversations as ids: strings of a tokenizer's chat template are control tokens, strings of a record are text.

Strings such as `<|im_end|>` inside a message are encoded as the characters that they are (`sanitize_control_tokens` of
transformers), unless a record allows them. Control tokens are the tokenizer's special tokens, and the end of a turn;
other added tokens (`<think>` of Qwen3) are ordinary words of the vocabulary, in records too.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import mark_control_tokens

from kd.data.conversations import strings
from kd.data.images import as_text_parts, expanded, vision_of, with_parts
from kd.data.token_ids import MARKS, TextError, anchored, any_of, decode, ids_of, spelling
from kd.types import Image, Message

_QUESTION, _ANSWER = "Question?", "Answer."  # the conversation that a template is tried on


@dataclass(frozen=True)
class Turn:
    """The end of an answer in a tokenizer's template, found by rendering one.

    end: the id that ends it: the template's own (`<end_of_turn>` of Gemma), or the tokenizer's end token where the
        template writes none.
    closing: the text between the answer and that token (Llama 2: a space).
    tail: all text of the template after an answer.
    opening: the text between the generation prompt and the answer (Qwen3: an empty think block).
    anchor: text that must precede an answer when it is encoded, since the tokenizer adds a space to what is encoded
        alone and the template has it follow other text; "" where it makes no difference.
    """

    end: int
    closing: str = ""
    tail: str = ""
    opening: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Piece:
    """A part of a conversation's ids. `learnt`: an assistant's turn with its end token."""

    ids: tuple[int, ...]
    learnt: bool


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The rendered prompt, up to where the answer begins.

    Without a chat template (base models) the messages are joined by blank lines, and a newline opens the answer.

    Raises:
        TextError: the template refuses the conversation.
    """
    if tokenizer.chat_template:
        return _applied(messages, tokenizer, add_generation_prompt=True)
    return (tokenizer.bos_token or "") + "\n\n".join(message["content"] for message in messages) + "\n"


def encode_prompt(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    control_tokens: bool = False,
    images: Sequence[Image] = (),
) -> list[int]:
    """Ids of the rendered prompt; special tokens are the template's alone, unless `control_tokens` allows others.

    Raises:
        TextError: the template refuses the conversation, or the tokenizer cannot write it as text, or its images.
    """
    marked = messages if control_tokens else as_text(messages, tokenizer)
    [ids] = _shown([ids_of(render(_with(marked, images), tokenizer), tokenizer)], images, tokenizer)
    return ids


def encode_answer(
    messages: Sequence[Message],
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    control_tokens: bool = False,
    ended: bool = True,
) -> list[int]:
    """Ids of an answer to `messages` as the template writes it, with its end token if it `ended`.

    It is encoded apart from the prompt, as it is generated: together, a space at the start of the answer could become
    one token with the newline that ends the prompt.

    Raises:
        TextError: see `encode_prompt`.
    """
    turn = turn_of(tokenizer)
    if not control_tokens:
        messages, text = as_text(messages, tokenizer), as_text(text, tokenizer)
    body = _written(messages, text, tokenizer, turn) if tokenizer.chat_template else text
    if not ended:
        body = body.removesuffix(turn.closing)
    return [*anchored(body, tokenizer, turn.anchor), *([turn.end] if ended else [])]


def encode_conversation(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    control_tokens: bool = False,
    images: Sequence[Image] = (),
) -> list[int]:
    """Ids of a conversation whose last message is the assistant's, as the template writes it in one piece.

    Raises:
        TextError: see `encode_prompt`.
    """
    marked = messages if control_tokens else as_text(messages, tokenizer)
    [ids] = _shown([ids_of(_applied(_with(marked, images), tokenizer), tokenizer)], images, tokenizer)
    return ids


def encode_turns(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    control_tokens: bool = False,
    images: Sequence[Image] = (),
) -> list[Piece]:
    """The prompt in pieces: each answer of the assistant, encoded apart as the last one is, and the text around it.

    An assistant's message that opens a conversation is no answer and is not learnt.

    Raises:
        TextError: see `encode_prompt`; or an answer cannot be found in what the template writes.
    """
    marked = _with(messages if control_tokens else as_text(messages, tokenizer), images)
    whole, turn = render(marked, tokenizer), turn_of(tokenizer)
    end, pieces, done = spelling(turn.end, tokenizer), list[Piece](), 0
    for i, message in enumerate(marked):
        if message["role"] != "assistant" or i == 0:
            continue
        start = _start_of(marked, i, whole, tokenizer)
        stop = _find_control(whole, end, start)
        if start < done or stop < 0:
            raise TextError(
                f"has an assistant's message (number {i}) that is not found in what the chat template writes of it; "
                "take data.loss_on=last, or set chat_template of the model"
            )
        answer = anchored(whole[start:stop], tokenizer, turn.anchor)
        pieces.append(Piece(tuple(ids_of(whole[done:start], tokenizer)), learnt=False))
        pieces.append(Piece((*answer, turn.end), learnt=True))
        done = stop + len(end)
    pieces.append(Piece(tuple(ids_of(whole[done:], tokenizer)), learnt=False))
    ids = _shown([piece.ids for piece in pieces], images, tokenizer)
    return [replace(piece, ids=tuple(own)) for piece, own in zip(pieces, ids, strict=True)]


def _with(messages: Sequence[Message], images: Sequence[Image]) -> Sequence[Message]:
    return with_parts(messages) if images else messages


def _shown(
    pieces: Sequence[Sequence[int]], images: Sequence[Image], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """The ids of the parts of a prompt with those of its images. Raises TextError where a model does not read them."""
    if not images:
        return [list(ids) for ids in pieces]
    if (vision := vision_of(tokenizer)) is None:
        raise TextError("has an image, which a model of text does not read; take a vision-language model")
    if (written := sum(list(ids).count(vision.token) for ids in pieces)) != len(images):
        raise TextError(
            f"has {len(images)} images, but the chat template writes {written}; set chat_template of the model"
        )
    left = iter(images)
    return [expanded(ids, left, vision) for ids in pieces]


def _start_of(messages: Sequence[Message], i: int, whole: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The position of message `i`, an answer, in the rendered prompt; -1 where it is not found."""
    prompt = render(messages[:i], tokenizer)
    if whole.startswith(prompt):
        return len(prompt)
    before = _applied(messages[:i], tokenizer) if tokenizer.chat_template else ""
    content = str(messages[i].get("content") or "").strip()
    if not content or not whole.startswith(before):
        return -1
    stop = _find_control(whole, spelling(turn_of(tokenizer).end, tokenizer), len(before))
    return whole.rfind(content, len(before), stop)  # the last match: a letter may occur in the template's header, too


def _find_control(whole: str, token: str, start: int) -> int:
    """The position of the first control token from `start` on that is the template's and no text; -1 without one."""
    found = re.compile(f"(?<!{re.escape(MARKS[0])}){re.escape(token)}").search(whole, max(start, 0))
    return found.start() if found else -1


def response_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a response's ids without special tokens and without the template's text around an answer.

    Spaces are not tidied up.
    """
    turn = turn_of(tokenizer)
    before = ids_of(turn.anchor, tokenizer) if turn.anchor == "\n" else []
    text = decode([*before, *ids], tokenizer).removeprefix("\n" if before else "")
    text = text.removeprefix(decode(ids_of(turn.opening, tokenizer), tokenizer)) if turn.opening else text
    return text.removesuffix(turn.closing) if len(ids) and ids[-1] == turn.end else text


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends an answer. Raises ValueError if there is none."""
    return turn_of(tokenizer).end


def turn_of(tokenizer: PreTrainedTokenizerBase) -> Turn:
    """The end of an answer in the tokenizer's template.

    Raises:
        ValueError: neither the template nor the tokenizer has an end token.
    """
    template = tokenizer.chat_template
    return _turn(tokenizer, template if isinstance(template, str) else str(template), tokenizer.eos_token_id)


@lru_cache(maxsize=4)
def _turn(tokenizer: PreTrainedTokenizerBase, template: str, eos: int | None) -> Turn:
    """The `Turn` of a tokenizer; `template` and `eos` are its current ones, as part of the cache's key."""
    before, after, opening = _around(tokenizer)
    found = _first_control(after, tokenizer)
    if found is None and eos is None:
        raise ValueError(
            "the tokenizer has no end token and its chat template writes none, so no response would end; "
            "set eos_token in its tokenizer_config.json"
        )
    end, closing = (eos, "") if found is None else (tokenizer.convert_tokens_to_ids(found), after.split(found)[0])
    assert isinstance(end, int)
    return Turn(end, closing, after, opening, _anchor(before, tokenizer))


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """The text of a prompt, the template's text after an answer to it, and the text between prompt and answer."""
    question: list[Message] = [{"role": "user", "content": _QUESTION}]
    try:
        before = render(question, tokenizer)
        if not tokenizer.chat_template:
            return before, "", ""
        whole = _applied([*question, {"role": "assistant", "content": _ANSWER}], tokenizer)
    except TextError:  # a template that is not for conversations
        return "", "", ""
    after = whole.rpartition(_ANSWER)[2]
    opening = whole[len(before) :].partition(_ANSWER)[0] if whole.startswith(before) else ""
    return before, after, opening


def _first_control(text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first special token in the text; where there is none, the first added one."""
    tokens = tokenizer.added_tokens_decoder.values()
    for kind in ([t.content for t in tokens if t.special], [t.content for t in tokens if not t.content.isspace()]):
        if kind and (match := any_of(tuple(kind)).search(text)):
            return match[0]
    return None


def _anchor(before: str, tokenizer: PreTrainedTokenizerBase) -> str:
    alone, later = ids_of("a", tokenizer), anchored("a", tokenizer, "\n")
    if not later or later == alone:
        return ""
    special = next((t for t in _control(tokenizer) if t and before.endswith(t)), None)
    if special is None:
        return "\n"
    return "" if anchored("a", tokenizer, special) == alone else special


def _written(messages: Sequence[Message], text: str, tokenizer: PreTrainedTokenizerBase, turn: Turn) -> str:
    """The answer as the template writes it after this prompt, up to its end token.

    The text as it stands where the template changes more of it than the spaces around (those that drop a chain of
    thought), or does not begin as the prompt does.
    """
    prompt = render(messages, tokenizer)
    whole = _applied([*messages, {"role": "assistant", "content": text}], tokenizer)
    piece = whole[len(prompt) :]
    if whole.startswith(prompt) and piece.endswith(turn.tail) and text.strip() in piece:
        return piece.removesuffix(turn.tail) + turn.closing
    return text + turn.closing


def _applied(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    plain = [dict(m) for m in messages] if vision_of(tokenizer) is None else as_text_parts(messages)
    try:
        text = str(tokenizer.apply_chat_template(plain, tokenize=False, **options))
    except (TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise TextError(
            f"(roles: {roles}) is refused by the chat template ({error}); leave out what it does not take, or set "
            "chat_template of the model"
        ) from error
    for i, message in enumerate(messages):
        names = [str((call.get("function") or call).get("name")) for call in message.get("tool_calls") or ()]
        if left := [name for name in names if name not in text]:
            raise TextError(
                f"has a tool call ({left[0]}, message {i}) that the chat template does not write; set a chat_template "
                "that does, or put the call into the message's content"
            )
    return text


def control_tokens_in(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The control tokens that texts hold as strings."""
    pattern = any_of(_control(tokenizer))
    return {found for text in texts for found in pattern.findall(text)}


def as_text(value: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Texts whose control tokens are marked as text; a value without any stays the same object."""
    pattern = any_of(_control(tokenizer))
    if not any(pattern.search(text) for text in strings(value)):
        return value
    plain = [dict(message) for message in value] if not isinstance(value, str) else value
    return mark_control_tokens(plain, pattern)


def _control(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return _controls(tokenizer, len(tokenizer), str(tokenizer.chat_template), tokenizer.eos_token_id)


@lru_cache(maxsize=4)
def _controls(tokenizer: PreTrainedTokenizerBase, size: int, template: str, eos: int | None) -> tuple[str, ...]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    end = _first_control(_around(tokenizer)[1], tokenizer)
    return tuple(sorted(special | ({end} if end else set()) | ({tokenizer.eos_token} if eos is not None else set())))
