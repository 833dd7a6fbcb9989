"""One prompt with one response as ids, and several of them as tensors: shift and mask are made here alone."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock

import torch
from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import Piece, encode_answer, encode_prompt, encode_turns
from kd.data.images import View, settings_of, vision_of
from kd.types import Image, Message, Sequences, Written

MAX_PADDING = 0.1  # share of a window's tokens


@dataclass(frozen=True)
class Encoded:
    """One prompt with one response. `ids[prompt:]` is the response and its end token.

    truncated: whether `max_length` cut off the end token, or more.
    earlier: begin and end of each answer inside the prompt that is learnt, too.
    observed: begin and end of what an environment wrote inside a response, a dialogue, which is not learnt.
    view: the prompt's images; None where it has none.
    """

    ids: tuple[int, ...]
    prompt: int
    written: Written | None = None  # the response, where it was given as ids
    teacher: "Encoded | None" = None  # the teacher's own row, where it differs
    truncated: bool = False
    earlier: tuple[tuple[int, int], ...] = ()
    view: View | None = None
    observed: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Written, *, view: View | None = None) -> "Encoded":
        """A response that is given as ids, after a prompt's."""
        at = len(prompt)
        observed = tuple((at + begin, at + end) for begin, end in answer.observed)
        return cls((*prompt, *answer.ids), at, answer, view=view, observed=observed)

    @property
    def longest(self) -> int:
        """Ids of the row, or of the teacher's, whichever has more."""
        return max(len(self.ids), 0 if self.teacher is None else len(self.teacher.ids))


def encode(
    messages: Sequence[Message],
    response: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    ended: bool = True,
    control_tokens: bool = False,
    every_turn: bool = False,
    images: tuple[Image, ...] = (),
) -> Encoded | None:
    """Prompt, response and end token; cut on the right at `max_length` (then without the end token).

    ended: False for a response that was truncated when it was generated, which has no end token in any tokenizer.
    control_tokens: whether control tokens that stand in the texts as strings are control tokens.
    every_turn: whether the assistant's messages in the prompt are learnt, too.
    images: those of the prompt.

    None if the prompt alone fills `max_length`: nothing would be learnt.
    """
    read = {"control_tokens": control_tokens, "images": images}
    pieces = [Piece(tuple(encode_prompt(messages, tokenizer, **read)), learnt=False)]  # type: ignore[arg-type]
    if every_turn:
        pieces = encode_turns(messages, tokenizer, **read)  # type: ignore[arg-type]
    prompt = [i for piece in pieces for i in piece.ids]
    if len(prompt) >= max_length:
        return None
    answer = encode_answer(messages, response, tokenizer, control_tokens=control_tokens, ended=ended)
    ids = tuple(prompt + answer)
    shown, cut = view(images, tokenizer), len(ids) > max_length
    return Encoded(ids[:max_length], len(prompt), truncated=cut, earlier=_learnt(pieces), view=shown)


def view(images: tuple[Image, ...], tokenizer: PreTrainedTokenizerBase) -> View | None:
    """A prompt's images as the tokenizer's model reads them; None where there are none."""
    return View(images, vision) if images and (vision := vision_of(tokenizer)) else None


def _learnt(pieces: Sequence[Piece]) -> tuple[tuple[int, int], ...]:
    """The begin and end of each piece that is learnt."""
    ends = list(accumulate(len(piece.ids) for piece in pieces))
    return tuple((end - len(piece.ids), end) for piece, end in zip(pieces, ends, strict=True) if piece.learnt)


def collate(rows: Sequence[Encoded], pad: int, padding_side: str = "right", multiple: int = 1) -> Sequences:
    """`[B T]` tensors: tokens without their last, labels without their first, True where a response is predicted."""
    longest = max(len(row.ids) for row in rows) - 1
    width = -(-longest // multiple) * multiple
    tokens = torch.full((len(rows), width), pad)
    labels, mask = tokens.clone(), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        length = len(row.ids) - 1
        start = 0 if padding_side == "right" else width - length
        ids = torch.tensor(row.ids)
        tokens[i, start : start + length] = ids[:-1]
        labels[i, start : start + length] = ids[1:]
        for begin, end in (*row.earlier, (row.prompt, len(row.ids))):
            mask[i, start + begin - 1 : start + end - 1] = True
        for begin, end in row.observed:
            mask[i, start + begin - 1 : start + end - 1] = False
    lengths = torch.tensor([len(row.ids) - 1 for row in rows])
    shown = any(row.view for row in rows)
    pixels = tuple(row.view.pixels() if row.view else {} for row in rows) if shown else ()
    return Sequences(tokens, labels, mask, lengths, padding_side, pixels)  # type: ignore[arg-type]


def micro_batches(lengths: Sequence[int], max_tokens: int, max_padding: float = MAX_PADDING) -> list[list[int]]:
    """Indices grouped by length, longest first, so that memory peaks early.

    A group grows while longest x count stays within `max_tokens`, and padding within the share `max_padding` of
    all tokens so far. A row longer than `max_tokens` is a group of its own.
    """
    groups: list[list[int]] = []
    tokens = padded = 0  # of the rows, and of the rows as wide as their group's longest
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens += lengths[i]
        longest = lengths[groups[-1][0]] if groups else 0
        fits = bool(groups) and longest * (len(groups[-1]) + 1) <= max_tokens
        if fits and tokens >= (1 - max_padding) * (padded + longest):
            groups[-1].append(i)
            padded += longest
        else:
            groups.append([i])
            padded += lengths[i]
    return groups


# --- kept over the runs of a process ---


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over everything that maps a conversation to ids: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    for of_a_batch in ("padding", "truncation"):
        rules.pop(of_a_batch, None)
    words = sorted(tokenizer.get_vocab().items())
    content = [words, rules, tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template]
    content += [settings] if (settings := settings_of(tokenizer)) is not None else []
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def reading(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A digest of all that makes ids of a conversation without images; None where that is not known to be all.

    It is not for tokenizers that are Python code, and for templates that write the day.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None or "strftime_now" in str(tokenizer.chat_template):
        return None
    kind, special = type(tokenizer), sorted(tokenizer.special_tokens_map.items())
    split = getattr(tokenizer, "split_special_tokens", None)
    parts = [kind.__module__, kind.__qualname__, tokenizer_digest(tokenizer), special, split]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


class KeptRows:
    """Rows by content, so that the runs of one process (of a sweep, of a loop, a baseline) encode equal records once.

    bound: on the ids of all rows, each with 100 more for what is beside them; the oldest are dropped above it.
    """

    def __init__(self, bound: int):
        self.bound, self.size, self.rows, self.lock = bound, 0, dict[bytes, list[Encoded]](), Lock()

    def get(self, key: bytes) -> list[Encoded] | None:
        """The rows of a record; None where they are not kept, and none in the list where it does not fit."""
        return self.rows.get(key)

    def keep(self, key: bytes, rows: list[Encoded]) -> None:
        """Keep the rows of a record, which hold no images."""
        with self.lock:
            if key in self.rows:
                return
            self.rows[key] = rows
            self.size += _size(rows)
            while self.size > self.bound:
                self.size -= _size(self.rows.pop(next(iter(self.rows))))


def _size(rows: Sequence[Encoded]) -> int:
    return 100 + sum(len(row.ids) for row in rows)


KEPT = KeptRows(1 << 22)  # 150 MB, where no two ids are one object; 20,000 records of 100 ids
