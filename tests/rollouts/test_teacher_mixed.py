"""Tokens drawn from a mixture of student and teacher, and what weighs for it.

Run: python -m pytest tests/rollouts/test_teacher_mixed.py
"""

import pytest
import torch
from scipy.stats import chisquare

from kd.composition.check import check
from kd.data.chat_template import encode_prompt
from kd.data.sequences import Encoder
from kd.models.flops import decoding_flops
from kd.rollouts import Rollout
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.teacher_mixed import TeacherMixed
from kd.seeding import seeded
from kd.signals import FROM_ROLLOUT
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress
from tests import runs
from tests.rollouts.pairs import Meter, at_labels, of_labels
from tests.rollouts.reported import learnt
from tests.tiny import record, records, tiny

GIVEN = records(5)
NOW = Progress(step=0, total=10)


@pytest.fixture
def models():
    return Models(tiny(0), WhiteBox(tiny(1)))


@pytest.fixture
def encoder(models):
    return Encoder(models.student.tokenizer, None, max_length=200, max_tokens=400)


def written(rollout, models, encoder, given=GIVEN):
    with seeded(4, "step", 0):
        return rollout(encoder.batches(given), models, NOW, encoder)


def test_what_is_provided_is_known_and_filled(models, encoder):
    rollout = TeacherMixed(max_new_tokens=4, samples=2)
    assert isinstance(rollout, Rollout)
    assert rollout.provides <= FROM_ROLLOUT
    for batch in written(rollout, models, encoder):
        assert batch.group_size == 2
        assert all(getattr(batch, name) is not None for name in rollout.provides)
        assert {r.source for kept in batch.records for r in kept.responses} == {"student"}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_weights_are_those_of_the_formula(models, encoder, temperature):
    """w = q / (0.2 p + 0.8 q), each from a forward pass over whole sequences; q at temperature 1."""
    rollout = TeacherMixed(alpha=0.2, max_new_tokens=9, temperature=temperature)
    seen = []
    for batch in written(rollout, models, encoder):
        q, p = (at_labels(model, batch.student) for model in (models.student, models.teacher.model))
        heated = [of_labels(z / temperature, batch).exp() for z in (q, p)]
        mixture = 0.8 * heated[0] + 0.2 * heated[1]
        own, mask = of_labels(q, batch), batch.student.mask
        for name, expected in (
            ("behaviour_logprobs", mixture.log()),
            ("old_logprobs", own),
            ("importance_weights", own.exp() / mixture),
        ):
            values = getattr(batch, name)
            torch.testing.assert_close(values[mask], expected.float(), rtol=1e-4, atol=1e-5)
            assert (values[~mask] == 0).all()
        seen.append(batch.importance_weights[mask])
    weights = torch.cat(seen)
    assert weights.min() < 0.9
    assert temperature != 1.0 or weights.max() <= 1.25 + 1e-5  # 1 / (1 - alpha)


def test_without_a_share_of_the_teacher_it_is_on_policy(models, encoder):
    mixed = written(TeacherMixed(alpha=0.0, max_new_tokens=9), models, encoder)
    alone = written(OnPolicy(max_new_tokens=9), models, encoder)
    assert learnt(mixed) == learnt(alone)
    for a, b in zip(mixed, alone, strict=True):
        torch.testing.assert_close(a.behaviour_logprobs, b.behaviour_logprobs)
        torch.testing.assert_close(a.importance_weights, a.student.mask.float())


def test_all_of_the_share_is_the_teacher(models, encoder):
    batches = written(TeacherMixed(alpha=1.0, max_new_tokens=9), models, encoder)
    alone = written(OnPolicy(max_new_tokens=9), Models(models.teacher.model), encoder)
    assert learnt(batches) == learnt(alone)
    for batch in batches:
        q, p = (of_labels(at_labels(model, batch.student), batch) for model in (models.student, models.teacher.model))
        torch.testing.assert_close(batch.behaviour_logprobs[batch.student.mask], p.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            batch.importance_weights[batch.student.mask], (q - p).exp().float(), rtol=1e-3, atol=1e-5
        )


def test_first_tokens_come_as_often_as_the_mixture_states(models, encoder):
    one = [record(0, "2 + 2 = ?")]
    rollout = TeacherMixed(alpha=0.5, max_new_tokens=1, samples=4000, batch_size=4000)
    batches = written(rollout, models, Encoder(encoder.student, None, max_length=200, max_tokens=10**6), one)
    counts = torch.bincount(torch.cat([b.student.labels[b.student.mask] for b in batches]), minlength=300).double()
    prompt = torch.tensor([encode_prompt(one[0].prompt, encoder.student)])
    q, p = (
        model.network(prompt).logits[0, -1, : model.vocabulary].softmax(-1).detach()
        for model in (models.student, models.teacher.model)
    )
    expected = 4000 * (0.5 * p + 0.5 * q)
    often = expected >= 10
    found = [*counts[: len(expected)][often].tolist(), counts[: len(expected)][~often].sum().item()]
    assert chisquare(found, [*expected[often].tolist(), expected[~often].sum().item()]).pvalue > 1e-3
    assert chisquare(found[:-1], (q[often] / q[often].sum() * sum(found[:-1])).tolist()).pvalue < 1e-6  # not q's


def test_what_it_costs(models, encoder, meter):
    """The teacher reads the prompt and all that is written but the last token, one response at a time here."""
    reading = Meter(models.teacher.model)
    rollout = TeacherMixed(max_new_tokens=6, batch_size=1)
    for _ in range(2):
        batches = written(rollout, models, encoder)
    prompts = {kept.id: len(encode_prompt(kept.prompt, encoder.student)) for kept in GIVEN}
    lengths = {name: len(row) for name, (row,) in learnt(batches).items()}
    spent = meter.spent
    assert spent.generated_tokens == 2 * sum(lengths.values())
    assert spent.teacher_tokens == reading.tokens == 2 * sum(prompts[n] + lengths[n] - 1 for n in prompts)
    assert spent.decoding_flops == 2 * sum(decoding_flops(models.student, [prompts[n]], [lengths[n]]) for n in prompts)
    assert rollout.take_report()["response_length"] == (2 * sum(lengths.values()), 2 * len(GIVEN))


def test_a_run_learns_and_counts(tmp_path):
    cfg = runs.config(*runs.EXACT, "rollout=teacher_mixed", "rollout.max_new_tokens=5", "optim.steps=3")
    parts = runs.train(cfg, tmp_path)
    budget, spent = parts.module.budget, parts.module.meter.spent
    assert budget.generated_tokens == spent.generated_tokens > 0
    assert budget.teacher_tokens == budget.tokens + spent.teacher_tokens  # read to learn from, and while writing


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["alignment=spans"],
            "generate or read the same ids, .* but alignment SpanAlignment translates; take alignment=same",
        ),
        (["alignment=shared_vocabulary"], "but alignment SharedVocabulary translates"),
        (["alignment=none", "objective=sft"], "rollout TeacherMixed needs teacher_logits"),
        (["rollout.alpha=1.5"], "rollout.alpha=1.5"),
        (["rollout.alpha=-0.5"], "rollout.alpha=-0.5"),
        (["rollout.max_new_tokens=0"], "rollout.max_new_tokens=0"),
    ],
)
def test_what_cannot_write_together_is_refused(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(runs.config("rollout=teacher_mixed", *overrides))


def test_it_writes_for_others_too():
    """What holds for it holds where it writes for another rollout."""
    rollout = {"_target_": "kd.rollouts.mixed.Mixed", "seed": 1}
    rollout["writer"] = {"_target_": "kd.rollouts.teacher_mixed.TeacherMixed", "max_new_tokens": 4}
    check(runs.config(rollout=rollout))
    with pytest.raises(ValueError, match="alignment SpanAlignment translates"):
        check(runs.config("alignment=spans", rollout=rollout))
