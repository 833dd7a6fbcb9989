"""A reward model: its loss by hand, what it learns from, and that a run which loads it reads what was trained.

Run: python -m pytest tests/rewards/test_reward_model.py
"""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kd.data.sequences import Encoder
from kd.experiment.export import export, export_objective
from kd.generators.account import Meter, metered
from kd.models.tokenizers import byte_tokenizer
from kd.objectives.reward_model import RewardModel, bradley_terry, ends
from kd.rewards import Reward
from kd.rewards.reward_model import RewardModel as Loaded
from kd.types import Models, Shape
from tests.tiny import record, tiny

HIDDEN = frozenset({"hidden"})
PAIRS = [record(i, f"{i} + 2 = ?", str(i + 2), str(i)) for i in range(8)]  # right before wrong


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Student and term after some steps on the pairs, both exported as a run would; and the loss on the way."""
    student, term = tiny(dtype="float32").train(), RewardModel()
    torch.manual_seed(0)
    term.sized_for(student.shape, None)
    [batch] = Encoder(student.tokenizer, None, max_length=200, max_tokens=4000).batches(PAIRS)
    optimizer = torch.optim.AdamW([*student.parameters(), *term.parameters()], lr=1e-3)
    losses = []
    for _ in range(40):
        hidden = student(batch.student, HIDDEN).hidden
        loss = term(hidden, batch.student.mask, batch.group_size)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    folder = tmp_path_factory.mktemp("run")
    export(student.eval(), folder / "student", "")
    export_objective(nn.ModuleDict({"reward_model": term}), folder / "objective.safetensors")
    return student, term, losses, folder


def test_bradley_terry_by_hand():
    # -log sigma(2 - 1) = log(1 + e^-1) = 0.31326; -log sigma(0 - 3) = log(1 + e^3) = 3.04859
    values = bradley_terry(torch.tensor([2.0, 1.0, 0.0, 3.0]), 2)
    assert values.tolist() == pytest.approx([0.31326169, 3.04858735])


def test_a_longer_group_is_the_mean_over_its_pairs():
    # 3 before 2 before 0: differences 1, 3 and 2, so (0.31326 + 0.04859 + 0.12693)/3
    values = bradley_terry(torch.tensor([3.0, 2.0, 0.0]), 3)
    expected = sum(math.log1p(math.exp(-d)) for d in (1, 3, 2)) / 3
    assert values.tolist() == pytest.approx([expected])


def test_the_gradient_pushes_the_two_apart_alike():
    # d/dr_w -log sigma(r_w - r_l) = -(1 - sigma(r_w - r_l)); at 2 - 1: -0.26894
    scores = torch.tensor([2.0, 1.0], requires_grad=True)
    bradley_terry(scores, 2).sum().backward()
    assert scores.grad.tolist() == pytest.approx([-0.26894142, 0.26894142])


def test_groups_of_one_are_refused():
    with pytest.raises(ValueError, match="one response to each prompt and nothing to compare it with; take"):
        bradley_terry(torch.zeros(3), 1)


def test_the_score_is_read_at_the_end_of_the_response_on_either_side():
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    assert ends(mask).tolist() == [2, 4, 0]
    term = RewardModel()
    term.sized_for(Shape(2, 1), None)
    nn.init.ones_(term.head.weight)
    hidden = torch.arange(30.0).view(3, 5, 2)
    # rows (2, 4, 0): 4 + 5, 18 + 19, 20 + 21
    assert term.score(hidden, mask).tolist() == [9, 37, 41]


def test_it_learns_from_the_end_of_both_responses_alone():
    mask = torch.tensor([[0, 1, 1], [0, 1, 0]]).bool()
    term = RewardModel()
    term.sized_for(Shape(4, 1), None)
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    term((hidden,), mask, 2)[0].sum().backward()
    assert hidden.grad.abs().sum(-1).ne(0).tolist() == [[False, False, True], [False, True, False]]


def test_training_separates_right_from_wrong(trained):
    _, _, losses, _ = trained
    assert losses[0] == pytest.approx(math.log(2), abs=0.5)
    assert losses[-1] < 0.2


def test_a_loaded_one_scores_as_it_did_in_training(trained):
    student, term, _, folder = trained
    encoder = Encoder(student.tokenizer, None, max_length=200, max_tokens=100)
    batches = encoder.batches(PAIRS)
    assert len(batches) > 1
    reward = Loaded(folder=str(folder))
    judged = reward(batches, Models(student))
    for batch in judged:
        with torch.no_grad():
            own = term.score(student(batch.student, HIDDEN).hidden[-1], batch.student.mask)
        torch.testing.assert_close(batch.rewards, own, rtol=1e-5, atol=1e-5)
        better, worse = batch.rewards.view(-1, 2).unbind(-1)
        assert (better > worse).all()
    assert isinstance(reward, Reward)
    assert not any(p.requires_grad for p in (*reward.model.parameters(), *reward.head.parameters()))


def test_what_it_reads_is_counted(trained):
    """Within a few percent of what torch does: gains count here, there all of attention."""
    student, _, _, folder = trained
    batches = Encoder(student.tokenizer, None, max_length=200, max_tokens=4000).batches(PAIRS)
    reward = Loaded(folder=str(folder))
    reward.model.network.set_attn_implementation("eager")
    meter = Meter()
    for times in (1, 2):
        with FlopCounterMode(display=False) as counter, metered(meter):
            for batch in batches:
                reward._score(batch, torch.device("cpu"))
        assert meter.spent.judge_flops == pytest.approx(times * counter.get_total_flops(), rel=0.05)


def test_a_folder_that_is_no_run_is_named(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match=r"reward.folder=.*nowhere is no finished run .*objective.safetensors"):
        Loaded(folder=str(tmp_path / "nowhere"))
    _, _, _, folder = trained
    (tmp_path / "objective.safetensors").write_bytes((folder / "objective.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"student/config.json is not there; give the run folder"):
        Loaded(folder=str(tmp_path))


def test_a_term_that_learnt_no_head_is_named(trained):
    with pytest.raises(ValueError, match=r"reward.term=critic: .* has no critic.head.weight; .* there: reward_model"):
        Loaded(folder=str(trained[-1]), term="critic")


def test_a_student_with_another_tokenizer_is_refused(trained):
    *_, folder = trained
    other = tiny(seed=1)
    other.tokenizer = byte_tokenizer()
    other.tokenizer.chat_template = "Now. " + other.tokenizer.chat_template
    with pytest.raises(ValueError, match="has another tokenizer than the student"):
        Loaded(folder=str(folder))([], Models(other))
