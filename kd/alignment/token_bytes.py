"""The bytes of each id of a tokenizer: the coordinates that all tokenizers share."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import Turn, turn_of

END = b"\xff\xfe end"  # no text holds it: neither byte occurs in UTF-8


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of every id of one tokenizer.

    pieces:   id -> bytes; None for an id that is not in use. An end token is `END`, whatever its spelling.
    spelled:  id -> the vocabulary's own spelling.
    special:  ids that a decoder leaves out, the end token among them.
    end:      the id that ends a response.
    strips:   True where the decoder takes one space away from the beginning of a response (SentencePiece's prefix).
    around:   the chat template's bytes before and after a response, which are no text of the response.
    """

    pieces: tuple[bytes | None, ...]
    spelled: tuple[str | None, ...]
    special: frozenset[int]
    end: int
    strips: bool = False
    around: tuple[bytes, bytes] = (b"", b"")

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of each piece of bytes; of several (a byte of its own, and a byte for lack of a token) the lowest
        that is spelled plainly."""
        order = sorted(range(len(self.pieces)), key=self.preference, reverse=True)
        return {piece: i for i in order if (piece := self.pieces[i])}

    @cached_property
    def boundary(self) -> Bool[Tensor, " V"]:
        """A mask of the ids before which there is always a token boundary: special ones, and those that begin with a
        space, a tab or a newline."""
        begin = [
            i in self.special or (piece or b"").startswith((b" ", b"\t", b"\n")) for i, piece in enumerate(self.pieces)
        ]
        return torch.tensor(begin)

    def preference(self, i: int) -> tuple[bool, int]:
        """The order of ids that share their bytes: plain spellings first, then low ids."""
        return _is_byte_token(self.spelled[i]), i

    def of(self, ids: list[int], *, silent: bool) -> list[bytes]:
        """The bytes of a response's tokens. `silent`: special tokens have none, as in decoded text."""
        written = [b"" if silent and i in self.special and i != self.end else self.pieces[i] or b"" for i in ids]
        if self.strips and written and written[0].startswith(b" "):
            written[0] = written[0][1:]
        before, after = self.around
        if before and b"".join(written).startswith(before):
            written = _without(written, len(before))
        if after and written[-1:] == [END] and b"".join(written[:-1]).endswith(after):
            written = [*_without([piece[::-1] for piece in written[-2::-1]], len(after))]
            written = [*(piece[::-1] for piece in reversed(written)), END]
        return written


def _without(pieces: list[bytes], count: int) -> list[bytes]:
    """The pieces without the first `count` bytes."""
    kept = []
    for piece in pieces:
        kept.append(piece[count:])
        count = max(0, count - len(piece))
    return kept


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """The bytes of a tokenizer, read from its own description.

    Raises ValueError for a tokenizer whose tokens are no bytes of the text (WordPiece drops spaces), or which has no
    description.
    """
    return _token_bytes(tokenizer, turn_of(tokenizer))


@lru_cache(maxsize=8)
def _token_bytes(tokenizer: PreTrainedTokenizerBase, turn: Turn) -> TokenBytes:
    end = turn.end
    decoder = _decoder(tokenizer)
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {end}
    vocabulary = tokenizer.get_vocab()
    size = 1 + max(vocabulary.values())
    pieces: list[bytes | None] = [None] * size
    spelled: list[str | None] = [None] * size
    plain = _from_byte_level if "ByteLevel" in decoder else _from_sentencepiece
    for word, i in vocabulary.items():
        spelled[i] = word
        pieces[i] = added[i].encode() if i in added else plain(word)
    pieces[end] = END
    strips = any(part.get("start") or part.get("prepend_scheme", "never") != "never" for part in decoder.values())
    strips = strips and turn.anchor != "\n"
    around = turn.opening.encode(), turn.closing.encode()
    return TokenBytes(tuple(pieces), tuple(spelled), frozenset(special), end, strips, around)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Mapping[str, Any]]:
    """The parts of the decoder by type."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str())["decoder"] if backend is not None else None
    parts = {part["type"]: part for part in _parts(described)}
    if not parts.keys() & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise ValueError(
            f"the tokens of {type(tokenizer).__name__} are no pieces of a text's bytes (decoder: "
            f"{', '.join(parts) or 'none'}), so they cannot be aligned by bytes; take alignment=none"
        )
    return parts


def _parts(described: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if described is None:
        return
    if described["type"] == "Sequence":
        for part in described["decoders"]:
            yield from _parts(part)
    else:
        yield described


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for letters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _from_byte_level(word: str) -> bytes:
    letters = _byte_of_letter()
    return bytes(letters[c] for c in word) if all(c in letters for c in word) else word.encode()


def _from_sentencepiece(word: str) -> bytes:
    return bytes([int(word[3:5], 16)]) if _is_byte_token(word) else word.replace("▁", " ").encode()


def _is_byte_token(word: str | None) -> bool:
    return word is not None and len(word) == 6 and word.startswith("<0x") and word.endswith(">")
