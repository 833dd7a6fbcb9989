"""Words that records of evaluation share with records of training.

An item overlaps if N words in a row of its prompt and reference stand in a training record too: 13, as for GPT-3
(arXiv 2005.14165, appendix C), whose rule for text that many documents have is taken over as well: what more than 10
different training prompts hold, alone or with their responses, is a template and is ignored. Words are compared in
lower case without punctuation; where a language is written without spaces each character is one. A prompt of fewer than
N words overlaps if a training record has the same one, but for case and spaces: of "3 + 4" and "3 - 4" the signs count.
A prompt with images overlaps if a training record has one of them, whatever the words around it.

    >>> from kd.types import Record
    >>> a = Record(id="a", skill="s", prompt=({"role": "user", "content": "Spell: Tree"},))
    >>> b = Record(id="b", skill="s", prompt=({"role": "user", "content": "spell:  tree"},))
    >>> overlapping([a], [b])
    ['b']
"""

from collections.abc import Iterator, Sequence

from kd.metrics.words import rouge_tokens
from kd.types import Record, Response

Piece = tuple[str, ...]

N = 13  # words in a row
MANY = 10  # training prompts; what more of them hold is a template


def overlapping(train: Sequence[Record], items: Sequence[Record], *, n: int = N, many: int = MANY) -> list[str]:
    """Ids of the `items` that share `n` words in a row, or a whole short prompt, with a record of `train`."""
    shared = _shared(train, items, n, many)
    return list(dict.fromkeys(item.id for item in items if not shared.isdisjoint(_pieces(item, n))))


def contaminated(train: Sequence[Record], items: Sequence[Record], *, n: int = N, many: int = MANY) -> list[bool]:
    """Whether each record of `train` shares `n` words in a row, or a whole short prompt, with one of the `items`."""
    shared = _shared(train, items, n, many)
    return [not shared.isdisjoint(_pieces(record, n)) for record in train]


def _shared(train: Sequence[Record], items: Sequence[Record], n: int, many: int) -> set[Piece]:
    """The pieces that both have, without those of templates: what records of many different prompts hold."""
    wanted = {piece for item in items for piece in _pieces(item, n)}
    prompts: dict[Piece, set[str]] = {}
    for record in train:
        for piece in wanted.intersection(_pieces(record, n)):
            prompts.setdefault(piece, set()).add(_prompt(record))
    return {piece for piece, found in prompts.items() if len(found) <= many or len(piece) != n}


def _prompt(record: Record) -> str:
    return " ".join(str(message["content"]) for message in record.prompt if message["role"] != "system")


def _pieces(record: Record, n: int) -> Iterator[Piece]:
    """All runs of `n` words in the prompt with each response; a prompt that has fewer, whole; of one with images, each
    image."""
    if record.images:
        yield from ((image.digest,) for image in record.images)
        return
    text = _prompt(record)
    prompt = rouge_tokens(text)
    if len(prompt) < n:
        yield (" ".join(text.lower().split()),)
    for response in record.responses or (Response(""),):
        words = prompt + rouge_tokens(response.text)
        yield from (tuple(words[i : i + n]) for i in range(len(words) - n + 1))
