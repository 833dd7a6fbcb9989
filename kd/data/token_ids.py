"""Rendered text as ids, and back: control tokens that are marked are the characters that they consist of."""

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import mark_control_tokens

MARKS = mark_control_tokens("x", re.compile("x")).split("x")  # around a control token that is text


class TextError(ValueError):
    """A text that cannot be encoded. Its sentence lacks its subject, which is the record (`kd.data.sequences`)."""


@lru_cache(maxsize=8)
def any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the tokens, longer ones first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of rendered text, in which control tokens that are marked are text. Raises TextError where it has none."""
    marked = any(mark in text for mark in MARKS)
    try:
        return tokenizer(text, add_special_tokens=False, **({"sanitize_control_tokens": True} if marked else {}))[
            "input_ids"
        ]
    except (UnicodeEncodeError, TypeError) as error:
        raise TextError(f"holds text that is no valid Unicode ({error}); remove its lone surrogates") from error
    except ValueError as error:
        if not marked:
            raise
        raise TextError(f"holds a control token as text ({error}); remove it, or allow control_tokens") from error


def anchored(text: str, tokenizer: PreTrainedTokenizerBase, anchor: str) -> list[int]:
    """Ids of a text that follows `anchor`."""
    if not anchor:
        return ids_of(text, tokenizer)
    for other in (anchor, "\0"):  # the second for a tokenizer with tokens that begin with a newline
        before, both = ids_of(other, tokenizer), ids_of(other + text, tokenizer)
        if both[: len(before)] == before:
            return both[len(before) :]
    return ids_of(text, tokenizer)


def decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of ids without special tokens; its spaces are as they are."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def spelling(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """An id as the vocabulary writes it."""
    return str(tokenizer.convert_ids_to_tokens(token))
