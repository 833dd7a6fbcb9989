"""The lettered options of a question in another order; the right letter goes with its text.

Models prefer places: Zheng et al. 2023, "Large Language Models Are Not Robust Multiple Choice Selectors", arXiv
2309.03882.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kd.evaluation.variants.editable import Span, question, spliced, stream, with_question
from kd.types import Record

VERSION = 1
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def option_order(record: Record, seed: int) -> Record | None:
    """The record with its options in an order drawn by its id, never the given one (`reordered`)."""
    count = len(record.meta.get("choices") or ())
    if count < 2:
        return None
    random, order = stream(record, seed, "option_order"), list(range(count))
    while order == list(range(count)):
        random.shuffle(order)
    return reordered(record, order)


def reordered(record: Record, order: Sequence[int]) -> Record | None:
    """The record whose option i is option `order[i]` of the given one.

    `meta["choices"]` are the options' texts, or their letters. Letters in the question stay in order, their texts move;
    `choices`, `answer_index`, `relevance` and right answers that are a letter (`B`, `(b)`, `B. text`) follow. None
    where the question does not list all options by letter, or an answer names a letter within a longer text.
    """
    meta, text = dict(record.meta), question(record)
    choices, right = [str(one) for one in meta.get("choices") or ()], meta.get("answer_index")
    spans = _options(text, choices)
    if spans is None or not isinstance(right, int):
        return None
    letters, new = LETTERS[: len(order)], list(order).index(right)
    texts = [text[start:end] for start, end in spans]
    moved = with_question(record, spliced(text, {span: texts[old] for span, old in zip(spans, order, strict=True)}))
    renamed = {letters[old]: letters[i] for i, old in enumerate(order)}
    found = {key: _renamed(value, renamed, texts) for key, value in _answers(record).items()}
    responses = [_renamed(one.text, renamed, texts) for one in record.responses]
    if None in (*found.values(), *responses):
        return None
    lists = {"relevance": meta.get("relevance"), "choices": None if choices == list(letters) else meta["choices"]}
    meta |= {key: [value[old] for old in order] for key, value in lists.items() if value}
    answered = tuple(replace(old, text=str(one)) for one, old in zip(responses, record.responses, strict=True))
    return replace(moved, responses=answered, meta={**meta, **found, "answer_index": new})


def _options(text: str, choices: Sequence[str]) -> list[Span] | None:
    """The place of each option's text in the last list of options; None where not all of them are there in order."""
    found: list[Span] = []
    place = 0
    for letter, choice in zip(LETTERS, choices, strict=False):
        lettered = all(one == other for one, other in zip(choices, LETTERS, strict=False))
        body = r"[^\n]*\S" if lettered else re.escape(choice.strip())
        pattern = re.compile(rf"^[ \t]*\(?{letter}[.):][ \t]*({body})", re.MULTILINE)
        matches = [match for match in pattern.finditer(text) if match.start() >= place]
        if not matches or len(choices) > len(LETTERS):
            return None
        match = matches[-1 if not found else 0]
        found.append(match.span(1))
        place = match.end()
    return found or None


def _answers(record: Record) -> dict[str, Any]:
    """The entries of `meta` that say what is right."""
    return {key: record.meta[key] for key in ("answer", "references", "letter") if record.meta.get(key) is not None}


def _renamed(value: Any, renamed: Mapping[str, str], texts: Sequence[str]) -> Any:
    """A right answer in the new letters; None where it names a letter otherwise than at its beginning."""
    if isinstance(value, list | tuple):
        each = [_renamed(one, renamed, texts) for one in value]
        return None if None in each else each
    if not isinstance(value, str) or value.strip() in texts:
        return value
    match = re.fullmatch(r"(\s*\(?)([A-Za-z])([.):]*)(?:(\s+)(.*))?", value, re.DOTALL)
    if match and match[2].upper() in renamed and (match[5] is None or match[5].strip() in texts):
        new = renamed[match[2].upper()]
        return value[: match.start(2)] + (new if match[2].isupper() else new.lower()) + value[match.end(2) :]
    named = re.compile(rf"(?<!\w)[{''.join(renamed)}](?!\w)")
    return None if named.search(value) else value
