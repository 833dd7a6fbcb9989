"""The words in which an answer differs from that of the student before training."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

WORD = re.compile(r"(?:\w+|[^\w\s])\s*|\s+")  # with the white space that follows it
REACH = 2  # times the characters that are shown are compared: what is beyond may have moved into them

Piece = tuple[str, bool]  # a part of a text, and whether its words are changed


def changed_words(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; words of `before` that are gone, and words of `after` that are new, are changed."""
    old, new = WORD.findall(before), WORD.findall(after)
    matcher = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False)
    pieces: tuple[list[Piece], list[Piece]] = [], []
    for kind, *ends in matcher.get_opcodes():
        for found, words, (start, end) in zip(pieces, (old, new), (ends[:2], ends[2:]), strict=True):
            if end > start:
                found.append(("".join(words[start:end]), kind != "equal"))
    return pieces


def marked(systems: Mapping[str, Mapping[str, Any]], longest: int) -> dict[str, list[Piece]]:
    """The answers of the systems in pieces, cut at `longest` characters.

    Changed are the words of `before` that are gone in `after`, and those of the others that `before` lacks.
    """
    texts = {name: one["response"] for name, one in systems.items()}
    found = {name: [(text, False)] for name, text in texts.items()}
    if "before" in texts:
        start = texts["before"][: REACH * longest]
        compared = {n: changed_words(start, text[: REACH * longest]) for n, text in texts.items() if n != "before"}
        found |= {name: new for name, (_, new) in compared.items()}
        if "after" in compared:
            found["before"] = compared["after"][0]
    return {name: _cut(pieces, longest, texts[name]) for name, pieces in found.items()}


def _cut(pieces: Sequence[Piece], longest: int, whole: str) -> list[Piece]:
    kept, left = list[Piece](), longest
    for text, changed in pieces:
        if left > 0:
            kept.append((text[:left], changed))
        left -= len(text)
    return [*kept, ("…", False)] if len(whole) > longest else kept


def as_text(pieces: Sequence[Piece], gone: bool) -> str:
    """The pieces as one text, in which `[-…-]` marks words that are gone, and `{+…+}` those that are new."""
    return "".join(_between(text, gone) if changed else text for text, changed in pieces)


def _between(text: str, gone: bool) -> str:
    words = text.strip()
    first, last = ("[-", "-]") if gone else ("{+", "+}")
    return text.replace(words, f"{first}{words}{last}", 1) if words else text
