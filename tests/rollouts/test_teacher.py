import pytest
import torch

from kd.data.chat_template import encode_prompt, response_text
from kd.data.sequences import Encoder
from kd.generators.generation import generate
from kd.models.tokenizers import byte_tokenizer
from kd.rollouts import Rollout
from kd.rollouts.teacher import ByTeacher
from kd.rollouts.wrapping import records_of
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress
from tests.rollouts.reported import learnt
from tests.tiny import records, tiny

GIVEN = records(7)
NOW = Progress(0, 10)
STUDENT, TEACHER = tiny(0), tiny(1)
MODELS = Models(STUDENT, WhiteBox(TEACHER))
ENCODER = Encoder(STUDENT.tokenizer, None, max_length=200, max_tokens=400)
ASKED = {kept.id: encode_prompt(kept.prompt, TEACHER.tokenizer) for kept in GIVEN}


def written(rollout, encoder=ENCODER, models=MODELS):
    return rollout(encoder.batches(GIVEN), models, NOW, encoder)


def test_the_student_learns_what_the_teacher_writes():
    batches = written(ByTeacher(max_new_tokens=8, temperature=0.0))
    expected = generate(TEACHER, list(ASKED.values()), max_new_tokens=8)
    assert learnt(batches) == {name: [ids] for name, ids in zip(ASKED, expected, strict=True)}
    assert generate(STUDENT, list(ASKED.values()), max_new_tokens=8) != expected
    assert {row for batch in batches for row in batch.written_by.tolist()} == {1}
    assert {r.source for kept in records_of(batches) for r in kept.responses} == {"teacher"}


def test_it_is_a_rollout_that_requires_a_teacher():
    rollout = ByTeacher(max_new_tokens=3)
    assert isinstance(rollout, Rollout)
    assert rollout.requires == {"teacher"}
    for batch in written(rollout):
        assert all(getattr(batch, name) is not None for name in rollout.provides)
        assert batch.old_logprobs is None  # nobody asked the student


def test_samples_are_a_group_and_other_ones_each_time():
    rollout, found = ByTeacher(max_new_tokens=6, samples=3), []
    for step in range(2):
        with seeded(1, "step", step):
            batches = written(rollout)
        assert {batch.group_size for batch in batches} == {3}
        found.append(learnt(batches))
        assert all(len({tuple(ids) for ids in group}) == 3 for group in found[-1].values())
    assert found[0] != found[1]


@pytest.mark.parametrize("samples", [1, 2])
def test_what_the_teacher_reads_is_counted(samples, meter):
    """Against the real tokens that its network meets: padding aside, each prompt once, and all written but the last."""
    rollout, met = ByTeacher(max_new_tokens=6, samples=samples, batch_size=64), []

    def note(module, inputs, keywords):
        tokens, mask = keywords["input_ids"], keywords.get("attention_mask")
        met.append(tokens.numel() if mask is None else int(mask[:, -tokens.shape[1] :].sum()))

    hook = TEACHER.network.model.register_forward_pre_hook(note, with_kwargs=True)
    batches = written(rollout)
    hook.remove()
    rows = sum(len(ids) for group in learnt(batches).values() for ids in group)
    assert meter.spent[:3] == (0, 0, sum(met))
    assert sum(met) == sum(map(len, ASKED.values())) + rows - samples * len(GIVEN)


def test_a_teacher_with_other_tokens_is_read_as_text():
    """The student's ids of the teacher's text; the end token is the student's, and there only where one was written."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "Now. " + tokenizer.chat_template
    teacher = tiny(1)
    teacher.tokenizer = tokenizer
    encoder = Encoder(STUDENT.tokenizer, tokenizer, max_length=200, max_tokens=400)
    assert encoder.teacher is not None
    rollout = ByTeacher(max_new_tokens=12, temperature=0.9)
    with seeded(2):
        batches = written(rollout, encoder, Models(STUDENT, WhiteBox(teacher)))
    with seeded(2):  # the same again, by hand
        order = [kept for batch in encoder.batches(GIVEN) for kept in batch.records]
        prompts = [encode_prompt(kept.prompt, tokenizer) for kept in order]
        expected = generate(teacher, prompts, max_new_tokens=12, temperature=0.9)
    end, cut = tokenizer.eos_token_id, 0
    for kept, ids in zip(order, expected, strict=True):
        text, ended = response_text(ids, tokenizer), ids[-1] == end
        own = STUDENT.tokenizer(text, add_special_tokens=False)["input_ids"]
        cut += not ended
        assert learnt(batches)[kept.id] == [own + [STUDENT.tokenizer.eos_token_id] * (ended or not own)]
    assert cut
    for batch in batches:
        assert batch.teacher is not batch.student
        assert {row for batch in batches for row in batch.written_by.tolist()} == {1}


def test_an_empty_window_is_nothing(meter):
    rollout, before = ByTeacher(max_new_tokens=3), torch.get_rng_state()
    assert rollout([], MODELS, NOW, ENCODER) == []
    assert meter.spent[:3] == (0, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_are_checked_before_any_model_is_there():
    with pytest.raises(ValueError, match="samples=2 at temperature=0 are all the same"):
        ByTeacher(max_new_tokens=3, samples=2, temperature=0.0)
