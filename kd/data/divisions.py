"""Records divided into train, validation and test so that no group is in two of them, the same on every machine."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

SHARE = 10  # one part in ten for validation, and one for test, where no number is given
MOST = 500  # records of validation or test, where no number is given
THRESHOLD = 0.7  # Jaccard similarity of two texts' shingles from which they are near-duplicates
SHINGLE = 4  # characters
HASHES, BANDS = 128, 16


def rank(*parts: object) -> str:
    """A hexadecimal number by which things are put into an order that is random, and the same everywhere."""
    return hashlib.sha256("\x00".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def divided(groups: Sequence[str], wanted: Mapping[str, int | None], seed: int) -> dict[str, list[int]]:
    """Indices of the records of each split, no group in two of them.

    Test takes whole groups in a random order, a tenth of all records or as many as are wanted, then validation; the
    rest is train. Within a split the order is random, and a smaller number is a prefix of a larger one (of `train`
    always; of the others up to a tenth).

    Args:
        groups: the group of each record.
        wanted: records of each split that is to be cut here, in the order test, validation, train; None: a tenth and at
            most `MOST`, of train all that are left.
        seed: of the order.

    Raises:
        ValueError: there are too few groups or records.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    waiting = sorted(members, key=lambda group: rank(seed, "group", group))
    found: dict[str, list[int]] = {}
    for split in [name for name in wanted if name != "train"]:
        count = wanted[split]
        usual = max(1, min(len(groups) // SHARE, MOST))
        least = 0 if count == 0 else max(usual, count or 0)
        taken: list[int] = []
        while waiting and len(taken) < least:
            taken += members[waiting.pop(0)]
        found[split] = ordered(taken, groups, seed)[: usual if count is None else count]
    if "train" in wanted:
        rest = [index for group in waiting for index in members[group]]
        found["train"] = ordered(rest, groups, seed)[: wanted["train"]]
    _check(found, wanted, len(groups), len(members))
    return found


def ordered(indices: Sequence[int], groups: Sequence[str], seed: int) -> list[int]:
    """The indices in a random order that other records do not change."""
    seen: dict[str, int] = {}
    keys = {}
    for index in sorted(indices):
        seen[groups[index]] = place = seen.get(groups[index], -1) + 1
        keys[index] = rank(seed, "record", groups[index], place)
    return sorted(indices, key=keys.__getitem__)


def _check(found: Mapping[str, Sequence[int]], wanted: Mapping[str, int | None], records: int, groups: int) -> None:
    for split, indices in found.items():
        count = wanted[split]
        if (count is None and not indices) or (count is not None and len(indices) < count):
            has = f"{records} records in {groups} groups leave {len(indices)} for {split}"
            more = f", fewer than skill.{split}={count}" if count else ""
            raise ValueError(
                f"{has}{more}; lower a count (0 leaves a split empty), give each split its own files, or name the "
                "column that they shall not share as skill.group_key"
            )


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[str]:
    """The cluster of each text: texts of which one is nearly another, by MinHash of their characters, are together.

    What many texts share, as the words of a template around them, does not count. A cluster is named by its first text.

    threshold: the Jaccard similarity of two texts' shingles from which they are near-duplicates, at least `THRESHOLD`,
        for which the bands of the index are made.
    """
    from rensa import RMinHash, RMinHashLSH

    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    index = RMinHashLSH(THRESHOLD, HASHES, BANDS)
    plain_texts = [" ".join(text.casefold().split()) for text in texts]
    common = _common(set(plain_texts))
    hashes: list[Any] = []
    first: dict[str, int] = {}
    for i, plain in enumerate(plain_texts):
        if (same := first.setdefault(plain, i)) != i:
            parent[i] = same
            hashes.append(hashes[same])
            continue
        own = RMinHash(num_perm=HASHES, seed=1)
        own.update(sorted(_shingles(plain) - common) or [plain])
        hashes.append(own)
        for other in sorted(index.query(own)):
            if root(other) != root(i) and own.jaccard(hashes[other]) >= threshold:
                parent[max(root(i), root(other))] = min(root(i), root(other))
        index.insert(i, own)
    return [rank(texts[root(i)])[:12] for i in range(len(texts))]


def _common(texts: Set[str]) -> set[str]:
    """The shingles of more than a tenth of the texts, and of more than five."""
    count = Counter(shingle for text in texts for shingle in _shingles(text))
    return {shingle for shingle, number in count.items() if number > max(5, len(texts) // 10)}


def _shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}
