"""Decontamination: training records that share words with records of the evaluation are dropped."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from kd.augmentation import Resources
from kd.augmentation.filters import Filter
from kd.components.choices import choices, content
from kd.data.contamination import MANY, N, contaminated
from kd.skills.records import load, skill_of
from kd.types import Record, Skill


class Decontaminated(Filter):
    """Drops records that share words in a row, or a whole short prompt, with a record that is evaluated.

    GPT-3's rule (arXiv 2005.14165, appendix C: 13 words), by the n-grams of the report under each table
    (`kd.data.contamination`): of records that a model generated, and of responses, which may repeat a test problem. The
    skill's validation and test records are compared, of a mixture those of its parts.

    Args:
        n: words in a row.
        many: what more prompts than so many hold is a template, and does not count.
        skills: files of conf/skill whose test records are compared, too.

    Raises:
        ValueError: `n` or `many` is not positive; there is no such skill.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"skill"})
    name: ClassVar[str] = "decontaminated"

    def __init__(self, *, n: int = N, many: int = MANY, skills: Sequence[str] = ()):
        if n < 1 or many < 1:
            raise ValueError(f"n={n} and many={many} are numbers of words and of prompts; set both to 1 or more")
        if unknown := [name for name in skills if name not in choices("skill")]:
            raise ValueError(f"skills: conf/skill has no {unknown[0]}.yaml; name files that are there")
        self.n, self.many, self.skills = n, many, tuple(skills)

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        assert resources.skill is not None  # `requires`
        others = [skill_of(content("skill", name)) for name in self.skills]
        items = [item for skill in (resources.skill, *others) for item in _evaluated(skill)]
        records = list(records)
        for record, found in zip(records, contaminated(records, items, n=self.n, many=self.many), strict=True):
            yield record, "contaminated by the evaluation" if found else None


def _evaluated(skill: Skill) -> Iterator[Record]:
    for one in (skill, *skill.parts.values()):
        yield from load(one, "validation")
        yield from load(one, "test")
