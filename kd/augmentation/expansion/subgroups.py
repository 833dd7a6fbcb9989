"""Targeted subgroups: more of the kinds of problems on which the student fails."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kd.augmentation import Expected, Resources
from kd.augmentation.filters.embeddings import k_centers, ngram_vectors, unit
from kd.augmentation.new_records import PARENTS, Draft, Requests, Seed, plain, question, readable
from kd.augmentation.replies import items
from kd.metrics.table import of_skill
from kd.seeding import derive
from kd.skills.scoring import scored_all
from kd.types import Record

STEPS = 10  # of k-means


@dataclass(kw_only=True, eq=False)
class Subgroups(Requests):
    """New problems like those of the groups of records in which the student errs more than on average: TDG.

    He et al., "Targeted Data Generation" (arXiv 2305.17803): records are clustered, the groups with an error above the
    average are targeted, and a model generates in each of them from examples that were answered wrongly. Vectors are
    n-grams here, clustered by k-means. Left out: the estimate whether data for a group would harm others, and the human
    in the loop. The teacher answers the new problems.

    Args:
        groups: clusters of the records.
        requests: for each targeted group. shown: wrongly answered examples in each. count: problems that it requests.
        template: of the request, with {examples} and {count}; the reply is a list.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`; the student's answers, too.

    Raises:
        ValueError: a number is not positive; when called, the skill's metric has no best value.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher", "student", "skill"})
    name: ClassVar[str] = "subgroup"
    fields: ClassVar[tuple[str, ...]] = ("examples", "count")

    groups: int
    requests: int
    shown: int
    count: int
    keep_given: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = {"groups": self.groups, "requests": self.requests, "shown": self.shown, "count": self.count}
        if wrong := [name for name, number in numbers.items() if number < 1]:
            raise ValueError(f"{wrong[0]}={numbers[wrong[0]]} targets nothing; set it to 1 or more")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: an answer of the student to each record; at most all groups but one are hard."""
        requests = (settings["groups"] - 1) * settings["requests"]
        new, kept = requests * settings["count"], records if settings["keep_given"] else 0
        prompts = records + requests + new
        return Expected(kept + new, prompts, prompts, prompts * settings["max_new_tokens"])

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        own = self._own(resources)
        known = [record for record in readable(given) if record.id in own or PARENTS not in record.meta]
        if not known:
            return
        errors = self._errors(known, resources)
        groups = clusters(ngram_vectors(known), self.groups)
        for group in range(max(groups) + 1):
            members = [i for i, other in enumerate(groups) if other == group]
            wrong = [known[i] for i in members if errors[i] > 0]
            if not members or np.mean([errors[i] for i in members]) <= np.mean(errors):
                continue
            for number in range(self.requests):
                draw = random.Random(derive(resources.seed, self.name, group, number))
                shown = draw.sample(wrong, min(self.shown, len(wrong)))
                listed = "\n".join(f"{i}. {' '.join(question(one).split())}" for i, one in enumerate(shown, start=1))
                fields = {"examples": listed, "count": str(self.count)}
                parents = tuple(record.id for record in shown)
                yield Seed(f"{shown[0].skill}/group{group + 1}", shown[0].skill, fields, parents, shown[0].prompt[:-1])

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        shown = {plain(example) for example in items(seed.fields["examples"])}
        for item in items(text)[: self.count]:
            yield "repeated record" if plain(item) in shown else Draft(item)

    def _errors(self, records: Sequence[Record], resources: Resources) -> list[float]:
        """One minus the score of the student's answer to each record, as a share of the metric's range."""
        skill, own = resources.skill, self._own(resources)
        assert skill is not None  # `requires`
        metric = of_skill(skill.metric)
        if not math.isfinite(metric.best):
            raise ValueError(
                f"the metric {metric.name} of skill {skill.name} has no best value, so a score is no error; take a "
                "skill with a bounded metric, or augmentation=fusion"
            )
        what = f"{self.name} answers"
        found = resources.generate("student", records, self.decoding, what=what, engine=self.engine)
        problems = [own.get(record.id, record) for record in records]  # a score may read a record's responses
        pairs = [(problem, answer.texts[0]) for problem, answer in zip(problems, found, strict=True)]
        scores = scored_all(skill, pairs, reference=lambda one: one.responses[0].text if one.responses else None)
        return [1.0 - metric.share(one.score) for one in scores]

    def _own(self, resources: Resources) -> dict[str, Record]:
        """The skill's training records by id: of others that have `parents` it has no answers."""
        assert resources.skill is not None  # `requires`
        return {record.id: record for record in resources.skill.load("train")}


def clusters(vectors: np.ndarray, count: int) -> list[int]:
    """The cluster of each vector `[n D]` of length 1: k-means by cosine, from k-center greedy's places."""
    centers = vectors[k_centers(vectors, count)]
    groups = np.zeros(len(vectors), dtype=int)
    for _ in range(STEPS):
        groups = (vectors @ centers.T).argmax(1)
        sums = np.stack([vectors[groups == i].sum(0) for i in range(len(centers))])
        centers = np.where(np.abs(sums).sum(1, keepdims=True) > 0, unit(sums), centers)
    return groups.tolist()
