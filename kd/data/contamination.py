"""Words that records of evaluation share with records of training.

An item overlaps if N words in a row of its prompt and reference stand in a training record too: 13, as for GPT-3
(arXiv 2005.14165, appendix C), whose rule for text that many documents have is taken over as well: what more than 10
training records hold is a template and is ignored. Words are compared in lower case without punctuation; where a
language is written without spaces each character is one. A prompt of fewer than N words overlaps if a training record
has the same one, but for case and spaces: of "3 + 4" and "3 - 4" the signs count. A prompt with images overlaps if a
training record has one of them, whatever the words around it.

    >>> from kd.types import Record
    >>> a = Record(id="a", skill="s", prompt=({"role": "user", "content": "Spell: Tree"},))
    >>> b = Record(id="b", skill="s", prompt=({"role": "user", "content": "spell:  tree"},))
    >>> overlapping([a], [b])
    ['b']
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from kd.metrics.words import rouge_tokens
from kd.types import Record

N = 13  # words in a row
MANY = 10  # training records; what more of them hold is a template


def overlapping(train: Sequence[Record], items: Sequence[Record], *, n: int = N, many: int = MANY) -> list[str]:
    """Ids of the `items` that share `n` words in a row, or a whole short prompt, with a record of `train`."""
    theirs = {item.id: set(_pieces(item, n)) for item in items}
    wanted = set().union(*theirs.values()) if theirs else set()
    counts: Counter[tuple[str, ...]] = Counter()
    for record in train:
        counts.update(wanted.intersection(_pieces(record, n)))
    shared = {piece for piece, count in counts.items() if count <= many or len(piece) != n}
    return [name for name, pieces in theirs.items() if pieces & shared]


def _pieces(record: Record, n: int) -> Iterator[tuple[str, ...]]:
    """All runs of `n` words; a prompt that has fewer, whole; of one with images, each image."""
    if record.images:
        yield from ((image.digest,) for image in record.images)
        return
    text = " ".join(str(message["content"]) for message in record.prompt if message["role"] != "system")
    prompt = rouge_tokens(text)
    if len(prompt) < n:
        yield (" ".join(text.lower().split()),)
    words = prompt + rouge_tokens(record.responses[0].text if record.responses else "")
    yield from (tuple(words[i : i + n]) for i in range(len(words) - n + 1))
