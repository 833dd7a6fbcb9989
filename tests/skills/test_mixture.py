"""Several skills in one run.

Run: python -m pytest tests/skills/test_mixture.py
"""

from collections import Counter

import pytest

from kd.skills.mixture import Mixture
from kd.skills.reasoning_gym import ReasoningGym
from kd.teachers.ensemble import member_of

SMALL = {"train": 60, "validation": 6, "test": 6}
OF = {"chain_sum": {"weight": 3, **SMALL}, "spell_backward": {"weight": 1, **SMALL}}


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture(of=OF, test=8)


def test_shares_are_those_of_the_weights_in_every_prefix(mixture):
    train = mixture.load("train")
    assert len(train) == 80  # 60 of the heavier one, a third as many of the other
    assert Counter(record.skill for record in train) == {"chain_sum": 60, "spell_backward": 20}
    for length in range(1, 80):
        share = sum(record.skill == "chain_sum" for record in train[:length])
        assert abs(share - 0.75 * length) < 1
    assert Mixture(of=OF, train=20, test=8).load("train") == train[:20]
    assert len({record.id for record in train}) == 80
    own = [record.prompt for record in train if record.skill == "chain_sum"]
    assert own == [record.prompt for record in mixture.parts["chain_sum"].load("train")]


def test_each_record_is_scored_by_its_own_skill(mixture):
    test = mixture.load("test")
    assert [mixture.score(record, record.responses[0].text) for record in test] == [1.0] * 8
    assert [mixture.score(record, "no") for record in test] == [0.0] * 8
    assert {type(skill) for skill in mixture.parts.values()} == {ReasoningGym}
    assert [skill.name for skill in mixture.parts.values()] == ["chain_sum", "spell_backward"]


def test_a_record_names_the_member_of_a_teacher_by_its_skill(mixture):
    members = ["spell_backward", "chain_sum"]
    assert [member_of(record, members) for record in mixture.load("test")] == [1, 1, 0, 1, 1, 1, 0, 1]


def test_temperature_turns_sizes_into_weights():
    sizes = {"chain_sum": {**SMALL, "train": 64}, "spell_backward": {**SMALL, "train": 16}}
    for temperature, share in ((1.0, 0.8), (2.0, 2 / 3)):
        assert Mixture(of=sizes, temperature=temperature)._weights()["chain_sum"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"of": ["chain_sum"]}, r"skill.of=\['chain_sum'\] names 1 skills, and a mixture has two or more; add one"),
        ({"of": ["chain_sum", "spel_backward"]}, "conf/skill has no spel_backward.yaml; did you mean spell_backward?"),
        (
            {"of": {"chain_sum": 1, "reasoning_gym": 1}},
            "skill.of.reasoning_gym needs a value for task; write {weight: ",
        ),
        ({"of": {"chain_sum": "x", "spell_backward": 1}}, "skill.of holds the weight 'x', which is no number"),
        ({"of": {"chain_sum": 0, "spell_backward": 1}}, "skill.of.chain_sum has no weight above 0"),
        ({"of": {"chain_sum": None, "spell_backward": 1}}, "skill.of.chain_sum has no weight above 0"),
        ({"of": OF, "temperature": 0}, "skill.temperature=0 is not above 0"),
        ({"of": OF, "train": 81}, "skill.train=81 takes more records of chain_sum than the 60 that it has"),
    ],
)
def test_what_is_wrong_is_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mixture(**settings).load("train")
