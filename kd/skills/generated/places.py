"""Invented shops and cafés whose facts are to be put into words: the ground of two generated skills."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from random import Random
from typing import Any

from kd.metrics.table import Metric
from kd.skills.answer_metrics import answer_metrics
from kd.skills.licences import check_commercial
from kd.skills.procedural import checked_counts, stream_seed, take_distinct
from kd.types import Record, Response, Skill, Split

Facts = Mapping[str, str]

_COLOURS = (
    "Amber Azure Black Blue Brass Bronze Copper Crimson Emerald Golden Green Grey Ivory Olive Purple Scarlet Silver"
)
_THINGS = "Anchor Badger Barrel Bell Compass Crown Feather Fox Hare Heron Kettle Key Lantern Mill Oak Otter Raven Swan"
_FIRST = "Ada Ben Clara David Edith Frank Greta Hugo Iris Jonas Karin Leo Maria Nils Olga Paul Rosa Simon"
_LAST = "Abbot Berg Castle Dahl Ellis Frost Garcia Holm Irving Jensen Keller Lund Moreau Novak Owens Pratt Quinn Rossi"
NAMES = tuple(f"The {colour} {thing}" for colour in _COLOURS.split() for thing in _THINGS.split())
VALUES: Mapping[str, tuple[str, ...]] = {  # of each fact beside the name; none is part of another
    "kind": ("café", "bakery", "tea room", "ice cream parlour", "sandwich bar", "wine bar", "bistro", "diner"),
    "area": ("harbour", "station", "cathedral", "town hall", "river", "stadium", "museum", "theatre", "airport"),
    "price": ("cheap", "moderately priced", "expensive"),
    "product": ("apple cake", "fish soup", "fresh bread", "hot chocolate", "lemon tart", "onion pie", "waffles"),
    "founder": tuple(f"{first} {last}" for first in _FIRST.split() for last in _LAST.split()),
    "year": tuple(str(year) for year in range(1901, 2021)),
    "stars": ("one", "two", "three", "four", "five"),
}  # fmt: skip
SHARES: Mapping[Split, tuple[float, float]] = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


class Places(Skill):
    """Records about places of which no two splits have one name.

    The names are divided once and for all: 80 % train, 10 % validation, 10 % test. A longer split begins with the
    shorter one.

    Args:
        train, validation, test: numbers of records.
        metrics: others of the same answers, names of files in `conf/metric`.
        seed: draws other facts and wordings.
        commercial_only: as for every skill; the texts are this project's own, so it is allowed.
    """

    licence = "Apache-2.0"
    commercial = True
    group_key = "name"
    leaf = "nlg"
    metric: str | Metric = Metric("verifier_score", "verifier score")

    def __init__(
        self,
        *,
        train: int,
        validation: int,
        test: int,
        metrics: Sequence[str | Mapping[str, Any]] = (),
        seed: int = 0,
        commercial_only: bool = False,
    ) -> None:
        check_commercial(self.name, self.licence, self.commercial, commercial_only=commercial_only)
        self.counts = checked_counts(self.name, train=train, validation=validation, test=test)
        self.metrics, self.seed = answer_metrics(metrics), seed
        self._splits: dict[Split, tuple[Record, ...]] = {}

    def load(self, split: Split) -> tuple[Record, ...]:
        """Records of one split, drawn at the first call. Raises ValueError where there are not as many."""
        if split not in self._splits:
            records = take_distinct(self._draws(split), self.counts[split])
            if len(records) < self.counts[split]:
                raise ValueError(f"{self.name} has {len(records)} distinct records for {split}; lower skill.{split}")
            self._splits[split] = tuple(records)
        return self._splits[split]

    def _draws(self, split: Split) -> Iterator[Record]:
        own = names_of(split)
        for draw in count():
            rng = Random(stream_seed(self.seed, split) + draw)
            facts = {"name": rng.choice(own)} | {key: rng.choice(values) for key, values in VALUES.items()}
            prompt, references, meta = self.written(rng, facts)
            yield Record(
                id=f"{self.name}/{self.seed}/{split}/{draw}",
                skill=self.name,
                prompt=({"role": "user", "content": prompt},),
                responses=(Response(references[0]),),
                meta={"references": references, "name": facts["name"], **meta},
            )

    @abstractmethod
    def written(self, rng: Random, facts: Facts) -> tuple[str, list[str], dict[str, Any]]:
        """The prompt, its references, of which the first is the response, and what `score` and metrics read."""


def names_of(split: Split) -> list[str]:
    """The names of a split, the same for every seed."""
    every = list(NAMES)
    Random("names of places").shuffle(every)
    first, last = (round(share * len(every)) for share in SHARES[split])
    return every[first:last]


def states(text: str, value: str) -> bool:
    """Whether a text has a value as whole words, in any case; a plural s may follow."""
    return re.search(rf"(?<!\w){re.escape(value)}s?(?!\w)", " ".join(text.split()), re.IGNORECASE) is not None


def stated(text: str, key: str) -> set[str]:
    """The values of a kind of fact that a text has, in lower case; of stars, those before that word."""
    return {found.lower() for found in _pattern(key).findall(" ".join(text.split()))}


@lru_cache(maxsize=len(VALUES))
def _pattern(key: str) -> re.Pattern[str]:
    values = "|".join(map(re.escape, VALUES[key]))
    after = r"[ -]stars?" if key == "stars" else "s?"
    return re.compile(rf"(?<!\w)({values}){after}(?!\w)", re.IGNORECASE)


def article(words: str) -> str:
    """The words with `a` or `an` before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
