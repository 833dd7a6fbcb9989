"""A teacher that is shown more than the student reads what the student wrote.

Run: python -m pytest tests/rollouts/test_privileged_self.py
"""

import pytest
import torch
from omegaconf import OmegaConf

from kd.alignment.same import Same
from kd.composition.check import check
from kd.data.chat_template import encode_prompt
from kd.data.sequences import Encoder
from kd.models.tokenizers import byte_tokenizer
from kd.rollouts import Rollout
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.privileged_self import PrivilegedSelf
from kd.seeding import seeded
from kd.teachers.self_teacher import Own
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress, Record
from tests import runs
from tests.rollouts.reported import learnt
from tests.tiny import record, records, tiny

GIVEN = records(7)
NOW = Progress(step=0, total=10)
TEMPLATE = "{question} ({demonstration})"
FIELDS = frozenset({"logits", "logprobs"})


@pytest.fixture
def models():
    return Models(tiny(0), WhiteBox(tiny(0)))


def encoder_for(models, max_length=200, teacher=None):
    return Encoder(models.student.tokenizer, teacher, max_length=max_length, max_tokens=10_000, max_padding=1.0)


def written(rollout, models, encoder, given=GIVEN):
    with seeded(4, "step", 0):
        return rollout(encoder.batches(given), models, NOW, encoder)


def shown(kept: Record) -> list[int]:
    """What the teacher reads first, by hand."""
    text = f"{kept.prompt[0]['content']} ({kept.responses[0].text})"
    return encode_prompt(({"role": "user", "content": text},), tiny().tokenizer)


def test_what_is_provided_is_filled(models):
    rollout = PrivilegedSelf(template=TEMPLATE, max_new_tokens=4, samples=2)
    assert isinstance(rollout, Rollout)
    for batch in written(rollout, models, encoder_for(models)):
        assert batch.group_size == 2
        assert all(getattr(batch, name) is not None for name in rollout.provides)


def test_each_reads_the_same_response_after_a_prompt_of_its_own(models):
    encoder, asked = encoder_for(models), {kept.id: kept for kept in GIVEN}
    batches = written(PrivilegedSelf(template=TEMPLATE, max_new_tokens=9, samples=2), models, encoder)
    assert learnt(batches) == learnt(written(OnPolicy(max_new_tokens=9, samples=2), models, encoder))
    for batch in batches:
        assert batch.teacher.mask.sum(1).tolist() == batch.student.mask.sum(1).tolist()
        for row in range(len(batch.student.tokens)):
            kept = asked[batch.records[row // 2].id]
            plain = encode_prompt(kept.prompt, encoder.student)
            for sequences, prompt in ((batch.student, plain), (batch.teacher, shown(kept))):
                first = int(sequences.mask[row].int().argmax())
                assert sequences.tokens[row, : first + 1].tolist() == prompt
                assert sequences.lengths[row] == len(prompt) + sequences.mask[row].sum() - 1
            labels = [s.labels[row][s.mask[row]].tolist() for s in (batch.student, batch.teacher)]
            assert labels[0] == labels[1]


def test_rows_stand_side_by_side_and_numbers_come_to_the_students_positions(models):
    """Against one sequence at a time: the privileged prompt, the response, and what the model says of each id."""
    for batch in written(PrivilegedSelf(template=TEMPLATE, max_new_tokens=9), models, encoder_for(models)):
        native = models.teacher.read(batch, FIELDS)
        aligned = Same()(native, batch)
        assert aligned.logprobs.shape == batch.student.mask.shape
        assert (aligned.logprobs[~batch.student.mask] == 0).all()
        rows = aligned.logits.rows(slice(0, aligned.logits.n)).log_softmax(-1)
        start = 0
        asked = {kept.id: kept for kept in GIVEN}
        for i, kept in enumerate(batch.records):
            response = batch.student.labels[i][batch.student.mask[i]]
            whole = [*shown(asked[kept.id]), *response.tolist()]
            with torch.no_grad():
                logits = models.student.eval().network(torch.tensor([whole[:-1]])).logits[0, -len(response) :]
            expected = logits[:, : models.student.vocabulary].log_softmax(-1)
            torch.testing.assert_close(rows[start : start + len(response)], expected)
            told = aligned.logprobs[i][batch.student.mask[i]]
            torch.testing.assert_close(told, expected.gather(1, response[:, None])[:, 0])
            start += len(response)
        plain = models.student(batch.student, FIELDS).logprobs
        assert not torch.allclose(plain, aligned.logprobs, atol=0.1)  # the demonstration is heard


def test_signals_of_positions_are_left_out(models):
    rollout = PrivilegedSelf(template=TEMPLATE, max_new_tokens=9)
    for batch in written(rollout, models, encoder_for(models)):
        assert Same()(models.teacher.read(batch, frozenset({"hidden"})), batch).hidden is None


def test_a_conversation_keeps_its_other_messages():
    rollout = PrivilegedSelf(template="{question} Hint: {demonstration}", max_new_tokens=1)
    prompt = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is {x}?"})
    kept = Record("0", "toy", prompt, record(0, "", "a {brace}").responses)
    system, user = rollout.privileged(kept)
    assert system == prompt[0]
    assert user == {"role": "user", "content": "What is {x}? Hint: a {brace}"}


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_both_sides_are_cut_alike(models, meter):
    """The longer prompt decides: the response has as much room as it leaves, on both sides."""
    [kept] = one = [record(0, "2 + 2 = ?", "four, of course")]
    room = 5
    encoder = encoder_for(models, max_length=len(shown(kept)) + room)
    rollout = PrivilegedSelf(template=TEMPLATE, max_new_tokens=50)
    [batch] = written(rollout, models, encoder, one)
    assert batch.student.mask.sum() == batch.teacher.mask.sum() <= room
    assert meter.spent.generated_tokens <= room  # nothing is written that would be cut off again
    assert int(batch.teacher.lengths[0]) <= encoder.max_length - 1


def test_a_shorter_prompt_has_no_more_room_than_its_own_leaves(models):
    given = [record(0, "2 + 2 = ?", "4"), record(1, "2 + 2 = ?", "four, of course, as everybody knows")]
    encoder = encoder_for(models, max_length=len(shown(given[1])) + 3)
    batches = written(PrivilegedSelf(template=TEMPLATE, max_new_tokens=20), models, encoder, given)
    assert {len(rows[0]) <= 3 for name, rows in learnt(batches).items() if name == "1"} == {True}
    for batch in batches:
        assert batch.teacher.lengths.max() <= encoder.max_length - 1
        assert batch.teacher.mask.sum(1).tolist() == batch.student.mask.sum(1).tolist()


def test_a_record_without_room_is_left_out_and_reported(models):
    given = [record(0, "2 + 2 = ?", "4"), record(1, "2 + 2 = ?", "four, of course")]
    encoder = encoder_for(models, max_length=len(shown(given[1])))
    rollout = PrivilegedSelf(template=TEMPLATE, max_new_tokens=4)
    assert set(learnt(written(rollout, models, encoder, given))) == {"0"}
    assert rollout.take_report()["left_out"] == (1.0, 2.0)
    assert rollout.take_report()["left_out"] == (0.0, 0.0)
    with pytest.raises(
        ValueError, match=r"no prompt of this window leaves room.*needs 1 tokens beyond data.max_length"
    ):
        written(rollout, models, encoder, given[1:])


def test_no_records_no_responses(models):
    assert PrivilegedSelf(template=TEMPLATE, max_new_tokens=4)([], models, NOW, encoder_for(models)) == []


def test_a_record_without_a_response_is_reported(models):
    rollout = PrivilegedSelf(template=TEMPLATE, max_new_tokens=4)
    with pytest.raises(ValueError, match="record 7 of toy has no response that could be shown"):
        rollout.privileged(Record("7", "toy", record(7).prompt))


def test_a_teacher_with_other_tokens_is_shown_it_too(models):
    words = byte_tokenizer()
    words.chat_template = "Now. " + words.chat_template
    one = [record(0, "2 + 2 = ?", "four")]
    prompt = ({"role": "user", "content": "2 + 2 = ? (four)"},)
    encoder = encoder_for(models, max_length=len(encode_prompt(prompt, words)) + 3, teacher=words)
    [batch] = written(PrivilegedSelf(template=TEMPLATE, max_new_tokens=50), models, encoder, one)
    first = int(batch.teacher.mask[0].int().argmax())
    assert batch.teacher.tokens[0, : first + 1].tolist() == encode_prompt(prompt, words)
    assert batch.student.mask.sum() <= 3


@pytest.mark.parametrize("template", ["{question}", "{demonstration}", "{question} {demonstration} {answer}", "none"])
def test_a_template_names_both_fields_and_no_other(template):
    with pytest.raises(ValueError, match=r"rollout.template names .* it needs \{question\} and \{demonstration\}"):
        PrivilegedSelf(template=template, max_new_tokens=4)


# ---- with oneself as the teacher -------------------------------------------------------------------------------------


def own(mode: str = "ema") -> dict:
    return {**OmegaConf.load(runs.CONF / "teacher/own.yaml"), "mode": mode}


@pytest.mark.parametrize("mode", ["frozen", "ema", "live"])
def test_a_run_learns_from_what_it_alone_is_shown(tmp_path, mode):
    """At the first step teacher and student are one model: the divergence is the demonstration's alone."""
    quick = ["rollout=privileged_self", "rollout.max_new_tokens=6", "optim.steps=3", "optim.lr=1e-3", "log_every=1"]
    parts = runs.train(runs.config(*runs.EXACT, *quick, "objective=jsd", teacher=own(mode)), tmp_path)
    told, budget = runs.metrics(tmp_path), parts.module.budget
    assert isinstance(parts.module.models.teacher, Own)
    assert float(told["1,train,jsd"]) > 1e-4
    assert budget.teacher_tokens > 1.5 * budget.tokens  # longer by question, demonstration and the template's words
    assert budget.generated_tokens > 0


def test_without_the_demonstration_there_is_nothing_to_learn(tmp_path):
    """The same run with one prompt for both: at the first step the divergence is zero."""
    quick = ["rollout=on_policy", "rollout.max_new_tokens=6", "optim.steps=1", "log_every=1"]
    runs.train(runs.config(*runs.EXACT, *quick, "objective=jsd", teacher=own("live")), tmp_path)
    assert abs(float(runs.metrics(tmp_path)["1,train,jsd"])) < 1e-9


def test_terms_on_positions_are_refused():
    check(runs.config("rollout=privileged_self", "objective=jsd", teacher=own()))
    sentence = r"compares the teacher's hidden at each position, but rollout PrivilegedSelf gives the teacher another"
    with pytest.raises(ValueError, match=sentence):
        check(runs.config("rollout=privileged_self", "objective=hidden_cosine", teacher=own()))
