"""Edit distances of one word to many at once."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

LONGEST = 64  # bytes of a word that is searched: a bit of a machine word for each


class Words:
    """Words with an id each, in which the nearest to another word is searched.

    A column of Levenshtein's table is kept as differences, a bit for each byte of the word that is searched, and all
    words take a byte forward together (Myers 1999, doi:10.1145/316542.316550; with distances of whole words, Hyyrö
    2003). Words whose length alone is too different are left out. So the time is at most proportional to the number of
    words and the length of the one that is searched, whatever they are.
    """

    def __init__(self, words: Mapping[bytes, int]):
        order = sorted((word for word in words if len(word) <= 2 * LONGEST), key=len)
        self.ids = np.array([words[word] for word in order], dtype=np.int64)
        self.lengths = np.array([len(word) for word in order], dtype=np.int64)
        self.letters = np.zeros((int(self.lengths[-1]) if order else 0, len(order)), dtype=np.uint8)
        for k, word in enumerate(order):
            self.letters[: len(word), k] = np.frombuffer(word, dtype=np.uint8)

    def nearest(self, word: bytes, bound: int | None, *, otherwise: int) -> int:
        """The id of the nearest word (the least of several), or `otherwise` where none is within `bound` edits.

        No bound: the distance of the shortest word is at most the length of the longer of the two, and a word whose
        length differs by more than that is farther.
        """
        if not len(self.ids):
            return otherwise
        farthest = max(len(word), int(self.lengths[0])) if bound is None else bound
        first, last = np.searchsorted(self.lengths, (len(word) - farthest, len(word) + farthest + 1))
        if first >= last:
            return otherwise
        distances = self._distances(word, int(first), int(last))
        least = distances.min()
        return int(self.ids[first:last][distances == least].min()) if least <= farthest else otherwise

    def _distances(self, word: bytes, first: int, last: int) -> NDArray[np.int64]:
        """The distances to the words `first` to `last`, in order of their lengths."""
        places, top = _places(word), len(word) - 1
        lengths = self.lengths[first:last]
        score = np.full(last - first, len(word), dtype=np.int64)
        falls = np.zeros(last - first, dtype=places.dtype)
        rises = ~falls
        for k in range(int(lengths[-1])):
            on = int(np.searchsorted(lengths, k, side="right"))  # shorter words are complete
            up, down, here = rises[on:], falls[on:], places[self.letters[k, first + on : last]]
            diagonal = (((here & up) + up) ^ up) | here
            more, less = down | ~(diagonal | up), up & diagonal
            score[on:] += (more >> top & 1).astype(np.int64) - (less >> top & 1).astype(np.int64)
            further, reached = (more << 1) | 1, here | down
            rises[on:], falls[on:] = (less << 1) | ~(reached | further), further & reached
        return score


def _places(word: bytes) -> NDArray[np.unsignedinteger]:
    """The places of each of the 256 bytes in `word`, as bits of the smallest integer that holds them."""
    size = next(bits for bits in (8, 16, 32, 64) if len(word) <= bits)
    places = [0] * 256
    for k, byte in enumerate(word):
        places[byte] |= 1 << k
    return np.array(places, dtype=f"uint{size}")
