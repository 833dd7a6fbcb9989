"""Advantages from the teacher's log-probabilities: by hand, against enumeration, and however a step is cut.

Run: python -m pytest tests/rewards/test_log_ratio.py
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import kd.rewards.log_ratio
from kd.generators.account import metered
from kd.objectives.divergence import reverse_kl
from kd.objectives.policy import policy_gradient
from kd.rewards import Reward
from kd.rewards.log_ratio import LogRatio, whitened
from kd.rollouts.buffer import TENSORS
from kd.teachers.interface import Teacher
from kd.types import Batch, ModelOutput, Models, Sequences
from tests.objectives import trees
from tests.objectives.alone import values_of
from tests.objectives.trees import LABELS, MASK, STUDENT, TEACHER, expected, gradient, logprobs

HERE = SimpleNamespace(network=SimpleNamespace(device=torch.device("cpu")))  # of the student only where it is
PAPER = {"include_current": False, "discount": 1.0, "scale": 1.0, "clip": None, "whiten": False}
PLAIN = PAPER | {"length_normalised": False}


class Told(nn.Module, Teacher):
    """A teacher that knows the log-probabilities of the sequences it is shown, by their first token."""

    def __init__(self, logprobs: Tensor):
        super().__init__()
        self.logprobs = logprobs

    def identity(self) -> str:
        return "told"

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        assert wanted == {"logprobs"}
        return ModelOutput(logprobs=self.logprobs[sequences.tokens[:, 0]].where(sequences.mask, 0.0))


def batch(mask: Tensor, old: Tensor, labels: Tensor | None = None, rows: slice = slice(None)) -> Batch:
    """Some of the sequences that a teacher was told about; the first token is the number of each."""
    tokens = torch.arange(len(mask))[:, None].expand(mask.shape)
    labels = torch.zeros_like(tokens) if labels is None else labels
    own = Sequences(tokens[rows], labels[rows], mask[rows], torch.full((len(mask),), mask.shape[1])[rows])
    return Batch(own, own, old_logprobs=old[rows])


def advantages(ratios: list[float], **settings) -> list[float]:
    """Of one response whose tokens have these log p - log q_old."""
    mask, zeros = torch.ones(1, len(ratios), dtype=torch.bool), torch.zeros(1, len(ratios)).double()
    teacher = Told(torch.tensor([ratios], dtype=torch.float64))
    (found,) = LogRatio(**settings)([batch(mask, zeros)], Models(HERE, teacher))
    return found.advantages[0].tolist()


def test_it_is_a_reward():
    assert isinstance(LogRatio(), Reward)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        # r = 1, 2, 6: what follows is 8, 6, nothing
        (PLAIN, (8, 6, 0)),
        (PAPER, (8 / 2, 6, 0)),
        (PAPER | {"include_current": True}, (9 / 3, 8 / 2, 6)),
        (PLAIN | {"include_current": True}, (9, 8, 6)),
        (PLAIN | {"scale": 0.5}, (16, 12, 0)),
        (PLAIN | {"scale": 0.5, "clip": 5.0}, (4 + 5, 5, 0)),  # 2, 4, 12 -> 5
        (PLAIN | {"discount": 0.5}, (0.5 * 2 + 0.25 * 6, 0.5 * 6, 0)),
        (PLAIN | {"discount": 0.5, "include_current": True}, (1 + 1 + 1.5, 2 + 3, 6)),
        # the authors' code: r = 2, 4, 12, then (2 + .95 * 4 + .95^2 * 12)/3, (4 + .95 * 12)/2, 12
        ({"whiten": False}, (16.63 / 3, 15.4 / 2, 12)),
    ],
)
def test_returns_by_hand(settings, found):
    assert advantages([1.0, 2.0, 6.0], **settings) == pytest.approx(found)


def test_the_mean_of_what_follows_does_not_grow_with_it():
    assert advantages([-1.0] * 3, **PAPER) == [-1, -1, 0]
    assert advantages([-1.0] * 6, **PAPER) == [-1, -1, -1, -1, -1, 0]


def test_whitened_by_hand():
    # r = 1, 2, 6, summed from r_t on, over 3, 2 and 1 terms: 3, 4, 6; mean 13/3, variance 61/3 - 169/9 = 14/9
    deviation = math.sqrt(14 / 9)
    expected_values = [(x - 13 / 3) / deviation for x in (3, 4, 6)]
    assert advantages([1.0, 2.0, 6.0], discount=1.0) == pytest.approx(expected_values, rel=1e-8)


def test_a_rank_without_a_micro_batch_takes_part_in_the_whitening():
    assert whitened([], [], torch.device("cpu")) == []


def test_the_authors_code_by_hand():
    # 16.63/3 = 5.54333, 7.7, 12 (see above): mean 8.41444, squared deviations 8.24328, .51043, 12.85621: 7.20331
    expected_values = [(x - 8.414444) / math.sqrt(7.203306) for x in (5.543333, 7.7, 12.0)]
    assert advantages([1.0, 2.0, 6.0]) == pytest.approx(expected_values, rel=1e-6)


def test_a_last_token_is_judged_by_its_own_reward():
    """Worse or better than the rest of its response, it is lowered or raised."""
    for last in (-9.0, 3.0):
        assert math.copysign(1.0, advantages([-1.0, -1.5, -0.5, last])[-1]) == math.copysign(1.0, last)


@pytest.mark.parametrize("whiten", [True, False])
def test_a_last_token_without_rewards_of_its_own_has_no_advantage(whiten):
    """The others' rewards, all poor, are no reason to end: what is whitened are the tokens that something follows."""
    found = advantages([-1.0, -2.0, -6.0, -9.0], **PAPER | {"whiten": whiten})
    assert found[-1] == 0.0
    if whiten:
        # followed by -17/3, -15/2, -9: mean -133/18, deviations 31/18, -2/18, -29/18, variance 1806/(3 * 324)
        deviation = math.sqrt(1806 / 972)
        assert found[:-1] == pytest.approx([x / 18 / deviation for x in (31, -2, -29)], rel=1e-6)


def long_part(student: Tensor, advantages: Tensor) -> Tensor:
    return values_of(policy_gradient)(logprobs(student), logprobs(STUDENT), advantages, trees.logits(student))


def test_the_two_parts_are_the_gradient_of_the_responses_reverse_kl():
    """Single step over the vocabulary, and everything later as returns: un-normalised, alpha = 0."""
    given = batch(MASK, logprobs(STUDENT), LABELS)
    (judged,) = LogRatio(**PLAIN)([given], Models(HERE, Told(logprobs(TEACHER))))

    def loss(student: Tensor) -> Tensor:
        single = reverse_kl(trees.logits(student), trees.logits(TEACHER))
        long = long_part(student, judged.advantages)
        return expected(single + long, STUDENT)

    target = gradient(lambda student: trees.sequence_reverse_kl(student, TEACHER), STUDENT)
    torch.testing.assert_close(gradient(loss, STUDENT), target, rtol=1e-10, atol=1e-12)


def test_to_include_the_current_reward_counts_single_steps_twice():
    given = batch(MASK, logprobs(STUDENT), LABELS)
    (judged,) = LogRatio(**PLAIN | {"include_current": True})([given], Models(HERE, Told(logprobs(TEACHER))))

    def long(student: Tensor) -> Tensor:
        return expected(long_part(student, judged.advantages), STUDENT)

    target = gradient(lambda student: trees.sequence_reverse_kl(student, TEACHER), STUDENT)
    torch.testing.assert_close(gradient(long, STUDENT), target, rtol=1e-10, atol=1e-12)


# ---- however a step is cut -------------------------------------------------------------------------------------------


def cut(*sizes: int) -> list[Batch]:
    """The responses of the tree in micro-batches."""
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    places = [slice(*pair) for pair in pairwise(bounds)]
    return [batch(MASK, logprobs(STUDENT), LABELS, rows) for rows in places]


def whole() -> Tensor:
    (found,) = LogRatio()(cut(15), Models(HERE, Told(logprobs(TEACHER))))
    return found.advantages


@pytest.mark.parametrize("sizes", [(1,) * 15, (7, 8), (14, 1)])
def test_micro_batches(sizes):
    found = LogRatio()(cut(*sizes), Models(HERE, Told(logprobs(TEACHER))))
    torch.testing.assert_close(torch.cat([b.advantages for b in found]), whole(), rtol=1e-12, atol=1e-12)


def test_mean_zero_variance_one_over_response_tokens_alone():
    rows = whole()[MASK]
    assert rows.mean().item() == pytest.approx(0, abs=1e-12)
    assert rows.var(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    assert (whole()[~MASK] == 0).all()


class Ranks:
    """Two threads that add up their tensors, each as if it were a process."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2, timeout=20), [torch.zeros(()), torch.zeros(())]
        self.own = threading.local()

    def sum(self, values: Tensor) -> Tensor:
        self.given[self.own.rank] = values
        self.barrier.wait()
        total = self.given[0] + self.given[1]
        self.barrier.wait()
        return total

    def run(self, rank: int, batches: list[Batch]) -> Tensor:
        self.own.rank = rank
        (found,) = LogRatio()(batches, Models(HERE, Told(logprobs(TEACHER))))
        return found.advantages


def test_two_ranks(monkeypatch):
    ranks = Ranks()
    monkeypatch.setattr(kd.rewards.log_ratio, "sum_over_ranks", ranks.sum)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(ranks.run, (0, 1), ([part] for part in cut(4, 11))))
    monkeypatch.undo()
    torch.testing.assert_close(torch.cat(found), whole(), rtol=1e-12, atol=1e-12)


def test_padding():
    wider = nn.functional.pad(MASK, (2, 1))
    nonsense = nn.functional.pad(logprobs(STUDENT).where(MASK, 9.0), (2, 1), value=9.0)
    told = nn.functional.pad(logprobs(TEACHER), (2, 1), value=-9.0)
    labels = nn.functional.pad(LABELS, (2, 1))
    (found,) = LogRatio()([batch(wider, nonsense, labels)], Models(HERE, Told(told)))
    torch.testing.assert_close(found.advantages[:, 2:-1], whole(), rtol=1e-12, atol=1e-12)


def test_a_teacher_with_a_longer_prompt():
    """It reads the same responses after other prompts, so they lie elsewhere in its sequences."""
    (given,) = cut(15)
    shifted = {name: nn.functional.pad(getattr(given.teacher, name), (2, 0)) for name in ("labels", "mask")}
    tokens = torch.arange(15)[:, None].expand(15, 5)
    apart = replace(given, teacher=Sequences(tokens, **shifted, lengths=torch.full((15,), 5)))
    teacher = Told(nn.functional.pad(logprobs(TEACHER), (2, 0)))
    (found,) = LogRatio()([apart], Models(HERE, teacher))
    torch.testing.assert_close(found.advantages, whole(), rtol=1e-12, atol=1e-12)


# ---- the books -------------------------------------------------------------------------------------------------------


def test_what_the_teacher_read_and_what_is_logged():
    reward, models = LogRatio(), Models(HERE, Told(logprobs(TEACHER)))
    with metered() as meter:
        reward(cut(7, 8), models)
        assert meter.spent.teacher_tokens == 15 * 3
        reward(cut(15), models)
    assert meter.spent.teacher_tokens == 2 * 15 * 3
    gap = (logprobs(STUDENT) - logprobs(TEACHER))[MASK]
    total, count = reward.take_report()["sampled_reverse_kl"]
    assert total / count == pytest.approx(gap.mean().item())
    assert reward.take_report() == {"sampled_reverse_kl": (0.0, 0.0)}


def test_what_is_logged_is_the_students_on_all_responses():
    """KL(q || p) of one token in expectation over b = (.5, .3, .2), where q = (.4, .4, .2) and p = (.7, .2, .1)."""
    q, p, b = (torch.tensor(x, dtype=torch.float64) for x in ((0.4, 0.4, 0.2), (0.7, 0.2, 0.1), (0.5, 0.3, 0.2)))
    mask = torch.ones(3, 1, dtype=torch.bool)
    given = replace(batch(mask, q.log()[:, None]), behaviour_logprobs=b.log()[:, None])
    expected = 0.0
    for i in range(3):  # each of the three ids, as often as b draws it
        reward = LogRatio(scale=0.5, clip=0.1)
        only = Batch(*[Sequences(*(getattr(given.student, n)[i : i + 1] for n in TENSORS))] * 2)
        only.old_logprobs, only.behaviour_logprobs = given.old_logprobs[i : i + 1], given.behaviour_logprobs[i : i + 1]
        reward([only], Models(HERE, Told(p.log()[:, None])))
        total, count = reward.take_report()["sampled_reverse_kl"]
        assert count == 1
        expected += b[i].item() * total
    assert expected == pytest.approx((q * (q / p).log()).sum().item(), rel=1e-6)


def test_sequences_go_where_the_student_is():
    """A live teacher of the student's own has no parameters that would say where it is."""
    (given,) = cut(15)
    seen = []

    class Live(Told):
        def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
            seen.append(sequences.tokens.device.type)
            return ModelOutput(logprobs=self.logprobs)

    elsewhere = SimpleNamespace(network=SimpleNamespace(device=torch.device("meta")))
    LogRatio(whiten=False)([given], Models(elsewhere, Live(logprobs(TEACHER))))
    assert seen == ["meta"]


def test_a_rollout_that_kept_no_log_probabilities():
    (given,) = cut(15)
    with pytest.raises(ValueError, match=r"old_logprobs.*rollout=on_policy"):
        LogRatio()([replace(given, old_logprobs=None)], Models(HERE, Told(logprobs(TEACHER))))


def test_a_teacher_of_other_tokens():
    (given,) = cut(15)
    other = replace(given.teacher, labels=given.teacher.labels + 1)
    with pytest.raises(ValueError, match="student's tokenizer"):
        LogRatio()([replace(given, teacher=other)], Models(HERE, Told(logprobs(TEACHER))))
