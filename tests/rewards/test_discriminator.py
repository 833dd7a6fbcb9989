"""The two players of GAD: what the discriminator learns, what it tells, and that neither moves the other.

Run: python -m pytest tests/rewards/test_discriminator.py
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from kd.data.sequences import Encoder
from kd.experiment.build import fit
from kd.objectives.adversarial import Discriminator
from kd.objectives.policy import grpo
from kd.objectives.returns import group_advantages
from kd.rewards import Reward
from kd.rewards.discriminator import Discriminator as Judge
from kd.seeding import seeded
from kd.signals import introduce
from kd.types import Batch, Models, Sequences, Written
from tests import runs
from tests.objectives.alone import values_of
from tests.tiny import record, tiny

GIVEN = [record(i, f"{i} + 2 = ?", f"It is {i + 2}.") for i in range(4)]


@pytest.fixture
def student():
    return tiny()


@pytest.fixture
def term(student):
    with seeded(0, "term"):
        made = Discriminator()
        introduce(made, student, None)
        return made.double()


def demonstrated(student, samples: tuple[str, ...] = ("no", "It is")) -> Batch:
    """To each problem its reference and, after it, what the student wrote; the last one was cut off."""
    encoder = Encoder(student.tokenizer, None, max_length=200, max_tokens=4000)
    ids = [student.tokenizer(text, add_special_tokens=False)["input_ids"] for text in samples]
    own = [Written((*i, student.tokenizer.eos_token_id)) for i in ids[:-1]] + [Written(tuple(ids[-1]), truncated=True)]
    [batch] = encoder.written(GIVEN, [[*encoder.given(problem), *own] for problem in GIVEN])
    return batch


def value(term: Discriminator, batch: Batch) -> Tensor:
    s = batch.student
    return values_of(term)(s.tokens, s.labels, s.mask, s.real, batch.group_size)


def by_hand(term: Discriminator, batch: Batch) -> Tensor:
    """D of each response: its whole ids through the network, one by one, and the head on the last of them."""
    found = []
    for tokens, labels, length in zip(batch.student.tokens, batch.student.labels, batch.student.lengths, strict=True):
        ids = torch.cat([tokens[:length], labels[length - 1 :][:1]])
        hidden = term.network.network.model(ids[None]).last_hidden_state[0, -1]
        found.append(term.head(hidden)[0])
    return torch.stack(found)


def test_it_scores_the_whole_response_at_its_last_token(student, term):
    batch = demonstrated(student)
    assert len(set(batch.student.lengths.tolist())) > 1
    torch.testing.assert_close(term.judge(batch.student), by_hand(term, batch))


def test_padding_on_the_left_changes_nothing(student, term):
    right = demonstrated(student).student
    width = right.tokens.shape[1]
    moved = [
        torch.stack([row.roll(width - int(length)) for row, length in zip(x, right.lengths, strict=True)])
        for x in (right.tokens, right.labels, right.mask)
    ]
    left = Sequences(*moved, right.lengths, "left")
    torch.testing.assert_close(term.judge(left), term.judge(right))


def test_its_loss_compares_the_first_of_a_group_with_each_other(student, term):
    batch = demonstrated(student)
    d = by_hand(term, batch).view(4, 3)
    expected = -(logsigmoid(d[:, 0] - d[:, 1]) + logsigmoid(d[:, 0] - d[:, 2])) / 2
    torch.testing.assert_close(value(term, batch), expected)


def test_it_begins_as_the_student_and_is_another_network(student, term):
    own, theirs = dict(student.network.model.state_dict()), term.network.network.model.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in term.parameters()}
    assert not any("lm_head" in name for name, _ in term.named_parameters())
    assert student.network.get_output_embeddings() is not None


def test_a_gradient_of_either_reaches_its_own_parameters_alone(student, term):
    batch = demonstrated(student)
    value(term, batch).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters())
    assert all(p.grad is None for p in student.parameters())
    term.zero_grad()
    judge = Judge()
    judge.bind({"discriminator": term})
    [judged] = judge([batch], Models(student))
    logprobs = student(batch.student, frozenset({"logprobs"})).logprobs
    old = logprobs.detach()
    values_of(grpo)(logprobs, old, old, judged.rewards, batch.group_size)[batch.student.mask].sum().backward()
    assert all(p.grad is None for p in term.parameters())
    assert sum(p.grad.abs().sum() for p in student.parameters() if p.grad is not None) > 0


def test_it_learns_to_distinguish_them(student, term):
    optimizer, batch = torch.optim.AdamW(term.parameters(), lr=1e-3), demonstrated(student)
    for _ in range(20):
        loss = value(term, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    d = term.judge(batch.student).view(4, 3)
    assert (d[:, :1] > d[:, 1:]).all()
    judge = Judge()
    judge.bind({"discriminator": term})
    judge([batch], Models(student))
    assert judge.take_report()["discriminator_accuracy"] == (8, 8)
    assert judge.take_report()["discriminator_accuracy"] == (0, 0)


def test_rewards_are_its_scores_and_nothing_is_learnt_from_what_others_wrote(student, term):
    batch, judge = demonstrated(student), Judge()
    judge.bind({"discriminator": term})
    [judged] = judge([batch], Models(student))
    scores, rewards = by_hand(term, batch).view(4, 3).float(), judged.rewards.view(4, 3)
    torch.testing.assert_close(rewards[:, 1:], scores[:, 1:])
    torch.testing.assert_close(rewards[:, 0], scores[:, 1:].mean(-1))
    told = judge.take_report()
    assert told["reward_student"] == (pytest.approx(scores[:, 1:].sum().item(), rel=1e-5), 8)
    assert told["reward_reference"] == (pytest.approx(scores[:, 0].sum().item(), rel=1e-5), 4)
    advantages = group_advantages(judged.rewards, 3).view(4, 3)
    assert advantages[:, 0].abs().max() < 1e-6
    centred = scores[:, 1:] - scores[:, 1:].mean(-1, keepdim=True)
    torch.testing.assert_close(advantages[:, 1:], centred, atol=1e-6, rtol=1e-4)
    assert isinstance(judge, Reward)


def test_it_judges_without_dropout_and_goes_on_with_it(student):
    noisy = tiny(attention_dropout=0.5)
    term = Discriminator()
    introduce(term, noisy, None)
    term.double()
    batch = demonstrated(student)
    torch.testing.assert_close(term.judge(batch.student), term.judge(batch.student), rtol=0, atol=0)
    assert term.training
    assert term.network.network.training
    assert not torch.equal(value(term, batch), value(term, batch))


def test_one_response_to_a_prompt_is_nothing_to_compare(student, term):
    [batch] = Encoder(student.tokenizer, None, max_length=200, max_tokens=4000).batches(GIVEN)
    with pytest.raises(ValueError, match="but each prompt has one response; take rollout=demonstrated"):
        value(term, batch)


def test_an_objective_without_it_is_refused():
    with pytest.raises(ValueError, match="but the objective has sft, fkl; take objective=gad"):
        Judge().bind({"sft": nn.Identity(), "fkl": print})


GAD = ["objective=gad", "reward=discriminator", "rollout=demonstrated", "rollout.samples=2", "rollout.max_new_tokens=4"]


def test_what_it_reads_in_judging_and_in_learning_is_counted(tmp_path):
    """By hand, from the lengths of all that it reads: a layer of width 16, feed-forward 32, and three gains."""
    cfg, read = runs.config(*GAD, "optim.steps=3"), []
    parts = runs.build(cfg)
    network = parts.module.stateful["discriminator"].network
    network.register_forward_pre_hook(lambda _, args: read.append((network.training, args[0].lengths.tolist())))
    fit(cfg, parts, runs.started(tmp_path))
    expected, width = 0, 16
    for learns, lengths in read:
        weights = 4 * width * width + 3 * width * 32 + 3 * width
        once = 2 * weights * sum(lengths) + sum(2 * width * n**2 for n in lengths) + 2 * width * len(lengths)
        expected += 3 * once if learns else once
    learnt, judged = ([n for flag, lengths in read if flag is which for n in lengths] for which in (True, False))
    assert sorted(learnt) == sorted(judged)
    assert len(learnt) == 3 * 5 * 3  # steps, prompts, responses
    assert parts.module.budget.judge_flops == expected


def test_nothing_is_judged_offline(tmp_path):
    assert runs.train(runs.config("optim.steps=2"), tmp_path).module.budget.judge_flops == 0


def test_a_run_moves_both_players_and_keeps_both(tmp_path):
    cfg = runs.config(*GAD)
    parts = runs.train(cfg, tmp_path)
    before = copy.deepcopy(runs.build(cfg).module)
    for name in ("student", "stateful"):
        old, new = dict(getattr(before, name).named_parameters()), dict(getattr(parts.module, name).named_parameters())
        assert all(not torch.equal(old[key], new[key]) for key in old if new[key].requires_grad), name
    told = runs.metrics(tmp_path)
    assert 0 <= float(told["9,train,discriminator_accuracy"]) <= 1
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert any(key.startswith("stateful.discriminator.network") for key in state)
