"""What a skill's records are, before a model is trained on them: counts, lengths, duplicates, leaks, languages."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kd.data.bad_rows import named
from kd.data.divisions import near_duplicates
from kd.data.sequences import Encoded, encode, naming
from kd.skills.records import held, load
from kd.types import Record, Skill, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
READ = 2000  # records of each split whose tokens are counted
LETTERS = 20  # of a text whose language is determined
UNBOUNDED = 1 << 30
WIDTH = 80
ROWS, LINES = 3, 12  # rows that are printed, and lines of each at most

Tokenizers = Mapping[str, PreTrainedTokenizerBase]
Splits = Mapping[Split, Sequence[Record]]


def inspected(skill: Skill, tokenizers: Tokenizers, max_length: int) -> Iterator[str]:
    """The lines of a report on a skill, at most 80 columns wide.

    tokenizers: by role, student or teacher; lengths, control tokens and the rows are in theirs.
    max_length: of `data.max_length`, in tokens.
    """
    splits = {split: load(skill, split) for split in SPLITS}
    yield f"{skill.name}, licence: {skill.licence}"
    yield from _counts(skill, splits)
    yield from _skipped(skill)
    yield from _repeated(splits)
    yield from _languages([record for records in splits.values() for record in records])
    for role, tokenizer in tokenizers.items():
        yield from _lengths(role, tokenizer, splits, max_length)
        yield from _control(role, tokenizer, splits)
    yield from _rows(splits, tokenizers, max_length)


def _counts(skill: Skill, splits: Splits) -> Iterator[str]:
    yield ""
    yield _line("", *splits)
    yield _line("records", *(len(records) for records in splits.values()))
    groups = [{record.meta.get(skill.group_key) for record in records} - {None} for records in splits.values()]
    if any(groups):
        yield _line(f"groups ({skill.group_key})", *map(len, groups))
    for name, count in _responses(splits).items():
        yield _line(name, *count)


def _skipped(skill: Skill) -> Iterator[str]:
    """The number of rows that were skipped, and the first of them."""
    for one in (skill, *skill.parts.values()):
        if one.skipped_rows:
            yield _line(f"skipped rows of {one.name}" if skill.parts else "skipped rows", len(one.skipped_rows))
            yield from textwrap.wrap(named(one.skipped_rows), WIDTH, initial_indent="  ", subsequent_indent="  ")


def _responses(splits: Splits) -> dict[str, list[int]]:
    """The number of records with each number of responses."""
    counts = [Counter(len(record.responses) for record in records) for records in splits.values()]
    sizes = sorted(set().union(*counts))
    names = {0: "without a response", 1: "with one response"}
    return {names.get(size, f"with {size} responses"): [count[size] for count in counts] for size in sizes}


def _line(name: str, *values: object) -> str:
    return f"{name[:34]:<34}" + "".join(
        f"{value:>12,}" if isinstance(value, int) else f"{value:>12}" for value in values
    )


def _repeated(splits: Splits) -> Iterator[str]:
    """Prompts that occur twice in a split, and those of one split that are, or nearly are, in another."""
    own = {split: [question(record) for record in records] for split, records in splits.items()}
    yield _line("prompts that occur before", *(len(texts) - len(set(texts)) for texts in own.values()))
    every = [(split, text) for split, texts in own.items() for text in texts]
    clusters = near_duplicates([text for _, text in every])
    where: dict[str, set[str]] = {}
    for (split, _), cluster in zip(every, clusters, strict=True):
        where.setdefault(cluster, set()).add(split)
    exact, near = [], []
    for split in splits:
        others = {text for other in splits if other != split for text in own[other]}
        exact.append(sum(text in others for text in own[split]))
        near.append(sum(s == split and len(where[c]) > 1 for (s, _), c in zip(every, clusters, strict=True)))
    yield _line("prompts of another split, too", *exact)
    yield _line("  the same or nearly", *near)
    if any(exact):
        yield "The splits leak: the same prompts are learnt and measured; name skill.group_key."
    elif any(near):
        yield "Some prompts of different splits are nearly the same; see whether that matters."


def question(record: Record) -> str:
    """The last message, by which two prompts are the same, after the digest of the images."""
    return " ".join([*(image.digest for image in record.images), str(record.prompt[-1]["content"])])


def _languages(records: Sequence[Record]) -> Iterator[str]:
    from py3langid import classify

    texts = [record.responses[0].text if record.responses else question(record) for record in records]
    long = [text for text in texts if sum(map(str.isalpha, text)) >= LETTERS][:READ]
    found = Counter(classify(text)[0] for text in long)
    shares = [f"{name} {count / len(long):.0%}" for name, count in found.most_common(4)]
    what = f" of {len(long):,} texts of {LETTERS} letters or more" if long else "no text is long enough to have one"
    yield f"language: {', '.join(shares)}{what}"


def _lengths(role: str, tokenizer: PreTrainedTokenizerBase, splits: Splits, max_length: int) -> Iterator[str]:
    yield ""
    yield _line(f"tokens of the {role}", *splits)
    rows = {split: [_sizes(record, tokenizer) for record in records[:READ]] for split, records in splits.items()}
    for i, what in enumerate(("prompt", "response")):
        sizes = [sorted(size[i] for size in split) for split in rows.values()]
        for name, share in (("median", 0.5), ("95 %", 0.95), ("longest", 1.0)):
            yield _line(f"  {what}, {name}", *(_quantile(size, share) for size in sizes))
    left_out = [sum(prompt >= max_length for prompt, _ in split) for split in rows.values()]
    cut = [sum(prompt < max_length < prompt + answer for prompt, answer in split) for split in rows.values()]
    yield _line(f"  left out by data.max_length={max_length}", *left_out)
    yield _line("  truncated by it", *cut)


def _sizes(record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Tokens of the prompt and of the longest response, end token included."""
    row = _encoded(record, tokenizer, UNBOUNDED)
    return row[0], max(row[1:], default=0)


def _encoded(record: Record, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    texts = [response.text for response in record.responses] or [""]
    rows = [_row(record, text, tokenizer, max_length) for text in texts]
    whole = [row for row in rows if row is not None]
    answers = [len(row.ids) - row.prompt for row in whole] if record.responses else []
    return [whole[0].prompt, *answers]


def _row(record: Record, text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded | None:
    read: dict[str, Any] = {"control_tokens": record.control_tokens, "images": record.images}
    with naming(record):
        return encode(record.prompt, text, tokenizer, max_length, **read)


def _quantile(sizes: Sequence[int], share: float) -> object:
    return sizes[min(int(share * len(sizes)), len(sizes) - 1)] if sizes else "–"


def _control(role: str, tokenizer: PreTrainedTokenizerBase, splits: Splits) -> Iterator[str]:
    found = held([record for records in splits.values() for record in records], tokenizer)
    yield from textwrap.wrap(f"control tokens of the {role}: {found or 'no text holds one'}", WIDTH)


def _rows(splits: Splits, tokenizers: Tokenizers, max_length: int) -> Iterator[str]:
    """The first rows of the first split that has some, as the student reads them."""
    records = next((records for records in splits.values() if records), [])
    tokenizer = next(iter(tokenizers.values()), None)
    for record in records[:ROWS]:
        yield ""
        yield f"── {record.id} "[:WIDTH].ljust(WIDTH, "─")
        lines = [line for part in _seen(record, tokenizer, max_length).splitlines() for line in _wrapped(part)]
        yield from lines[:LINES]
        if len(lines) > LINES:
            yield f"… and {len(lines) - LINES} more lines"


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, drop_whitespace=False, replace_whitespace=False) or [""]


def _seen(record: Record, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> str:
    """The text of the tokens, control tokens included; the messages where no tokenizer is given."""
    if tokenizer is None:
        turns = [f"{message['role']}: {message['content']}" for message in record.prompt]
        return "\n".join([*turns, *(f"→ {response.text}" for response in record.responses)])
    text = record.responses[0].text if record.responses else ""
    row = _row(record, text, tokenizer, max_length)
    if row is None:
        return f"(left out: its prompt alone fills data.max_length={max_length})"
    return str(tokenizer.decode(list(row.ids if record.responses else row.ids[: row.prompt])))
