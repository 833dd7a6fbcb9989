"""Several skills in one run: their records are mixed for training, and each is evaluated apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from kd.components.choices import choices, content
from kd.components.instantiation import instantiate
from kd.components.signatures import suggestion
from kd.metrics.table import Metric, of_skill
from kd.skills.procedural import checked_counts
from kd.types import Record, Skill, Split

VERSION = 1
GROUP = "mixture_group"


class Mixture(Skill):
    """The records of several skills, each of which keeps its name (`Record.skill`), by which a teacher can be chosen.

    At each place of a split stands a record of the skill that lags most behind its weight, so that a smaller number of
    records is a prefix of a larger one, and no record occurs twice. Answers are scored by their own skill, as the share
    of the way from its metric's worst value to the best; each skill also has its own table in the results.

    Args:
        of: names of files in `conf/skill` with their weights, `{gsm_symbolic: 0.7, chain_sum: 0.3}`, of any sum; or a
            list of names. A weight may be a mapping of `weight` and settings of that skill, as in {weight: 0.3,
            train: 500}.
        temperature: T of weights n^(1/T), n the skill's training records: 1 is in proportion to n, and the larger T,
            the more equal. For a list of names.
        train, validation, test: numbers of records of the mixture; None: as many as there are until one skill runs out.
        name: the name under which the whole is reported.
        leaf: of the grid.

    Raises:
        ValueError: there is no such skill, fewer than two are named, or a weight is not above 0.
    """

    name = "mixture"
    group_key = GROUP
    licence = "that of each skill"
    metric: str | Metric = Metric(
        "mixed_score", "score of all", description="score by each record's skill, from its worst (0) to the best (1)"
    )

    def __init__(
        self,
        *,
        of: Mapping[str, Any] | Sequence[str],
        temperature: float | int = 1.0,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        name: str = "mixture",
        leaf: str | None = None,
    ) -> None:
        self.name, self.leaf = name, leaf
        given: Any = OmegaConf.to_container(of, resolve=True) if OmegaConf.is_config(of) else of
        self.of = given if isinstance(given, Mapping) else dict.fromkeys(given)
        if len(self.of) < 2:
            raise ValueError(f"skill.of={given} names {len(self.of)} skills, and a mixture has two or more; add one")
        if not temperature > 0:
            raise ValueError(f"skill.temperature={temperature} is not above 0; 1 mixes in proportion to the records")
        counts = {"train": train, "validation": validation, "test": test}
        checked_counts(self.name, **{split: count or 0 for split, count in counts.items()})
        self.counts, self.temperature = counts, temperature
        self.parts: Mapping[str, Skill] = {}
        self._files = {name: _part(name, entry) for name, entry in self.of.items()}
        self.parts = {skill.name: skill for skill in self._files.values()}
        if len(self.parts) < len(self.of):
            raise ValueError(f"skill.of={given}: two of these have one name; give one of them another `name`")
        self.images = any(skill.images for skill in self.parts.values())
        self.licence = "; ".join(f"{name}: {skill.licence}" for name, skill in self.parts.items())
        self._splits: dict[str, tuple[Record, ...]] = {}

    def load(self, split: Split) -> tuple[Record, ...]:
        """The mixed records of one split. Raises ValueError where a skill has fewer than its weight requires."""
        if split not in self._splits:
            self._splits[split] = self._mixed(split)
        return self._splits[split]

    def score(self, record: Record, text: str) -> float:
        """The score by the record's own skill, from 0 (its metric's worst value) to 1 (the best)."""
        skill = self.parts[record.skill]
        metric = of_skill(skill.metric)
        if not math.isfinite(metric.best):
            raise ValueError(
                f"metric {metric.name} of skill {skill.name} has no best value, so it cannot be mixed with others"
            )
        return metric.share(skill.score(record, text))

    def _weights(self) -> dict[str, float]:
        """The share of each part."""
        given = {name: _weight(entry) for name, entry in self.of.items()}
        if all(weight is None for weight in given.values()):
            sizes = {name: len(skill.load("train")) for name, skill in self._files.items()}
            given = {name: size ** (1 / self.temperature) for name, size in sizes.items()}
        if wrong := [name for name, weight in given.items() if not weight or not weight > 0 or weight == math.inf]:
            raise ValueError(f"skill.of.{wrong[0]} has no weight above 0; write one for each, or for none")
        total = sum(float(weight or 0) for weight in given.values())
        return {name: float(weight or 0) / total for name, weight in given.items()}

    def _mixed(self, split: Split) -> tuple[Record, ...]:
        weights = self._weights()
        waiting = {name: list(skill.load(split)) for name, skill in self._files.items()}
        taken = dict.fromkeys(weights, 0)
        mixed: list[Record] = []
        wanted = self.counts[split]
        while wanted is None or len(mixed) < wanted:
            name = max(weights, key=lambda n: weights[n] * (len(mixed) + 1) - taken[n])
            if taken[name] == len(waiting[name]):
                break
            mixed.append(self._own(self._files[name], waiting[name][taken[name]]))
            taken[name] += 1
        if wanted is not None and len(mixed) < wanted:
            raise ValueError(
                f"skill.{split}={wanted} takes more records of {name} than the {len(waiting[name])} that it has, which "
                f"are used up after {len(mixed)}; lower skill.{split}, or the weight skill.of.{name}"
            )
        return tuple(mixed)

    def _own(self, skill: Skill, record: Record) -> Record:
        source = record.meta.get(skill.group_key)
        meta = {**record.meta, GROUP: None if source is None else f"{skill.name}/{source}"}
        return replace(
            record, skill=skill.name, meta=meta, control_tokens=record.control_tokens or skill.control_tokens
        )


def _weight(entry: Any) -> float | None:
    value = entry.get("weight") if isinstance(entry, Mapping) else entry
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"skill.of holds the weight {value!r}, which is no number; write one above 0")
    return None if value is None else float(value)


def _part(name: str, entry: Any) -> Skill:
    """The skill of a file of conf/skill, with the settings beside its weight."""
    if name not in (known := choices("skill")):
        raise ValueError(f"skill.of: conf/skill has no {name}.yaml; {suggestion(name, known)}")
    own = {key: value for key, value in entry.items() if key != "weight"} if isinstance(entry, Mapping) else {}
    node = OmegaConf.create({"of": {name: {**content("skill", name), **own}}}).of[name]
    if missing := sorted(key.rpartition(".")[2] for key in OmegaConf.missing_keys(node)):
        raise ValueError(f"skill.of.{name} needs a value for {missing[0]}; write {{weight: ..., {missing[0]}: ...}}")
    made: Any = instantiate(node)
    return made
