"""On-policy methods of 2026 as their files set them, at one position or on a few log-probabilities.

p = (.7, .2, .1) is the teacher, q = (.4, .4, .2) the student. Run: python -m pytest tests/methods/test_frontier.py
"""

from math import log

import pytest
import torch

from kd.objectives.policy import opd
from kd.rewards.domains import DomainNormalised
from kd.rollouts.dialogue import Dialogue
from kd.rollouts.paired import Paired
from kd.rollouts.privileged_peers import PrivilegedPeers
from kd.rollouts.refined import Refined
from tests.methods.points import P, Q, on_three_ids, point, reward, rollout, term
from tests.objectives.alone import values_of
from tests.objectives.cases import draw, logits_of


def at_three_ids(method: str, name: str) -> float:
    return values_of(term(method, name))(logits_of(Q), logits_of(P)).item()


def test_opsd_bounds_each_id_at_its_temperature():
    """At temperature 1.1: p^(1/1.1), q^(1/1.1), normalised; entries p log(p/q) of at most .05."""
    p, q = ([x ** (1 / 1.1) for x in given] for given in (P, Q))
    p, q = ([x / sum(given) for x in given] for given in (p, q))
    entries = [a * log(a / b) for a, b in zip(p, q, strict=True)]
    assert entries[0] > 0.05 > 0 > entries[1]
    assert at_three_ids("opsd", "opsd") == pytest.approx(sum(min(entry, 0.05) for entry in entries))
    assert point("opsd").teacher.mode == "frozen"


def test_sdpo_compares_the_students_hundred_likeliest():
    """Three ids are fewer, so it is the JSD of all: m = (.55, .3, .15)."""
    m = [(a + b) / 2 for a, b in zip(P, Q, strict=True)]
    halves = [sum(a * log(a / c) for a, c in zip(given, m, strict=True)) / 2 for given in (P, Q)]
    assert at_three_ids("sdpo", "sdpo") == pytest.approx(sum(halves))
    assert point("sdpo").objective.sdpo.loss.k == 100
    assert isinstance(rollout("sdpo"), PrivilegedPeers)


def test_eopd_adds_the_forward_kl_where_the_teacher_is_unsure():
    """H(p) = .8018 nats, just above .8."""
    reverse = sum(b * log(b / a) for a, b in zip(P, Q, strict=True))
    forward = sum(a * log(a / b) for a, b in zip(P, Q, strict=True))
    assert -sum(a * log(a) for a in P) == pytest.approx(0.8018, abs=1e-4)
    assert at_three_ids("eopd", "entropy_gated") == pytest.approx(reverse + forward)


def test_iw_opd_amplifies_the_first_token_by_a_half():
    log_q, mask = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    values = values_of(term("iw_opd", "iw_opd"))(log_q, torch.tensor([[1.0, -1.0, 2.0]]), log_q, log_q, mask)
    assert values.flatten().tolist() == pytest.approx([-1.5, 1.375, -2.5])  # before: 0, 1/4 and 1/2 of the sum


def test_mopd_is_opd_by_the_teacher_of_the_domain():
    assert point("mopd").teacher.combine == "routed"
    rows = [draw(4, seed=i) for i in range(4)]
    expected, _ = opd(*rows, draw(4, 3))
    torch.testing.assert_close(values_of(term("mopd", "opd"))(*rows, draw(4, 3)), expected)


def test_dn_mopd_clips_ratio_and_factor():
    given = reward("dn_mopd")
    assert isinstance(given, DomainNormalised)
    assert (given.low, given.high) == (0.25, 4.0)
    ratio = torch.tensor([2.0, 0.5]).log()
    values = values_of(term("dn_mopd", "policy_gradient"))(
        ratio, torch.zeros(2), torch.tensor([1.0, -1.0]), torch.zeros(2, 3)
    )
    assert values.tolist() == pytest.approx([-1.2, 0.8])
    assert point("dn_mopd").reduction == "sequence"


def test_distillspec_is_forward_kl_on_the_drafts_text():
    assert on_three_ids("distillspec", "fkl") == pytest.approx(sum(a * log(a / b) for a, b in zip(P, Q, strict=True)))
    assert type(rollout("distillspec")).__name__ == "OnPolicy"


def test_trd_is_forward_kl_on_what_the_teacher_revised():
    assert on_three_ids("trd", "fkl") == pytest.approx(sum(a * log(a / b) for a, b in zip(P, Q, strict=True)))
    given = rollout("trd")
    assert isinstance(given, Refined)
    assert (given.temperature, given.top_p) == (given.reviser.temperature, given.reviser.top_p) == (0.6, 0.95)
    assert "{demonstration}" not in given.template


def test_trd_of_oneself_shows_the_reference_to_the_student_of_before():
    assert on_three_ids("trd_self", "fkl") == on_three_ids("trd", "fkl")
    assert "{demonstration}" in rollout("trd_self").template
    assert point("trd_self").teacher.mode == "frozen"


def test_tool_opd_is_opd_of_dialogues():
    given = rollout("tool_opd")
    assert isinstance(given, Dialogue)
    assert (given.max_turns, given.temperature) == (10, 1.0)
    rows = [draw(4, seed=i) for i in range(4)]
    expected, _ = opd(*rows, draw(4, 3))
    torch.testing.assert_close(values_of(term("tool_opd", "opd"))(*rows, draw(4, 3)), expected)


def test_sodas_rejected_text_is_the_student_of_before():
    given = rollout("soda")
    assert isinstance(given, Paired)
    assert given.opponent == "reference"
    assert list(point("soda").augmentation.stages) == ["labeling"]
