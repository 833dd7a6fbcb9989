"""Of generated responses those stay that the skill's scorer accepts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kd.augmentation import Account, Resources
from kd.augmentation.quality import quality
from kd.augmentation.verification import Verified
from kd.metrics.table import Metric
from kd.skills.dataset import Dataset
from kd.types import Record, Response, Skill, Split


class Sums(Skill):
    """Problems whose answers are numbers; the score is the share of the right number."""

    name, licence, group_key = "sums", "Apache-2.0", "none"

    def __init__(self, metric: Metric | None = None):
        self._metric = metric or Metric("closeness")

    @property
    def metric(self) -> Metric:
        return self._metric

    def load(self, split: Split) -> Sequence[Record]:
        return [record("a", "4"), record("b", "10")] if split == "train" else []

    def score(self, record: Record, text: str) -> float:
        return float(text) / float({"a": 4, "b": 10}[record.id])


def record(name: str, *answers: str) -> Record:
    prompt = ({"role": "user", "content": name},)
    return Record(name, "sums", prompt, tuple(Response(text, "student") for text in answers))


GENERATED = [record("a", "4", "2", "no number", "4", "4.0"), record("b", "5", "7")]


def kept(stage: Verified, skill: Skill | None = None) -> dict[str, list[tuple[str, float | None]]]:
    found: dict[str, list[tuple[str, float | None]]] = {}
    for one in stage(iter(GENERATED), Resources(seed=0, skill=skill or Sums())):
        (answer,) = one.responses
        name, _, number = one.id.partition("/")
        found.setdefault(name, []).append((answer.text, answer.score))
        assert number in ("", str(len(found[name])))
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"a": [("4", 1.0), ("4.0", 1.0)]}),
        ({"distinct": False}, {"a": [("4", 1.0), ("4", 1.0), ("4.0", 1.0)]}),
        ({"most": 1}, {"a": [("4", 1.0)]}),
        ({"otherwise": "reference"}, {"a": [("4", 1.0), ("4.0", 1.0)], "b": [("10", None)]}),
        ({"threshold": 0.5}, {"a": [("4", 1.0), ("2", 0.5), ("4.0", 1.0)], "b": [("5", 0.5), ("7", 0.7)]}),
        ({"threshold": 0.6, "most": 1}, {"a": [("4", 1.0)], "b": [("7", 0.7)]}),
    ],
)
def test_what_stays(settings, expected) -> None:
    assert kept(Verified(**settings)) == expected


def test_lower_may_be_better() -> None:
    skill = Sums(Metric("distance", low=0.0, high=1.0, higher_is_better=False))
    assert kept(Verified(threshold=0.5), skill) == {"a": [("2", 0.5)], "b": [("5", 0.5)]}
    assert kept(Verified(), skill) == {}  # the best value is 0


def test_a_metric_without_a_best_value_needs_a_threshold() -> None:
    skill = Sums(Metric("points", low=0.0, high=float("inf")))
    with pytest.raises(ValueError, match="threshold=null keeps what has the best value of points, which has none"):
        kept(Verified(), skill)


@pytest.mark.parametrize(("settings", "named"), [({"most": 0}, "most=0"), ({"otherwise": "keep"}, "otherwise='keep'")])
def test_settings_that_mean_nothing_are_refused(settings, named) -> None:
    with pytest.raises(ValueError, match=named):
        Verified(**settings)


def test_the_stage_is_in_the_provenance() -> None:
    one, _ = Verified()(iter([GENERATED[0]]), Resources(seed=0, skill=Sums()))
    assert one.provenance == ("verified",)


def test_responses_are_compared_with_the_skills_references_not_with_one_another(tmp_path: Path) -> None:
    """The rows of a file have their answers as responses, which a model's replaced before."""
    file = tmp_path / "capitals.jsonl"
    rows = [{"question": name, "answer": city} for name, city in (("France", "Paris"), ("Peru", "Lima"))]
    file.write_text("\n".join(map(json.dumps, rows)))
    skill = Dataset(str(file), train=2, validation=0, test=0)
    texts = {"France": "Lyon", "Peru": "Lima"}
    answered = [
        replace(one, responses=(Response(texts[str(one.prompt[0]["content"])], "teacher"),))
        for one in skill.load("train")
    ]
    account = Account()
    found = list(Verified()(iter(answered), Resources(seed=0, skill=skill, account=account)))
    assert [one.responses[0].text for one in found] == ["Lima"]
    assert account.dropped == {"no right response": 1}
    assert quality(answered, skill.load("train"), skill)["score"] == 0.5


def test_each_of_several_responses_to_a_problem_is_compared_with_its_reference(tmp_path: Path) -> None:
    """Records of one response each have ids of their own; after another stage wrote to them, they are judged alike."""
    file = tmp_path / "capitals.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": city}) for n, city in enumerate("PQ")))
    skill = Dataset(str(file), train=2, validation=0, test=0)
    resources = Resources(seed=0, skill=skill)
    given = [replace(one, responses=(one.responses[0], Response("p."))) for one in skill.load("train")]
    first = list(Verified(threshold=0)(iter(given), resources))
    assert len({one.id for one in first}) == 4
    changed = [replace(one, responses=(Response("wrong"),)) for one in first]
    assert list(Verified()(iter(changed), resources)) == []
