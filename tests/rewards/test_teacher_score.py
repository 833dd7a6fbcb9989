"""The teacher's log-probability of a response, against its own whole logits.

Run: python -m pytest tests/rewards/test_teacher_score.py
"""

from types import SimpleNamespace

import pytest
import torch

from kd.data.sequences import Encoder, encode
from kd.generators.account import metered
from kd.models.tokenizers import byte_tokenizer
from kd.rewards import Reward
from kd.rewards.teacher_score import TeacherScore
from kd.teachers.interface import Teacher
from kd.teachers.white_box import WhiteBox
from kd.types import ModelOutput, Models
from tests.tiny import record, tiny

GIVEN = [record(i, "2 + 2 = ?", "4" * (i + 1), "five") for i in range(4)]


@pytest.fixture(scope="module")
def teacher():
    return tiny(seed=3)


def total(teacher, text: str, problem) -> tuple[float, int]:
    """Sum of the log-probabilities of a response's ids and its end token, and how many they are."""
    row = encode(problem.prompt, text, teacher.tokenizer, 500)
    ids = torch.tensor(row.ids)
    with torch.no_grad():
        logits = teacher.network(ids[None]).logits[0, row.prompt - 1 : -1, : teacher.vocabulary]
    logprobs = logits.log_softmax(-1).gather(-1, ids[row.prompt :, None])
    return logprobs.sum().item(), len(logprobs)


@pytest.mark.parametrize("normalise", ["token", "none"])
@pytest.mark.parametrize("own_tokens", [False, True])
def test_it_is_the_likelihood_of_the_response_in_the_teachers_tokens(teacher, normalise, own_tokens):
    student = byte_tokenizer()
    if own_tokens:
        student.chat_template = "Now. " + student.chat_template  # what the student reads is not what the teacher does
    encoder = Encoder(student, teacher.tokenizer, max_length=200, max_tokens=80)
    batches = TeacherScore(normalise=normalise)(encoder.batches(GIVEN), Models(teacher, WhiteBox(teacher)))
    assert (encoder.teacher is not None) == own_tokens
    assert len(batches) > 1
    for batch in batches:
        expected = []
        for problem in batch.records:
            for answer in problem.responses:
                value, count = total(teacher, answer.text, problem)
                expected.append(value / count if normalise == "token" else value)
        assert batch.rewards.tolist() == pytest.approx(expected, rel=1e-6)


def test_what_the_teacher_read_is_counted(teacher):
    encoder = Encoder(teacher.tokenizer, None, max_length=200, max_tokens=80)
    reward, batches = TeacherScore(), encoder.batches(GIVEN)
    with metered() as meter:
        for _ in range(2):
            reward(batches, Models(teacher, WhiteBox(teacher)))
    ids = [len(encode(p.prompt, a.text, teacher.tokenizer, 500).ids) - 1 for p in GIVEN for a in p.responses]
    assert meter.spent.teacher_tokens == 2 * sum(ids)


def test_no_gradient_is_kept(teacher):
    encoder = Encoder(teacher.tokenizer, None, max_length=200, max_tokens=1000)
    [batch] = TeacherScore()(encoder.batches(GIVEN[:1]), Models(teacher, WhiteBox(teacher)))
    assert not batch.rewards.requires_grad
    assert isinstance(TeacherScore(), Reward)


def test_sequences_go_where_the_student_is(teacher):
    """A live teacher of the student's own has no parameters that would say where it is."""
    seen = []

    class Live(torch.nn.Module, Teacher):
        def identity(self):
            return "live"

        def forward(self, sequences, wanted):
            seen.append(sequences.tokens.device.type)
            return ModelOutput(logprobs=torch.zeros(sequences.mask.shape))

    [batch] = Encoder(teacher.tokenizer, None, max_length=200, max_tokens=1000).batches(GIVEN[:1])
    elsewhere = SimpleNamespace(network=SimpleNamespace(device=torch.device("meta")))
    with pytest.raises(RuntimeError, match="meta"):  # whose values nobody can read
        TeacherScore()([batch], Models(elsewhere, Live()))
    assert seen == ["meta"]
