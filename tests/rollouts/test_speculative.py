"""Tokens that the student proposes and the teacher lets stand or replaces.

Run: python -m pytest tests/rollouts/test_speculative.py
"""

import pytest
import torch

from kd.composition.check import check
from kd.data.chat_template import encode_prompt
from kd.data.sequences import Encoder
from kd.generators.generation import generate
from kd.rollouts import Rollout
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.speculative import Speculative
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress
from tests import runs
from tests.rollouts.pairs import Meter, at_labels, of_labels
from tests.rollouts.reported import learnt
from tests.tiny import records, tiny

GIVEN = records(5)
NOW = Progress(step=0, total=10)
PLAIN = {"temperature": 1.0, "top_p": 1.0, "teacher_temperature": 1.0, "teacher_top_p": 1.0}


@pytest.fixture
def models():
    return Models(tiny(0), WhiteBox(tiny(1)))


@pytest.fixture
def encoder(models):
    return Encoder(models.student.tokenizer, None, max_length=200, max_tokens=400)


def written(rollout, models, encoder):
    with seeded(4, "step", 0):
        return rollout(encoder.batches(GIVEN), models, NOW, encoder)


def nucleus(logprobs: torch.Tensor, temperature: float, top_p: float) -> list[dict[int, float]]:
    """Row by row in plain Python: id -> probability, of the fewest ids that reach `top_p` of the tempered whole."""
    found = []
    for row in (logprobs / temperature).softmax(-1).tolist():
        kept: dict[int, float] = {}
        for i in sorted(range(len(row)), key=lambda i: -row[i]):
            if sum(kept.values()) >= top_p:
                break
            kept[i] = row[i]
        whole = sum(kept.values())
        found.append({i: p / whole for i, p in kept.items()})
    return found


def test_what_is_provided_is_filled(models, encoder):
    rollout = Speculative(max_new_tokens=4, samples=2)
    assert isinstance(rollout, Rollout)
    for batch in written(rollout, models, encoder):
        assert batch.group_size == 2
        assert all(getattr(batch, name) is not None for name in rollout.provides)
        assert batch.importance_weights is None


@pytest.mark.parametrize("nuclei", [PLAIN, {}])
def test_probabilities_are_those_of_the_process(models, encoder, nuclei):
    """By the formula, from forward passes over whole sequences; without `nuclei` with the paper's settings."""
    rollout = Speculative(top_k=25, max_new_tokens=12, **nuclei)
    settings = {"temperature": 0.5, "top_p": 0.5, "teacher_temperature": 0.2, "teacher_top_p": 0.5, **nuclei}
    for batch in written(rollout, models, encoder):
        q, p = (at_labels(model, batch.student) for model in (models.student, models.teacher.model))
        best = p.topk(25).indices.tolist()
        proposed = nucleus(q, settings["temperature"], settings["top_p"])
        replacing = nucleus(p, settings["teacher_temperature"], settings["teacher_top_p"])
        labels = batch.student.labels[batch.student.mask].tolist()
        expected = [
            (own.get(y, 0.0) if y in top else 0.0) + theirs.get(y, 0.0) * sum(own[v] for v in own if v not in top)
            for y, top, own, theirs in zip(labels, best, proposed, replacing, strict=True)
        ]
        found = batch.behaviour_logprobs[batch.student.mask].exp()
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-6)
        own = of_labels(q, batch).float()
        torch.testing.assert_close(batch.old_logprobs[batch.student.mask], own, rtol=1e-4, atol=1e-5)


def test_where_every_id_will_do_the_student_writes_alone(models, encoder, meter):
    rollout = Speculative(top_k=1000, max_new_tokens=9, temperature=0.7, top_p=0.9)
    for batch in written(rollout, models, encoder):
        own = nucleus(at_labels(models.student, batch.student), 0.7, 0.9)
        labels = batch.student.labels[batch.student.mask].tolist()
        expected = torch.tensor([row[y] for row, y in zip(own, labels, strict=True)])
        torch.testing.assert_close(batch.behaviour_logprobs[batch.student.mask].exp(), expected, rtol=1e-3, atol=1e-6)
    kept, proposed = rollout.take_report()["kept_share"]
    assert kept == proposed == meter.spent.generated_tokens


def test_a_greedy_student_among_all_ids_is_a_greedy_student(models, encoder):
    found = learnt(written(Speculative(top_k=1000, max_new_tokens=9, temperature=0.0), models, encoder))
    assert found == learnt(written(OnPolicy(max_new_tokens=9, temperature=0.0), models, encoder))


def test_with_one_id_and_a_greedy_teacher_the_teacher_writes(models, encoder):
    """A proposal stands only if it is what the teacher would write."""
    rollout = Speculative(top_k=1, max_new_tokens=9, temperature=1.0, top_p=1.0, teacher_temperature=0.0)
    batches = written(rollout, models, encoder)
    prompts = [encode_prompt(kept.prompt, encoder.student) for kept in GIVEN]
    greedy = generate(models.teacher.model, prompts, max_new_tokens=9)
    assert learnt(batches) == {kept.id: [ids] for kept, ids in zip(GIVEN, greedy, strict=True)}
    for batch in batches:
        torch.testing.assert_close(batch.behaviour_logprobs, torch.zeros_like(batch.behaviour_logprobs))
    kept, proposed = rollout.take_report()["kept_share"]
    assert kept < proposed == sum(len(row) for (row,) in learnt(batches).values())


def test_what_it_costs(models, encoder, meter):
    reading = Meter(models.teacher.model)
    rollout = Speculative(max_new_tokens=6, batch_size=1)
    lengths = {name: len(row) for name, (row,) in learnt(written(rollout, models, encoder)).items()}
    prompts = {kept.id: len(encode_prompt(kept.prompt, encoder.student)) for kept in GIVEN}
    assert meter.spent.generated_tokens == sum(lengths.values())
    assert meter.spent.teacher_tokens == reading.tokens == sum(prompts[n] + lengths[n] - 1 for n in prompts)


def test_a_run_learns_counts_and_tells(tmp_path):
    cfg = runs.config(*runs.EXACT, "rollout=speculative", "rollout.max_new_tokens=5", "optim.steps=3")
    parts = runs.train(cfg, tmp_path)
    budget, spent = parts.module.budget, parts.module.meter.spent
    assert budget.generated_tokens == spent.generated_tokens > 0
    assert budget.teacher_tokens == budget.tokens + spent.teacher_tokens
    assert 0 < float(runs.metrics(tmp_path)["3,train,kept_share"]) < 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["alignment=spans"], "rollout Speculative has student and teacher generate or read the same ids"),
        (["rollout.top_k=0"], "rollout.top_k=0"),
        (["rollout.teacher_top_p=0"], "rollout.teacher_top_p=0"),
    ],
)
def test_what_cannot_be_is_refused(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(runs.config("rollout=speculative", *overrides))
